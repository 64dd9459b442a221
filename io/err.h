/* Errors: a small set of actionable codes, one text and one hint, filled once where the cause is
 * known. Functions that can fail return 0 or a negative enum err_code and take a struct err *,
 * which may not be NULL. A struct err belongs to its caller and to one thread.
 *
 *     if (fd < 0)
 *         return err_sys(err, ERR_DEVICE, "open '%s'", path);
 */
#ifndef TIDEMARK_IO_ERR_H
#define TIDEMARK_IO_ERR_H

#include "io/base.h"

enum err_code {
    ERR_OK = 0,
    ERR_USAGE,     /* the command line or a request is wrong */
    ERR_CONFIG,    /* the configuration file is wrong */
    ERR_DEVICE,    /* a block device, file system or local file failed */
    ERR_STORE,     /* the repository failed: server, network, full, permission on a directory */
    ERR_AUTH,      /* credentials or keys are wrong */
    ERR_CORRUPT,   /* bytes are not what their checksum says */
    ERR_MISSING,   /* an object, tag or WAL segment does not exist */
    ERR_POSTGRES,  /* PostgreSQL refused or failed */
    ERR_BUSY,      /* somebody else holds it, try again later */
    ERR_CANCELLED, /* a person or signal stopped it */
    ERR_REFUSED,   /* a safety check said no */
    ERR_PARTIAL,   /* a restore is not finished */
    ERR_INTERNAL,  /* a bug or an exhausted resource of ours */
    ERR_CODE_COUNT
};

struct err {
    enum err_code code;
    int sys_errno;   /* errno of the cause, 0 when there was none */
    bool maybe_done; /* a write failed without an answer: it may have been done, or still be */
    char text[768];
    char hint[384];
};

/* Sets code and text, clears errno and hint. Returns -code, never 0. */
int err_set(struct err *err, enum err_code code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Like err_set() and appends ": <strerror(errno)>"; errno is read on entry. */
int err_sys(struct err *err, enum err_code code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "<context>: " before the text. Returns -err->code. */
int err_prefix(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Sets the hint line. Returns -err->code. */
int err_hint(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Exit status of a program that ends with this code: DESIGN §8, README "Exit statuses". */
int err_exit_status(enum err_code code);

/* Stable lower-case name ("device", "store", …), used in JSON and logs. */
const char *err_code_name(enum err_code code);

/* Inverse of err_code_name(); ERR_INTERNAL for an unknown name. */
enum err_code err_code_from_name(const char *name);

/* Clears all fields. */
void err_clear(struct err *err);

#endif
