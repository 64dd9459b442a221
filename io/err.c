/* Error values: see err.h. Kept free of I/O so that every layer can use it. */
#include "io/err.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name;
    int exit_status;
} err_table[ERR_CODE_COUNT] = {
    [ERR_OK] = {"ok", 0},
    [ERR_USAGE] = {"usage", 2},
    [ERR_CONFIG] = {"config", 10},
    [ERR_DEVICE] = {"device", 11},
    [ERR_STORE] = {"store", 12},
    [ERR_AUTH] = {"auth", 13},
    [ERR_CORRUPT] = {"corrupt", 14},
    [ERR_MISSING] = {"missing", 15},
    [ERR_POSTGRES] = {"postgres", 16},
    [ERR_BUSY] = {"busy", 17},
    [ERR_CANCELLED] = {"cancelled", 18},
    [ERR_REFUSED] = {"refused", 19},
    [ERR_PARTIAL] = {"partial", 20},
    [ERR_INTERNAL] = {"internal", 70},
};

static void err_vset(struct err *err, enum err_code code, int sys_errno, const char *fmt,
                     va_list ap)
{
    assert(code > ERR_OK && code < ERR_CODE_COUNT);
    err->code = code;
    err->sys_errno = sys_errno;
    err->maybe_done = false;
    err->hint[0] = '\0';
    (void)vsnprintf(err->text, sizeof(err->text), fmt, ap);
}

int err_set(struct err *err, enum err_code code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(err, code, 0, fmt, ap);
    va_end(ap);
    return -(int)code;
}

int err_sys(struct err *err, enum err_code code, const char *fmt, ...)
{
    int saved = errno;
    va_list ap;
    va_start(ap, fmt);
    err_vset(err, code, saved, fmt, ap);
    va_end(ap);
    size_t len = strlen(err->text);
    char reason[128];
    (void)snprintf(err->text + len, sizeof(err->text) - len, ": %s",
                   strerror_r(saved, reason, sizeof(reason)));
    errno = saved;
    return -(int)code;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    char old[sizeof(err->text)];
    memcpy(old, err->text, sizeof(old));
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    if (len >= 0 && (size_t)len < sizeof(err->text))
        (void)snprintf(err->text + len, sizeof(err->text) - (size_t)len, ": %s", old);
    return -(int)err->code;
}

int err_hint(struct err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
    va_end(ap);
    return -(int)err->code;
}

int err_exit_status(enum err_code code)
{
    assert(code >= ERR_OK && code < ERR_CODE_COUNT);
    return err_table[code].exit_status;
}

const char *err_code_name(enum err_code code)
{
    assert(code >= ERR_OK && code < ERR_CODE_COUNT);
    return err_table[code].name;
}

enum err_code err_code_from_name(const char *name)
{
    for (size_t i = 0; i < ERR_CODE_COUNT; i++)
        if (strcmp(err_table[i].name, name) == 0)
            return (enum err_code)i;
    return ERR_INTERNAL;
}

void err_clear(struct err *err)
{
    memset(err, 0, sizeof(*err));
}
