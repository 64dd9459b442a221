/* What a push that failed leaves for the agent, and what the agent makes of anything else there. */
#include "agent/wal_report.h"

#include <stdio.h>
#include <sys/stat.h>

#include "tests/tap.h"

static char dir[] = "/var/tmp/tidemark-t_wal_report-XXXXXX";
static char base[128], file[160];
static struct conf conf;
static const char name[] = "000000010000000000000007";

static bool reads(struct err *err)
{
    memset(err, 0, sizeof(*err));
    return wal_report_read(&conf, dir, name, err);
}

static void refuses(const char *text, const char *what)
{
    struct err err;
    FILE *to = fopen(file, "w");
    if (!to || fputs(text, to) < 0 || fclose(to) != 0)
        exit(1);
    ok(!reads(&err), "%s", what);
}

int main(void)
{
    struct err err, failure;
    if (!mkdtemp(dir))
        return 1;
    snprintf(base, sizeof(base), "%s/tidemark-spool", dir);
    snprintf(file, sizeof(file), "%s/push-failed", base);
    strcpy(conf.os_user, "root");
    ok(!reads(&err), "nothing is there");
    err_set(&failure, ERR_STORE, "put: full\nreally, caf\xc3\xa9");
    err_hint(&failure, "free space");
    wal_report_write(base, name, &failure);
    ok(reads(&err) && err.code == ERR_STORE, "a report");
    is_str(err.text, "put: full really, caf??", "its text: a line of printable ASCII");
    is_str(err.hint, "free space", "its hint");
    ok(!wal_report_read(&conf, dir, "000000010000000000000008", &err), "not another file's");
    err_set(&failure, ERR_AUTH, "key");
    wal_report_write(base, name, &failure);
    ok(reads(&err) && err.code == ERR_AUTH && err.hint[0] == '\0', "a newer one, without a hint");
    wal_report_clear(base);
    ok(!reads(&err), "a push that succeeds removes it");
    refuses("", "an empty file");
    refuses("tidemark-push-failed 1\nstore\n000000010000000000000007\ntext\n", "a cut one");
    refuses("tidemark-push-failed 2\nstore\n000000010000000000000007\nt\nh\n", "another version");
    refuses("tidemark-push-failed 1\nok\n000000010000000000000007\nt\nh\n", "a success");
    refuses("tidemark-push-failed 1\ncancelled\n000000010000000000000007\nt\nh\n", "a cancel");
    (void)unlink(file);
    ok(symlink("/etc/passwd", file) == 0 && !reads(&err), "a link");
    (void)unlink(file);
    ok(mkfifo(file, 0600) == 0 && !reads(&err), "a pipe, without waiting for its other end");
    (void)unlink(file);
    (void)rmdir(base);
    (void)rmdir(dir);
    return done();
}
