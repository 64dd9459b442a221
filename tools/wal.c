/* tidemark-wal: archive_command and restore_command. This program is the lean front: PostgreSQL
 * starts it for every segment, so one that was prefetched is delivered here, by one rename, and one
 * that was pushed ahead is acknowledged here, without libcrypto and its 1.6 ms of start. Everything
 * else is done by tidemark-wal-worker, which is executed in its place. */
#include <signal.h>
#include <stdio.h>

#include "agent/log.h"
#include "agent/wal_ahead.h"
#include "agent/wal_command.h"
#include "agent/wal_launch.h"
#include "agent/wal_spool.h"

/* True when the segment is delivered. Without --repository-id nobody knows here which repository
 * is the right one; tidemark.repo would have to be read, and that is the worker's business, as are
 * the history files. */
static bool deliver_from_spool(const struct wal_command *command, int argc, char **argv)
{
    char base[CONF_PATH_MAX + 1];
    enum wal_kind kind;
    struct wal_spool spool;
    struct err ignored;
    uint64_t system_id;
    uint32_t size;
    if (!command->has_repository_id || command->limit_latest || command->conf.wal_prefetch == 0 ||
        !wal_name_parse(command->name, &kind, NULL) || kind != WAL_SEGMENT ||
        wal_command_withholds(command, command->name) ||
        wal_command_system_id(command, &system_id, &ignored) < 0 ||
        !wal_command_spool(command, command->path, base) ||
        !wal_spool_open(base, system_id, command->repository_id, false, &spool))
        return false;
    bool found = wal_spool_take(&spool, command->name, system_id, command->path, &size);
    if (found) {
        wal_spool_delivered(&spool, command->name, size, SPOOL_HIT);
        if (!wal_spool_busy(&spool))
            wal_launch_prefetch(argc, argv);
    }
    wal_spool_close(&spool);
    return found;
}

/* get must not end with 1..125 unless the file is known to be absent: PostgreSQL would take the
 * archive's end for reached. push must not end with more than 125. */
static int fail(const struct err *err, bool is_get)
{
    log_err(err);
    return is_get ? WAL_EXIT_FAILED : err_exit_status(err->code);
}

/* True when the process that pushes ahead has decided it: *ret_status. */
static bool ask_ahead(const struct wal_command *command, int argc, char **argv, int *ret_status)
{
    struct err err;
    enum wal_ahead_word word = wal_ahead_ask(command, argc, argv, &err);
    *ret_status = 0;
    if (word == AHEAD_FAILED) {
        (void)err_prefix(&err, "tidemark-wal push %s", command->name);
        *ret_status = fail(&err, false);
    }
    return word == AHEAD_PUSHED || word == AHEAD_FAILED;
}

int main(int argc, char **argv)
{
    struct wal_command command;
    struct err err;
    int status;
    bool is_get = argc > 1 && strcmp(argv[1], "get") == 0;
    (void)signal(SIGPIPE, SIG_IGN);
    if (wal_command_parse(argc, argv, &command, &err) < 0)
        return fail(&err, is_get);
    if (command.verb == WAL_HELP || command.verb == WAL_VERSION) {
        if (command.verb == WAL_HELP)
            wal_command_usage(stdout);
        else
            (void)puts("tidemark-wal " TIDEMARK_VERSION);
        return 0;
    }
    if (command.verb == WAL_GET && deliver_from_spool(&command, argc, argv))
        return 0;
    if (command.verb == WAL_PUSH && ask_ahead(&command, argc, argv, &status))
        return status;
    (void)wal_launch_worker(argv, &err);
    return fail(&err, is_get);
}
