/* Telling people, or their programs, of the end of a job: [notify] command and webhook. Nothing
 * here changes the job or lasts longer than its bound: the command has `timeout`, the webhook
 * (retries + 1) × timeout and the pauses between. It is told at most once: of a process that is
 * killed while it tells, nobody hears. Blocking; one thread. */
#ifndef TIDEMARK_AGENT_NOTIFY_H
#define TIDEMARK_AGENT_NOTIFY_H

#include "agent/conf.h"
#include "agent/json.h"

/* True for a job that has ended, in a way that `on` names, and for one that was found interrupted
 * and waits. A dry run has done nothing to tell of. Pure. */
bool notify_wanted(const struct conf *conf, const json_t *journal);

/* What is told, a new reference: names, times, the error and the last good verification among jobs
 * (job_list()), nothing of the configuration but cluster and node. Pure. */
json_t *notify_body(const struct conf *conf, const json_t *request, const json_t *journal,
                    const json_t *jobs);

/* Tells when it is wanted. The job's locks are not held. What came of it is logged and written into
 * notified.json of the job's directory, for job_status(). */
void notify_send(const struct conf *conf, const char *dir, const json_t *request,
                 const json_t *journal);

/* The process behind job_start_notify(): the exit status. */
int notify_main(const char *dir, int ready_fd);

#endif
