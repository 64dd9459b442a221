/* The files that are pushed ahead, and the threads that push them; wal_ahead.h says what for.
 *
 * Order: a file begins only after all before it have begun; no file begins before the history files
 * that precede it are stored; none goes to the repository before the first one of all is there; and
 * after a failure no other begins. So a server that may not archive here (its first file is
 * refused, because another one has taken the name) leaves no more behind than it would one by one,
 * and what a killed process leaves is at most push_ahead - 1 files behind a gap, which the server
 * offers again.
 *
 * What is acknowledged is in the repository that was meant: a thread asks who it is when it
 * connects, and before or after a push whenever it has not asked for a second. A push by itself
 * asks once, and may then try for minutes. That it is another one than before counts as a failure,
 * too. */
#ifndef TIDEMARK_AGENT_WAL_AHEAD_QUEUE_H
#define TIDEMARK_AGENT_WAL_AHEAD_QUEUE_H

#include "agent/wal_ahead.h"

struct ahead_queue;

/* wal_path is that of pg_wal, wal_fd its descriptor; all are borrowed. Every end of a push is
 * written to wake_fd (an eventfd). NULL when out of memory. */
struct ahead_queue *ahead_queue_make(const struct wal_command *command, const char *wal_path,
                                     int wal_fd, int wake_fd);
/* Waits for the pushes that have begun. */
void ahead_queue_free(struct ahead_queue *queue);

/* Starts the threads. False when not even one can be had. */
bool ahead_queue_start(struct ahead_queue *queue);
/* Nothing begins any more. */
void ahead_queue_stop(struct ahead_queue *queue);

/* Looks at what is ready; one thread. */
void ahead_queue_scan(struct ahead_queue *queue);

struct ahead_queue_state {
    unsigned waiting, at_work; /* files; the latter with threads that connect */
    bool stopped;              /* after a failure, or ahead_queue_stop() */
};
struct ahead_queue_state ahead_queue_look(struct ahead_queue *queue);

/* Of a question that came at asked_ms. AHEAD_WORKING: later. A failure is told to those who waited
 * for this push; who asks later may have more luck by himself. *ret_known is false for a file that
 * is not in the queue. */
void ahead_queue_judge(struct ahead_queue *queue, const struct wal_ahead_ask *ask,
                       uint64_t asked_ms, struct wal_ahead_answer *ret, bool *ret_known);

/* Test hook: the process kills itself at the step of this number that it comes to, when the
 * environment's TIDEMARK_TEST_AHEAD_KILL says so. It stays compiled in, as restore_test_stop(). */
void ahead_test_step(void);

#endif
