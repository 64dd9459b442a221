/* background: a thread that does something now and then beside a job's own thread, until that stops
 * it. It takes no signals: they are to interrupt the verb's own thread.
 *
 *     background_start(&background, run, ctx, &err)
 *     … in run(): do something; while (!background_wait(&background, ms));
 *     background_stop(&background)
 *
 * start and stop: one thread. */
#ifndef TIDEMARK_AGENT_BACKGROUND_H
#define TIDEMARK_AGENT_BACKGROUND_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/err.h"

/* Zeroed before the first use. */
struct background {
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* nobody who stops it waits for a tick */
    pthread_t thread;
    bool running;
    bool stop; /* under the mutex */
};

/* Not while it runs. ERR_INTERNAL: there is no thread. */
int background_start(struct background *background, void *(*run)(void *ctx), void *ctx,
                     struct err *err);
/* Of run(): true when it is to end, false after so many milliseconds. */
bool background_wait(struct background *background, uint64_t ms);
/* Waits for the end of run(). Does nothing when it does not run. */
void background_stop(struct background *background);

#endif
