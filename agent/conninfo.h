/* libpq connection strings, read without libpq: without what must not be shown, or one value of
 * them. Pure, any thread. */
#ifndef TIDEMARK_AGENT_CONNINFO_H
#define TIDEMARK_AGENT_CONNINFO_H

#include "io/base.h"

/* Copies text without the values that libpq hides (fe-connect.c, dispchar "*": password,
 * sslpassword; OAuth's and SCRAM's since PostgreSQL 18), both forms: keyword = value, and URI.
 * False when it is neither, or does not fit: ret is "" then, because nobody knows what is a
 * password in it. */
bool conninfo_public(const char *text, char *ret, size_t size);
/* The same for people: "***" stands where a value was. */
bool conninfo_masked(const char *text, char *ret, size_t size);

/* The value that text gives for key, unquoted and decoded; of several the last, as libpq takes
 * them. What a service file, the environment or the parts of a URI before its '?' say is not
 * looked at. False, and "", when it gives none, cannot be read, or the value does not fit. */
bool conninfo_value(const char *text, const char *key, char *ret, size_t size);

#endif
