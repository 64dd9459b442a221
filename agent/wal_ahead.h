/* Pushing ahead: a process of the server's user (`tidemark-wal-worker push-ahead`,
 * wal_ahead_serve.c) stores many of the WAL files that are ready at once, and archive_command asks
 * it for one after the other. It is started when files pile up and ends when they no longer do.
 *
 * An acknowledgement is nothing that lies anywhere: the living process gives it, over a socket,
 * after the repository has confirmed the object. What a killed one knew is gone with it, as is what
 * a power cut or a restored volume would bring back, and whoever asks then pushes by itself, which
 * compares with what the repository has. It is bound to
 *   - the whole configuration, the system id and the version: the socket's name and each question
 *     carry a fingerprint of them, so that another repository has another process;
 *   - the very file: device, inode, size and both times of what was read, against what lies there
 *     when the question is asked. */
#ifndef TIDEMARK_AGENT_WAL_AHEAD_H
#define TIDEMARK_AGENT_WAL_AHEAD_H

#include <sys/un.h>

#include "agent/wal_command.h"

/* Which file: no padding, compared as bytes. */
struct wal_file_id {
    uint64_t device, inode, size;
    uint64_t changed_s, changed_ns; /* ctime */
    uint64_t written_s, written_ns; /* mtime */
};

/* False when it is no regular file in the directory. */
bool wal_file_identify(int dir_fd, const char *name, struct wal_file_id *ret);

/* --- between archive_command and the process, both of one version: SOCK_SEQPACKET ---------------
 */

struct wal_ahead_ask {
    uint64_t fingerprint;
    struct wal_file_id file;
    char name[WAL_NAME_MAX + 1];
};

enum wal_ahead_word {
    AHEAD_WORKING, /* every second until another one */
    AHEAD_PUSHED,
    AHEAD_FAILED,   /* code, text, hint */
    AHEAD_NOT_OURS, /* push it yourself */
};

struct wal_ahead_answer {
    uint32_t word, code;
    char text[sizeof(((struct err *)0)->text)];
    char hint[sizeof(((struct err *)0)->hint)];
};

enum { AHEAD_BEAT_MS = 1000, AHEAD_SILENCE_MS = 10000 /* then it hangs */ };

uint64_t wal_ahead_fingerprint(const struct wal_command *command, uint64_t system_id);

/* Of the socket in the directory of all spools; through /proc, for any length of its path. */
void wal_ahead_address(int base_fd, uint64_t fingerprint, struct sockaddr_un *ret);

/* --- archive_command -----------------------------------------------------------------------------
 */

/* Lean: asks for the file of a push, and starts the process when enough other files are ready.
 * AHEAD_PUSHED; AHEAD_FAILED with err; AHEAD_NOT_OURS in every other case. */
enum wal_ahead_word wal_ahead_ask(const struct wal_command *command, int argc, char **argv,
                                  struct err *err);

#endif
