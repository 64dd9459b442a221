/* What key files hold: see keyring.h. The text is made to be read from paper again: whoever loses
 * it loses the repository. */
#include <stdio.h>

#include "io/crypt.h"
#include "io/keyring.h"

enum { CHECK_LEN = 4 };

static const char names[][20] = {
    [FMT_ROLE_DATA] = "tidemark-data-key", [FMT_ROLE_WAL] = "tidemark-wal-key"};

static void derive(const struct key_secret *secret, const char *info, uint8_t *to, size_t len)
{
    hkdf_sha256(secret->bytes, sizeof(secret->bytes), NULL, 0, info, strlen(info), to, len);
}

int key_secret_random(struct key_secret *ret, struct err *err)
{
    struct key_secret secret = {.role = FMT_ROLE_DATA};
    int rc = id_random(secret.bytes, err);
    if (rc == 0)
        rc = id_random(secret.bytes + ID_LEN, err);
    if (rc == 0)
        *ret = secret;
    explicit_bzero(&secret, sizeof(secret));
    return rc;
}

void key_secret_wal(const struct key_secret *data, struct key_secret *ret)
{
    struct key_secret wal = {.role = FMT_ROLE_WAL};
    derive(data, "tidemark wal key file", wal.bytes, sizeof(wal.bytes));
    *ret = wal;
    explicit_bzero(&wal, sizeof(wal));
}

void key_secret_id(const struct key_secret *secret, uint8_t ret_id[KEY_FILE_ID_LEN])
{
    derive(secret, "tidemark key file id", ret_id, KEY_FILE_ID_LEN);
}

static void checksum(const struct key_secret *secret, uint8_t ret[CHECK_LEN])
{
    derive(secret, "tidemark key file check", ret, CHECK_LEN);
}

static char *put_hex(char *at, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        at += snprintf(at, 3, "%02x", bytes[i]);
    return at;
}

void key_secret_print(const struct key_secret *secret, char *text)
{
    uint8_t check[CHECK_LEN];
    checksum(secret, check);
    int len = snprintf(
        text, KEY_FILE_TEXT_MAX, "%s%s = ",
        secret->role == FMT_ROLE_DATA
            ? "# Whoever has this file can read the repository; without it NOBODY can, and there\n"
              "# is no other way in. Keep a copy where neither the server nor the repository is.\n"
            : "# For tidemark-wal, made from the key file of the repository, which can make it\n"
              "# again: readable by the server's own user, good for wal/ only.\n",
        names[secret->role]);
    char *at = put_hex(text + len, secret->bytes, sizeof(secret->bytes));
    *at++ = '-';
    at = put_hex(at, check, sizeof(check));
    *at++ = '\n';
    *at = '\0';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool take_hex(const char *text, uint8_t *to, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int high = digit(text[2 * i]), low = high < 0 ? -1 : digit(text[2 * i + 1]);
        if (low < 0)
            return false;
        to[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static int malformed(const char *what, struct err *err)
{
    (void)err_set(err, ERR_AUTH, "%s", what);
    return err_hint(err, "put your copy of it back; that of [wal] `tidemark key wal FILE` makes "
                         "again");
}

/* "<name> = <64 digits>-<8 digits>" */
static int take_line(const char *line, size_t len, struct key_secret *to, struct err *err)
{
    const size_t value_len = 2 * sizeof(to->bytes) + 1 + 2 * (size_t)CHECK_LEN;
    uint8_t check[CHECK_LEN], want[CHECK_LEN];
    for (int role = FMT_ROLE_DATA; role <= FMT_ROLE_WAL; role++) {
        size_t name_len = strlen(names[role]);
        if (len != name_len + 3 + value_len || memcmp(line, names[role], name_len) != 0 ||
            memcmp(line + name_len, " = ", 3) != 0)
            continue;
        const char *value = line + name_len + 3;
        to->role = (enum fmt_role)role;
        if (!take_hex(value, to->bytes, sizeof(to->bytes)) || value[2 * sizeof(to->bytes)] != '-' ||
            !take_hex(value + 2 * sizeof(to->bytes) + 1, check, sizeof(check)))
            break;
        checksum(to, want);
        return memcmp(check, want, sizeof(want)) == 0
                   ? 0
                   : malformed("its key has a mistake: the digits behind '-' do not fit", err);
    }
    return malformed("a line is neither a comment nor a key", err);
}

static int parse(const char *text, size_t len, struct key_secret *to, struct err *err)
{
    for (const char *end = text + len; text < end;) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t line_len = (size_t)((newline ? newline : end) - text);
        const char *line = text;
        text += line_len + (newline != NULL);
        if (line_len == 0 || *line == '#')
            continue;
        if (to->role)
            return malformed("it holds more than one key", err);
        int rc = take_line(line, line_len, to, err);
        if (rc < 0)
            return rc;
    }
    return to->role ? 0 : malformed("it holds no key", err);
}

int key_secret_parse(const char *text, size_t len, struct key_secret *ret, struct err *err)
{
    struct key_secret secret = {0};
    int rc = parse(text, len, &secret, err);
    if (rc == 0)
        *ret = secret;
    explicit_bzero(&secret, sizeof(secret));
    return rc;
}
