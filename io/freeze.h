/* Freezing filesystems with a guardian. The guardian is a tiny program exec'd before anything
 * large is mapped; it holds the mount fds, says "ready" after mlockall, and thaws everything when
 * the deadline passes or when we die (SIGKILL, SIGSTOP past the deadline). No FIFREEZE before
 * "ready". FIFREEZE flushes and waits for writes in flight; a second FIFREEZE is EBUSY.
 *
 *     freeze_arm(&freeze, fds, count, deadline_ms, rcu_expedited, err)
 *     freeze_all(&freeze, err)          … capture, no PostgreSQL call, no write to these volumes
 *     freeze_thaw(&freeze, &expired, err)
 *     freeze_disarm(&freeze)
 *
 * Most of a freeze is not spent on writing: FIFREEZE takes three per-CPU semaphores one after the
 * other, each of which waits for a grace period of RCU, 10–30 ms, while writers stand still
 * (fs/super.c, kernel/locking/percpu-rwsem.c). With /sys/kernel/rcu_expedited at 1 a grace period
 * takes tens of microseconds, at the price of an interrupt to each CPU (Documentation/RCU). The
 * switch is the whole host's, so it is on from before the first FIFREEZE until after the last, not
 * while we are frozen, and not at all where it is on already. When we die meanwhile, the guardian
 * switches it off.
 *
 * One thread. */
#ifndef TIDEMARK_IO_FREEZE_H
#define TIDEMARK_IO_FREEZE_H

#include "io/err.h"

enum { FREEZE_VOLUMES_MAX = 16 };

#define FREEZE_RCU_EXPEDITED "/sys/kernel/rcu_expedited"

struct freeze {
    int fds[FREEZE_VOLUMES_MAX]; /* directories on the filesystems, borrowed */
    size_t count;
    size_t frozen;  /* fds[0..frozen) are frozen */
    size_t failed;  /* which one, after freeze_all() failed */
    int control_fd; /* socket to the guardian; its EOF means we died */
    int rcu_fd;     /* -1: there is no switch */
    bool expedited; /* by us */
    int guardian_pid;
    uint64_t frozen_at_ns; /* CLOCK_MONOTONIC */
    uint64_t stall_ns;     /* first freeze to last thaw, after freeze_thaw() */
};

/* deadline_ms counts from the first FIFREEZE. Starts the guardian (program "tidemark-guardian",
 * looked up beside our own executable, then in
 * ../lib/tidemark, or $TIDEMARK_GUARDIAN in tests) and waits for "ready". rcu_expedited:
 * FREEZE_RCU_EXPEDITED, or NULL to leave the host's grace periods alone; what cannot be opened for
 * writing is left alone, too. */
int freeze_arm(struct freeze *freeze, const int *fds, size_t count, unsigned deadline_ms,
               const char *rcu_expedited, struct err *err);

/* Freezes in order. On failure everything frozen so far is thawed again. ERR_BUSY when one is
 * frozen already (that freeze is left alone), or when the deadline passed meanwhile. */
int freeze_all(struct freeze *freeze, struct err *err);

/* Thaws in reverse order. *ret_expired: the guardian thawed first, so the capture is void.
 * Everything is thawed when it returns, also with an error: ERR_DEVICE when the guardian was gone.
 * After success freeze_all() may follow again. */
int freeze_thaw(struct freeze *freeze, bool *ret_expired, struct err *err);

/* Dismisses the guardian and reaps it. Accepts a half-armed object; thaws if still frozen. */
void freeze_disarm(struct freeze *freeze);

#endif
