/* A job: one snapshot, restore or verification, in a process of its own (fork + exec of
 * `tidemark-agent job DIR`), so that it outlives the agent. Everything about it is in its
 * directory <state_dir>/jobs/<id>/:
 *
 *     request.json   type and arguments, written by the agent before the start; never changes
 *     conf           the configuration the agent had (conf_write)
 *     journal.json   state, atomically replaced and fsynced before every step
 *     progress.json  bytes, rate, phase; replaced every 500 ms, not durable
 *     lock           flock(LOCK_EX) while the job's process lives: that is how anyone (also an
 *                    agent that was restarted) knows that it runs
 *     log            stderr of the process
 *
 * Journal: {"id","type","state","phase","started_s","ended_s","error":{code,text,hint}|null,
 * "result":{…}, …fields of the verb}. state is "running", "complete", "failed", "cancelled",
 * "prepared" (restore between plan and execute), "interrupted" (not running, not ended). */
#ifndef TIDEMARK_AGENT_JOB_H
#define TIDEMARK_AGENT_JOB_H

#include "agent/conf.h"
#include "agent/json.h"
#include "io/lane_options.h"
#include "io/repo.h"

struct job {
    char dir[1200];
    char id[ID_TEXT_LEN];
    const char *type; /* "snapshot", "restore", "verification"; borrowed from request */
    json_t *request;
    json_t *journal; /* edit with json_object_set*, then job_journal() */
    struct conf conf;
    struct io_progress progress;
    int lock_fd;
    int log_fd;
    char phase[32];
};

/* --- inside the job's process ----------------------------------------------------------------- */
/* Opens DIR, takes the lock (ERR_BUSY when it runs already), installs the signal handlers (SIGTERM
 * and SIGINT set progress.cancel), starts the progress writer thread. */
int job_open(const char *dir, struct job *ret, struct err *err);
/* Sets state (NULL = keep) and phase in the journal and makes it durable. Call before the step. */
int job_journal(struct job *job, const char *state, const char *phase, struct err *err);
/* ERR_CANCELLED once somebody cancelled. */
int job_check_cancel(const struct job *job, struct err *err);
/* Ends: writes the final journal from rc and err, stops the writer, releases the lock. */
void job_close(struct job *job, int rc, const struct err *err);
/* The process's main: runs snapshot_run / restore_run / verification_run by type; returns the exit
 * status. */
int job_main(const char *dir);

/* --- in the agent or the command line --------------------------------------------------------- */
/* Makes <state_dir>/jobs/<new id>/ with request.json and conf. request is borrowed. */
int job_create(const struct conf *conf, const json_t *request, char ret_id[ID_TEXT_LEN],
               struct err *err);
/* fork + exec of our own executable with `job DIR`; all other descriptors close-on-exec. */
int job_start(const char *dir, int *ret_pid, struct err *err);
/* journal + progress as one JSON object with "running": true|false; new reference. */
int job_status(const struct conf *conf, const char *id, json_t **ret, struct err *err);
/* Array of job_status() of all jobs, oldest first. */
int job_list(const struct conf *conf, json_t **ret, struct err *err);
/* SIGTERM to the running process; ERR_MISSING when it does not run. */
int job_cancel(const struct conf *conf, const char *id, struct err *err);

/* --- the verbs, each in its own file ------------------------------------------------------------
 */
int snapshot_run(struct job *job, struct err *err);     /* agent/snapshot.c */
int restore_run(struct job *job, struct err *err);      /* agent/restore.c */
int verification_run(struct job *job, struct err *err); /* agent/verification.c: repository only */

#endif
