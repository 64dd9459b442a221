/* "did you mean …": the nearest of a list of known names by edit distance. Pure, any thread. */
#ifndef TIDEMARK_AGENT_NEAREST_H
#define TIDEMARK_AGENT_NEAREST_H

/* known is NULL-ended. Returns the nearest entry (borrowed), or NULL when none is near enough to
 * be a likely slip of the fingers (more than a third of the letters differ, and more than 2). */
const char *nearest_name(const char *word, const char *const *known);

#endif
