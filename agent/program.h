/* Finding the other programs of the same installation. Thread-safe. */
#ifndef TIDEMARK_AGENT_PROGRAM_H
#define TIDEMARK_AGENT_PROGRAM_H

#include <limits.h>

#include "io/err.h"

/* Path of program `name`: $TIDEMARK_PROGRAMS (tests), beside our own executable, then in ../bin,
 * ../sbin and ../lib/tidemark of it. ERR_INTERNAL when it is nowhere. */
int program_find(const char *name, char ret[PATH_MAX], struct err *err);

#endif
