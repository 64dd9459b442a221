/* TAP for C: ok(), is_*(), skip(), done(). One program a module, run by prove. Asserts of the code
 * under test stay on. */
#ifndef TIDEMARK_TESTS_TAP_H
#define TIDEMARK_TESTS_TAP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/err.h"

__attribute__((unused)) static int tap_count, tap_failed;

__attribute__((unused, format(printf, 4, 5))) static bool tap_report(bool good, const char *file,
                                                                     int line, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("%sok %d - %s\n", good ? "" : "not ", ++tap_count, text);
    if (!good) {
        tap_failed++;
        printf("# failed at %s:%d\n", file, line);
    }
    fflush(stdout);
    return good;
}

#define ok(cond, ...) tap_report((cond), __FILE__, __LINE__, __VA_ARGS__)

#define is_u64(got, want, ...)                                                                     \
    do {                                                                                           \
        uint64_t tap_got = (uint64_t)(got), tap_want = (uint64_t)(want);                           \
        if (!ok(tap_got == tap_want, __VA_ARGS__))                                                 \
            printf("# got %llu, want %llu\n", (unsigned long long)tap_got,                         \
                   (unsigned long long)tap_want);                                                  \
    } while (0)

#define is_str(got, want, ...)                                                                     \
    do {                                                                                           \
        const char *tap_got = (got), *tap_want = (want);                                           \
        if (!ok(strcmp(tap_got, tap_want) == 0, __VA_ARGS__))                                      \
            printf("# got '%s'\n# want '%s'\n", tap_got, tap_want);                                \
    } while (0)

/* rc is 0; prints the error otherwise. */
#define is_good(rc, err, ...)                                                                      \
    do {                                                                                           \
        int tap_rc = (rc);                                                                         \
        if (!ok(tap_rc == 0, __VA_ARGS__))                                                         \
            printf("# rc %d: %s (hint: %s)\n", tap_rc, (err)->text, (err)->hint);                  \
    } while (0)

/* rc is -code and the text contains part. */
#define is_err(rc, err, want_code, part, ...)                                                      \
    do {                                                                                           \
        int tap_rc = (rc);                                                                         \
        if (!ok(tap_rc == -(int)(want_code) && strstr((err)->text, (part)), __VA_ARGS__))          \
            printf("# rc %d: '%s', want %d with '%s'\n", tap_rc, (err)->text, -(int)(want_code),   \
                   (part));                                                                        \
    } while (0)

#define skip(reason) printf("ok %d # SKIP %s\n", ++tap_count, (reason))

__attribute__((unused)) static int done(void)
{
    printf("1..%d\n", tap_count);
    return tap_failed != 0;
}

#endif
