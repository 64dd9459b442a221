/* Who reads a snapshot: a mark reading/<snapshot>-<job>-<random> (FORMAT.md §8), put by a restore,
 * an export or a verification before it reads what may be removed, another one every day while it
 * runs, and all are removed at the end. `tidemark expire` removes nothing of a snapshot that has
 * one which is younger than READING_LIFE_S, however long ago it was withdrawn, and keeps its WAL.
 * That life is much longer than what a process may sleep, and a job that was killed and goes on
 * within it finds everything. Of one that was declined, cancelled or given up, or that nobody can
 * go on with, a process of its own (reading_forget_main()) removes it: the end must not wait for
 * the repository. Whatever stays is removed by expire when it is older.
 *
 * Who reads puts the mark, then looks whether the snapshot is withdrawn. Not yet: an expire that
 * takes it for dead lists these marks a grace later. It is: who begins finds no snapshot
 * (ERR_MISSING), who goes on with what had begun (begun) may be late, and finds objects missing
 * then.
 *
 * A restore must not fail because a store or a key is read-only: it goes on without a mark, logs
 * that, and tries again every ten minutes. Until then such a job has the grace period. begin and
 * end: one thread. */
#ifndef TIDEMARK_AGENT_READING_H
#define TIDEMARK_AGENT_READING_H

#include "agent/background.h"
#include "agent/job.h"
#include "agent/record.h"

enum { READING_LIFE_S = 7 * 86400 };

struct reading_mark {
    struct store *store; /* of the thread, NULL when there is none */
    struct repo repo;
    uint8_t snapshot[ID_LEN];
    char job[ID_TEXT_LEN], node[64];
    bool is_put; /* the last try; the thread's while it runs */
    struct background thread;
};

/* Zeroed before the first use; does nothing when it has begun already. store is not in use. */
int reading_begin(struct reading_mark *reading, struct store *store, const struct repo *repo,
                  const struct job *job, const struct record *record, bool begun, struct err *err);
/* Ends the thread; the mark stays, for a later run of the job. Also when it never began. */
void reading_pause(struct reading_mark *reading);
/* The same, and removes the marks of this job, of earlier runs too; what cannot be removed is only
 * logged. */
void reading_end(struct reading_mark *reading, struct store *store, const struct job *job,
                 const uint8_t snapshot[ID_LEN]);

/* The process behind job_start_forget(), for a job that somebody else has ended: removes its marks.
 * Not of a restore that has left its server paused, or shut down, at its target. The exit status.
 */
int reading_forget_main(const char *dir, int ready_fd);

/* The snapshot of such a name; false for another name. */
bool reading_parse(const char *name, uint8_t ret_snapshot[ID_LEN]);

#endif
