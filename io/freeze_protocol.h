/* What freeze.c and the guardian say to each other over a SOCK_SEQPACKET pair: two bytes each way,
 * {verb, index of the volume}. Every request is answered with one verb. */
#ifndef TIDEMARK_IO_FREEZE_PROTOCOL_H
#define TIDEMARK_IO_FREEZE_PROTOCOL_H

enum {
    GUARD_CONTROL_FD = 3, /* in the guardian */
    GUARD_RCU_FD = 4,     /* rcu_expedited of freeze.h, or /dev/null */
    GUARD_VOLUMES_FD = 5, /* and those that follow: the volumes' directories */
    GUARD_VOLUMES_MAX = 16,
};

enum guard_verb {
    GUARD_READY = 'R',    /* guardian, once: armed, memory locked */
    GUARD_FREEZE = 'F',   /* next I freeze volume index; the clock starts at the first of these */
    GUARD_EXPEDITE = 'E', /* next I write 1 to rcu_expedited: 0 is yours to write when I die */
    GUARD_FORGET = 'U',   /* volume index was not frozen by me after all: never thaw it */
    GUARD_THAWED =
        'T',        /* I have thawed everything, and the 1 is gone: stop the clock, forget all */
    GUARD_OK = 'O', /* answer: nothing was thawed by the guardian since the last T */
    GUARD_EXPIRED = 'X', /* answer: the guardian has thawed */
};

#endif
