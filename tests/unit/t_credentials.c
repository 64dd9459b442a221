/* Where keys come from, in which order, and what is refused. No value may come out in a text. */
#include "agent/credentials.h"

#include <sys/prctl.h>
#include <sys/stat.h>

#include "tests/tap.h"

static char dir[] = "/tmp/tidemark-t_credentials-XXXXXX";
static char path[128];

static const char *const variables[] = {"TIDEMARK_ACCESS_KEY_ID",
                                        "TIDEMARK_SECRET_ACCESS_KEY",
                                        "TIDEMARK_SESSION_TOKEN",
                                        "AWS_ACCESS_KEY_ID",
                                        "AWS_SECRET_ACCESS_KEY",
                                        "AWS_SESSION_TOKEN",
                                        "AWS_PROFILE",
                                        "AWS_SHARED_CREDENTIALS_FILE"};

static void clean_environment(void)
{
    for (size_t i = 0; i < ARRAY_LEN(variables); i++)
        unsetenv(variables[i]);
    setenv("HOME", dir, 1);
}

static const char *write_file(const char *text, mode_t mode)
{
    snprintf(path, sizeof(path), "%s/file", dir);
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0 || chmod(path, mode) < 0) {
        printf("Bail out! cannot write %s\n", path);
        exit(1);
    }
    return path;
}

static void gives(const char *file, const char *key, const char *secret, const char *token,
                  const char *what)
{
    struct credentials *got = NULL;
    struct err err;
    int rc = credentials_load(file, &got, &err);
    is_good(rc, &err, "%s", what);
    if (rc == 0) {
        is_str(got->access_key, key, "its key");
        is_str(got->secret_key, secret, "its secret");
        is_str(got->session_token, token, "its token");
    }
    credentials_free(rc == 0 ? got : NULL);
}

static void refuses(const char *file, const char *part, const char *what)
{
    struct credentials *got;
    struct err err;
    memset(&err, 0, sizeof(err));
    is_err(credentials_load(file, &got, &err), &err, ERR_AUTH, part, "%s", what);
    ok(!strstr(err.text, "HUSH") && !strstr(err.hint, "HUSH"), "no secret in the text");
}

static void check_files(void)
{
    gives(write_file("# c\n access_key =  AK \r\n\nsecret_key = s+/=x\n; c\n", 0600), "AK", "s+/=x",
          "", "a file");
    gives(write_file("aws_access_key_id=AK\naws_secret_access_key=S\naws_session_token=T", 0400),
          "AK", "S", "T", "a file with AWS's names and a token");
    ok(prctl(PR_GET_DUMPABLE) == 0, "a token ends core dumps");
    (void)prctl(PR_SET_DUMPABLE, 1);
    static const char profiles[] = "[default]\nregion = x\naws_access_key_id = A1\n"
                                   "aws_secret_access_key = S1\n[other one]\n"
                                   "aws_access_key_id = A2\naws_secret_access_key = S2\n";
    gives(write_file(profiles, 0600), "A1", "S1", "", "the profile default");
    setenv("AWS_PROFILE", "other one", 1);
    gives(write_file(profiles, 0600), "A2", "S2", "", "the profile of AWS_PROFILE");
    setenv("AWS_PROFILE", "none", 1);
    refuses(write_file(profiles, 0600), "no access_key", "a profile that is not there");
    unsetenv("AWS_PROFILE");
    ok(prctl(PR_GET_DUMPABLE) == 1, "a plain file leaves core dumps on");
}

/* Root can read everything, but takes keys only from itself; a user from root and from itself. */
static void check_owner(const char *file)
{
    if (geteuid() != 0 || chown(file, 1, 1) < 0 || chmod(dir, 0755) < 0) {
        skip("needs root");
        return;
    }
    refuses(file, "the owner is user 1, not root or user 0", "another user's");
    ok(seteuid(1) == 0, "as user 1");
    gives(file, "a", "HUSH", "", "of the user who reads it");
    bool ready = seteuid(0) == 0 && chown(file, 0, 1) == 0 && chmod(file, 0640) == 0 &&
                 setegid(1) == 0 && seteuid(1) == 0;
    ok(ready, "as user and group 1");
    gives(file, "a", "HUSH", "", "root's, for the group of the user who reads it");
    ok(seteuid(0) == 0 && setegid(0) == 0, "as root again");
    (void)prctl(PR_SET_DUMPABLE, 1); /* seteuid(2) takes it away */
}

static void check_bad_files(void)
{
    char fifo[128];
    snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
    ok(mkfifo(fifo, 0600) == 0, "a FIFO");
    refuses(fifo, "not a file", "is refused, without waiting for somebody to write to it");
    (void)unlink(fifo);
    static const char good[] = "access_key = a\nsecret_key = HUSH\n";
    bool root = geteuid() == 0;
    refuses(write_file(good, 0644), "used by others (mode 0644)", "readable by everybody");
    refuses(write_file(good, 0620), "used by others (mode 0620)", "writable by the group");
    if (root)
        gives(write_file(good, 0640), "a", "HUSH", "", "root's, for a group");
    else
        skip("needs root");
    const char *file = write_file(good, 0640);
    if (root && chown(file, 1, 1) == 0)
        refuses(file, "used by others (mode 0640)", "a user's, for a group");
    else
        skip("needs root");
    check_owner(write_file(good, 0600));
    refuses("/nonexistent/file", "open credentials '/nonexistent/file': No such", "an absent file");
    refuses(dir, "not a file", "a directory");
    refuses(write_file("access_key = a\n", 0600), "have no access_key and", "without a secret");
    refuses(write_file("access_key a HUSH\n", 0600), "file:1: not KEY = VALUE", "without =");
    refuses(write_file("\nsecret = HUSH\n", 0600), "file:2: unknown key", "an unknown key");
    refuses(write_file("access_key =\n", 0600), "empty or too long", "an empty value");
    refuses(write_file("[default\n", 0600), "malformed [profile]", "half a section");
    char text[400] = "access_key = ";
    memset(text + strlen(text), 'H', 200);
    refuses(write_file(text, 0600), "empty or too long", "a long value");
    char *large = calloc(1, 70000);
    memset(large, '#', 66000);
    refuses(write_file(large, 0600), "longer than 65536 bytes", "a long file");
    free(large);
}

/* Configured file, TIDEMARK_, AWS_, AWS's own file. */
static void check_order(void)
{
    char aws[128];
    snprintf(aws, sizeof(aws), "%s/.aws", dir);
    (void)mkdir(aws, 0700);
    refuses("", "there are no credentials", "nothing anywhere");
    snprintf(path, sizeof(path), "%s/.aws/credentials", dir);
    (void)rename(write_file("[default]\naws_access_key_id=F\naws_secret_access_key=f\n", 0600),
                 strcat(aws, "/credentials"));
    gives("", "F", "f", "", "~/.aws/credentials");
    ok(prctl(PR_GET_DUMPABLE) == 1, "core dumps are on");
    setenv("AWS_ACCESS_KEY_ID", "E", 1);
    refuses("", "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not", "half a pair");
    setenv("AWS_SECRET_ACCESS_KEY", "e", 1);
    setenv("AWS_SESSION_TOKEN", "t", 1);
    gives("", "E", "e", "t", "AWS_ before it");
    ok(prctl(PR_GET_DUMPABLE) == 0, "keys in the environment end core dumps");
    setenv("TIDEMARK_ACCESS_KEY_ID", "M", 1);
    setenv("TIDEMARK_SECRET_ACCESS_KEY", "m", 1);
    gives("", "M", "m", "", "TIDEMARK_ before that, nothing is mixed");
    gives(write_file("access_key = C\nsecret_key = c\n", 0600), "C", "c", "",
          "a configured file before all");
    clean_environment();
    (void)unlink(aws);
    setenv("AWS_SHARED_CREDENTIALS_FILE", write_file("access_key=O\nsecret_key=o\n", 0600), 1);
    gives("", "O", "o", "", "AWS_SHARED_CREDENTIALS_FILE");
    setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/x", 1);
    refuses("", "open credentials '/nonexistent/x'", "which must exist when it is named");
    *strrchr(aws, '/') = '\0';
    (void)rmdir(aws);
}

/* Every copy in this process lies in memory that core dumps leave out. VmFlags "dd", proc(5). */
static void check_memory(void)
{
    static const char half[] = "Mz9-in-memory-";
    char needle[64], text[160], line[512];
    snprintf(needle, sizeof(needle), "%s%s", half, "only-here");
    snprintf(text, sizeof(text), "access_key = a\nsecret_key = %s\n", needle);
    struct credentials *got = NULL;
    struct err err;
    is_good(credentials_load(write_file(text, 0600), &got, &err), &err, "a key to look for");
    explicit_bzero(text, sizeof(text));
    uintptr_t at = (uintptr_t)got, start = 0, end = 0;
    bool dumped = true;
    FILE *maps = fopen("/proc/self/smaps", "r");
    while (maps && fgets(line, sizeof(line), maps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            start = from;
            end = to;
        }
        if (strncmp(line, "VmFlags:", 8) == 0 && at >= start && at < end)
            dumped = strstr(line, " dd") == NULL;
    }
    if (maps)
        fclose(maps);
    ok(got && strcmp(got->secret_key, needle) == 0 && !dumped, "it is left out of core dumps");
    credentials_free(got);
}

int main(void)
{
    if (!mkdtemp(dir))
        return 1;
    clean_environment();
    check_files();
    check_bad_files();
    check_order();
    check_memory();
    snprintf(path, sizeof(path), "%s/file", dir);
    (void)unlink(path);
    (void)rmdir(dir);
    return done();
}
