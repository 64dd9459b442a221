/* tidemark-wal-worker: what tidemark-wal executes for everything but the delivery of a prefetched
 * segment and the acknowledgement of one that was pushed ahead. Not called by people. */
#include <signal.h>

#include "agent/log.h"
#include "agent/wal_serve.h"

int main(int argc, char **argv)
{
    struct wal_command command;
    struct err err;
    (void)signal(SIGPIPE, SIG_IGN);
    if (wal_command_parse(argc, argv, &command, &err) < 0) {
        log_err(&err);
        return argc > 1 && strcmp(argv[1], "get") == 0 ? WAL_EXIT_FAILED
                                                       : err_exit_status(err.code);
    }
    switch (command.verb) {
    case WAL_PUSH:
        return wal_serve_push(&command);
    case WAL_GET:
        return wal_serve_get(&command, argc, argv);
    case WAL_PREFETCH:
        return wal_serve_prefetch(&command);
    case WAL_PUSH_AHEAD:
        return wal_serve_push_ahead(&command);
    case WAL_STATS:
        return wal_serve_stats(&command);
    case WAL_HELP:
    case WAL_VERSION:
        break;
    }
    wal_command_usage(stderr);
    return err_exit_status(ERR_USAGE);
}
