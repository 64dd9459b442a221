/* See background.h. */
#include "agent/background.h"

#include <errno.h>
#include <signal.h>

#include "io/clock.h"

static void destroy_sync(struct background *background)
{
    (void)pthread_cond_destroy(&background->wake);
    (void)pthread_mutex_destroy(&background->mutex);
}

int background_start(struct background *background, void *(*run)(void *ctx), void *ctx,
                     struct err *err)
{
    sigset_t all, old;
    background->stop = false;
    (void)pthread_mutex_init(&background->mutex, NULL);
    (void)pthread_cond_init(&background->wake, NULL);
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &old);
    int rc = pthread_create(&background->thread, NULL, run, ctx);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    background->running = rc == 0;
    if (rc == 0)
        return 0;
    destroy_sync(background);
    errno = rc;
    return err_sys(err, ERR_INTERNAL, "start a thread");
}

bool background_wait(struct background *background, uint64_t ms)
{
    const struct timespec until = monotonic_until(ms);
    int rc = 0;
    (void)pthread_mutex_lock(&background->mutex);
    while (!background->stop && rc != ETIMEDOUT)
        rc = pthread_cond_clockwait(&background->wake, &background->mutex, CLOCK_MONOTONIC, &until);
    bool stop = background->stop;
    (void)pthread_mutex_unlock(&background->mutex);
    return stop;
}

void background_stop(struct background *background)
{
    if (!background->running)
        return;
    (void)pthread_mutex_lock(&background->mutex);
    background->stop = true;
    (void)pthread_cond_signal(&background->wake);
    (void)pthread_mutex_unlock(&background->mutex);
    (void)pthread_join(background->thread, NULL);
    background->running = false;
    destroy_sync(background);
}
