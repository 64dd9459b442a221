/* A job: one snapshot, restore, verification or export, in a process of its own (fork + exec of
 * `tidemark-agent job DIR`), so that it outlives the agent. Everything about it is in its
 * directory <state_dir>/jobs/<id>/:
 *
 *     request.json   type and arguments, written by the agent before the start; never changes
 *     goal.json      restores: {"goal":"prepare"|"execute"|"verify"|"all"|"abort"}, how far this
 *                    run of the job goes; absent = "all". Parts of a cluster restore: also "epoch",
 *                    "until", "fork" and "slots" of the call (restore_cluster.c)
 *     conf           the configuration the agent had (conf_write); of a cluster restore that is
 *                    resumed [coordinator] is read anew
 *     journal.json   state, atomically replaced and fsynced before every step
 *     progress.json  bytes, rate, phase; replaced every 500 ms, not durable
 *     lock           an open-file-description lock while the job's process lives, and its pid: that
 *                    is how anyone (also an agent that was restarted) knows that it runs. Asking
 *                    does not take the lock (F_OFD_GETLK), so nobody's question is in the way.
 *     notified.json  {"ended_s", "notified"}: what came of telling of the end (or of what was found
 *                    interrupted) at ended_s
 *     log            stdout and stderr of the process
 *     key.json       the Idempotency-Key of the request, if it had one
 *
 * Journal: {"id","type","state","phase","phase_s","created_ms","started_s","ended_s",
 * "error":{code,text,hint}|null, "result":{…}, "interrupted_hint": what to do should it be killed,
 * …fields of the verb}. state is "created" (not
 * started yet), "running", "complete", "failed", "cancelled", "prepared" and "executed" (a restore
 * between its goals), "held" (a part of a cluster restore at "held_at": "fenced", "configured" or
 * "recovered"), "interrupted" (derived: the journal says running, but nothing runs; whoever found
 * it so and leaves it to a person adds "interrupted_s" and an error), "taken_over" (a cluster
 * restore that another coordinator has: nothing more comes of it here).
 *
 * A job of type snapshot or restore holds the node's lock (node_lock.h) while its process lives,
 * taken by job_open(): verbs do not take it themselves. */
#ifndef TIDEMARK_AGENT_JOB_H
#define TIDEMARK_AGENT_JOB_H

#include <pthread.h>

#include "agent/background.h"
#include "agent/conf.h"
#include "agent/json.h"
#include "io/lane_options.h"
#include "io/repo.h"

enum { JOB_DIR_MAX = 1200, JOBS_ENDED_MAX = 100, JOB_GOAL_MAX = 16 };

struct job {
    char dir[JOB_DIR_MAX];
    char id[ID_TEXT_LEN];
    const char *type; /* "snapshot", "restore", "verification", …; borrowed from request */
    json_t *request;
    json_t *journal; /* edit with json_object_set*, then job_journal() */
    struct conf conf;
    struct io_progress progress;
    char goal[JOB_GOAL_MAX]; /* restores; see goal.json */
    json_t *goal_file;       /* all of it; NULL when it is absent */
    int lock_fd;
    int node_lock_fd;         /* -1 for what is about the repository only */
    struct background writer; /* of progress.json */
    pthread_mutex_t mutex;    /* of what follows, between this thread and the writer's */
    char phase[32];
};

/* --- inside the job's process ----------------------------------------------------------------- */
/* Opens DIR, takes the lock (ERR_BUSY when it runs already) and the node's lock, refuses what an
 * unfinished restore forbids (ERR_PARTIAL), writes state "running", installs the signal handlers
 * (SIGTERM and SIGINT set progress.cancel), starts the progress writer thread. On failure nothing
 * in the directory has changed. */
int job_open(const char *dir, struct job *ret, struct err *err);
/* Sets state (NULL = keep) and phase in the journal, with the time of a new phase, and makes it
 * durable. Call before the step. */
int job_journal(struct job *job, const char *state, const char *phase, struct err *err);
/* ERR_CANCELLED once somebody cancelled. */
int job_check_cancel(const struct job *job, struct err *err);
/* Of which repository it is, for who asks later what was done with that one. */
void job_note_repository(struct job *job, const struct repo *repo);

/* Ends: writes the final journal from rc and err, stops the writer, releases the locks, and then
 * tells whom [notify] names (notify.h), which takes its time. */
void job_close(struct job *job, int rc, const struct err *err);
/* What job_start() waits for: children do not inherit ready_fd (-1 = none); then "ok" or the error,
 * and it is closed. */
void job_keep_ready(int ready_fd);
void job_report_ready(int ready_fd, int rc, const struct err *err);
/* The process's main: runs snapshot_run, restore_run, … by type; returns the exit
 * status. ready_fd (-1 = none) gets "ok" once job_open() has succeeded, or its error. */
int job_main(const char *dir, int ready_fd);
/* The beginning of a process that does something about a job when nothing runs it any more. 0, or
 * the exit status after the error was reported and logged; the caller releases both also then. */
int job_open_ended(const char *dir, int ready_fd, struct conf *ret_conf, json_t **ret_request,
                   json_t **ret_journal);

/* --- job_conf.c: what is in `conf` --- */
int job_load_conf(const char *dir, struct conf *ret, struct err *err);
int job_write_conf(const char *dir, const struct conf *conf, struct err *err);
/* [coordinator] of the job becomes what conf's file says now: whoever resumes has perhaps corrected
 * it, and the agent reads its file only when it starts. Not while the job runs. */
int job_renew_conf(const struct conf *conf, const char *id, struct err *err);

/* --- in the agent or the command line --------------------------------------------------------- */
void job_dir(const struct conf *conf, const char *id, char ret[JOB_DIR_MAX]);
/* Makes <state_dir>/jobs/<new id>/ with request.json and conf. request is borrowed. Removes ended
 * jobs beyond the newest JOBS_ENDED_MAX, and what was never made whole. */
int job_create(const struct conf *conf, const json_t *request, char ret_id[ID_TEXT_LEN],
               struct err *err);
/* The same with an id that is given, ERR_DEVICE when it is there; more: fields for its journal. */
int job_create_as(const struct conf *conf, const char *id, const json_t *request,
                  const json_t *more, struct err *err);
/* Removes a job that never started, or is not needed any more; not one that runs. */
void job_discard(const struct conf *conf, const char *id);
/* How far the next run goes: see goal.json. options: more of its fields, borrowed, may be NULL.
 * ERR_BUSY while it runs. */
int job_set_goal(const struct conf *conf, const char *id, const char *goal, const json_t *options,
                 struct err *err);
/* fork + exec of tidemark-agent with `job DIR`, all descriptors but 0–3 closed. Returns when the
 * child has its locks and its journal says "running", or with the error that stopped it (ERR_BUSY
 * by the node's lock). job_reap() reaps it, or the caller does with *ret_pid. */
int job_start(const char *dir, int *ret_pid, struct err *err);
/* The same with `notify DIR`, which tells of the end of a job that nothing runs any more, and is
 * not waited for. */
int job_start_notify(const char *dir, struct err *err);
/* The same with `forget DIR`, which removes the marks that it reads a snapshot (reading.h). */
int job_start_forget(const char *dir, struct err *err);
/* Reaps the jobs that this process has started and that have ended, and no other child: whoever
 * waits for one of those wants its status. Any thread. */
void job_reap(void);
/* Takes the job's lock for this process and writes its pid into the file: ERR_BUSY when somebody
 * has it. *ret_fd is closed by the caller. */
int job_lock(const char *dir, int *ret_fd, struct err *err);
/* True when the process of the job lives, or somebody is writing its journal; *ret_pid (may be
 * NULL) is its process, 0 while there is none that may be signalled. */
bool job_is_running(const char *dir, int *ret_pid);
/* Returns after timeout_ms, soon after the job's end, or when a signal came. Costs little while it
 * waits: for those who show a job's progress and go on when it has ended. */
void job_pause(const struct conf *conf, const char *id, unsigned timeout_ms);
/* journal, progress and notified as one JSON object with "running": true|false; new reference. */
int job_status(const struct conf *conf, const char *id, json_t **ret, struct err *err);
/* Array of job_status() of all jobs, oldest first. */
int job_list(const struct conf *conf, json_t **ret, struct err *err);
/* SIGTERM to the running process; ERR_MISSING when it does not run. */
int job_cancel(const struct conf *conf, const char *id, struct err *err);
/* Ends a job whose process is gone: journals state and error (may be NULL). ERR_BUSY when it runs,
 * ERR_REFUSED when it has ended before. Starts a process that tells whom [notify] names. */
int job_end(const struct conf *conf, const char *id, const char *state, const struct err *why,
            struct err *err);
/* A restore that was killed and waits for somebody to go on with it: journals when that was found,
 * and why, and starts a process that tells whom [notify] names. ERR_BUSY when it runs, ERR_REFUSED
 * when it is not interrupted. */
int job_note_interrupted(const struct conf *conf, const char *id, const struct err *why,
                         struct err *err);
/* The time of what is told of last: its end, or that it was found interrupted. Borrowed, NULL =
 * neither. */
json_t *job_told_time(const json_t *journal);
/* True for restores from step "marked" on that are not complete: the volume holds neither the old
 * nor the new data, and the job can be resumed. Journal as job_status() gives it. */
bool job_is_partial(const json_t *status);
/* ERR_BUSY: a process works on it. */
int job_is_busy(const char *id, struct err *err);
/* True for a restore that is one node's part of a cluster restore: the journal's "cluster". */
bool job_is_cluster_part(const json_t *status);
/* True for a restore that leaves the server stopped for Patroni: the journal's "handover". */
bool job_is_handover(const json_t *status);
/* The command that goes on with a restore, or with the whole of which it is a part. */
enum { JOB_COMMAND_MAX = 80 };
void job_resume_command(const json_t *status, char ret[JOB_COMMAND_MAX]);
/* True when nothing of the job is left to go on with or to take back. A part of a cluster restore
 * that fails after its hold at "fenced" keeps its fence: the other nodes may be past it; a cluster
 * restore that could not give a node back keeps that ("not_released"). */
bool job_is_over(const json_t *status);
/* What goal.json says; ERR_CORRUPT when that is no goal: "all" for "abort" would be a disaster. */
int job_goal_parse(const json_t *json, char ret[JOB_GOAL_MAX], struct err *err);
/* True for "complete", "failed", "cancelled" and "taken_over". */
bool job_state_is_final(const char *state);

/* --- the verbs, each in its own file ------------------------------------------------------------
 */
int snapshot_run(struct job *job, struct err *err);     /* agent/snapshot.c */
int restore_run(struct job *job, struct err *err);      /* agent/restore.c */
int verification_run(struct job *job, struct err *err); /* agent/verification.c: repository only */
int expire_run(struct job *job, struct err *err);       /* agent/expire.c: repository only */
int export_run(struct job *job, struct err *err);       /* agent/export.c */
/* Of a coordinator, see cluster.h. */
int cluster_snapshot_run(struct job *job, struct err *err);
int cluster_restore_run(struct job *job, struct err *err);

#endif
