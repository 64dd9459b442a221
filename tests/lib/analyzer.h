/* Seen only by clang-tidy, before every file but io/err.c. The analyzer looks at one file at a time
 * and must not consider that an error function returns 0: results are written on success only. */
#include "io/err.h"

#define err_set(...)    ((err_set)(__VA_ARGS__), -1)
#define err_sys(...)    ((err_sys)(__VA_ARGS__), -1)
#define err_prefix(...) ((err_prefix)(__VA_ARGS__), -1)
#define err_hint(...)   ((err_hint)(__VA_ARGS__), -1)
