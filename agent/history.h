/* Timelines of nodes, compared as the agents tell them (GET /node): "timeline", "lsn" and
 * "history", which lists the timelines before it and where each was left, oldest first; null = not
 * known. The numbers alone say nothing: two servers that were promoted apart both call theirs 2.
 * Pure. */
#ifndef TIDEMARK_AGENT_HISTORY_H
#define TIDEMARK_AGENT_HISTORY_H

#include "agent/json.h"

/* True when neither can follow the other any more: each has, or may have, what the other lacks.
 * False also when one of them is not known. */
bool history_have_parted(const json_t *one, const json_t *other);

/* fork: {"timeline", "lsn", "parent"}. has: it was on that timeline from its beginning. misses: it
 * was not, and is past the point where that timeline begins or on another way. Both are false when
 * it is not known. */
bool history_has_fork(const json_t *node, const json_t *fork);
bool history_misses_fork(const json_t *node, const json_t *fork);

#endif
