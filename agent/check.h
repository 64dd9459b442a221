/* Is this node, or the cluster of a coordinator, ready for a snapshot, and will a restore find what
 * it needs? One table of checks (check.c), in the order in which they are made and told; nothing is
 * skipped because another one failed, but what a restore that is unfinished has taken apart.
 *
 * The agent makes them (POST /checks), because its own rights count and not those of a shell; in a
 * process of their own, which may hang or die. Without an agent the command line makes them.
 *
 * A row: {"check", "result": "ok"|"warning"|"failed"|"skipped", "ok": result is not "failed",
 * "detail", and where there is one "hint" and "code"}. One thread a struct check. */
#ifndef TIDEMARK_AGENT_CHECK_H
#define TIDEMARK_AGENT_CHECK_H

#include "agent/conf.h"
#include "agent/json.h"
#include "agent/pg.h"
#include "agent/volume.h"
#include "io/repo.h"

/* How long the server may take to archive a segment; and all checks together. */
enum { CHECK_ARCHIVE_S = 60, CHECK_ALL_S = 110, CHECK_DETAIL_MAX = 512 };

/* Makes all checks that are for this configuration; each() gets the rows, which are borrowed. */
void check_run(const struct conf *conf, void (*each)(void *ctx, const json_t *row), void *ctx);

/* The same in a process of its own: *ret is an array of the rows, a new reference. */
int check_run_apart(const struct conf *conf, json_t **ret, struct err *err);
/* Its main: the configuration, which was read from `file`, comes on stdin, rows go to stdout. */
int check_main(const char *file);

/* A row. err: why, for "warning" and "failed"; detail for the others. New reference. */
json_t *check_row(const char *name, const char *result, const char *detail, const struct err *err);

/* --- private to agent/check*.c ---------------------------------------------------------------- */
struct check {
    const struct conf *conf;
    void (*each)(void *ctx, const json_t *row);
    void *ctx;
    char detail[CHECK_DETAIL_MAX]; /* of the row at work */
    /* What a check found, for those behind it. */
    char unfinished[256];       /* by what the server and its volumes are taken apart; "" = no */
    struct store *store;        /* NULL: no repository */
    struct repo repo;           /* with store */
    struct volume_group *group; /* NULL: not all of them were found */
    struct pg_session *session; /* NULL: no server */
};

/* What a check returns besides 0 (good, detail is filled) and -code (err is filled). */
enum {
    CHECK_WARNING = 1, /* err is filled */
    CHECK_NONE = 2,    /* no row: it is not for this configuration, or it told its own */
    CHECK_SKIPPED = 3, /* detail says why */
};
/* err_set() of a warning. */
int check_warning(struct err *err, const char *text, const char *hint);
/* One more row. rc as above. */
void check_tell(struct check *check, const char *name, int rc, const struct err *err);

/* check_host.c */
int check_health(struct check *check, struct err *err);
int check_state_dir(struct check *check, struct err *err);
int check_certificate(struct check *check, struct err *err);
int check_volumes(struct check *check, struct err *err);
int check_capture(struct check *check, struct err *err);
int check_track(struct check *check, struct err *err);
int check_space(struct check *check, struct err *err);

/* check_repository.c */
int check_repository(struct check *check, struct err *err);
int check_writing(struct check *check, struct err *err);
int check_object_lock(struct check *check, struct err *err);
int check_clock(struct check *check, struct err *err);
int check_snapshots(struct check *check, struct err *err);
int check_wal(struct check *check, struct err *err);
int check_verification(struct check *check, struct err *err);
int check_drill(struct check *check, struct err *err);

/* check_server.c */
int check_server(struct check *check, struct err *err);
int check_layout(struct check *check, struct err *err);
int check_backlog(struct check *check, struct err *err);
int check_archiving(struct check *check, struct err *err);
/* Of a standby: what a snapshot of it needs of its primary. Not every standby has to give one. Of a
 * primary: whether primary_connection finds another one. */
int check_standby(struct check *check, struct err *err);

/* check_cluster.c */
/* Of a coordinator: its members, who is the primary, [coordinator] primary_conninfo, and sections
 * that are not for it. */
int check_members(struct check *check, struct err *err);
int check_conninfo(struct check *check, struct err *err);
int check_sections(struct check *check, struct err *err);
/* A node in the care of Patroni: [patroni] and manager. */
int check_patroni(struct check *check, struct err *err);

#endif
