/* Random 128-bit ids and their text: see repo.h. A file of its own, so that a program which only
 * compares ids (the lean tidemark-wal) does not link the stores and libcrypto. */
#include <sys/random.h>

#include "io/repo.h"

int id_random(uint8_t id[ID_LEN], struct err *err)
{
    /* Up to 256 bytes are never cut short once the pool is ready: getrandom(2). */
    ssize_t got = getrandom(id, ID_LEN, 0);
    if (got != ID_LEN)
        return err_sys(err, ERR_INTERNAL, "random id");
    return 0;
}

void id_to_text(const uint8_t id[ID_LEN], char text[ID_TEXT_LEN])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < ID_LEN; i++) {
        text[2 * i] = digits[id[i] >> 4];
        text[2 * i + 1] = digits[id[i] & 15];
    }
    text[2 * ID_LEN] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool id_from_text(const char *text, uint8_t id[ID_LEN])
{
    uint8_t bytes[ID_LEN];
    if (strlen(text) != 2 * ID_LEN)
        return false;
    for (size_t i = 0; i < ID_LEN; i++) {
        int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    memcpy(id, bytes, ID_LEN);
    return true;
}

bool id_is_zero(const uint8_t id[ID_LEN])
{
    static const uint8_t zero[ID_LEN];
    return memcmp(id, zero, ID_LEN) == 0;
}
