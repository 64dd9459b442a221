/* Checks of the repository: is it there, may we write, what time is it there, what is in it. */
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "agent/catalog.h"
#include "agent/check.h"
#include "agent/job.h"
#include "agent/repository.h"
#include "agent/repository_access.h"
#include "agent/text.h"
#include "agent/wal_gaps.h"
#include "io/store_lock.h"

enum {
    RETRY_S = 5,          /* a person waits: a few tries tell enough */
    FREE_MIN = 256 << 20, /* bytes */
    CLOCK_WARN_MS = 5000,
    CLOCK_MAX_MS = 60000, /* S3 itself lets 15 min pass */
};

/* An object that every writer may leave behind, see FORMAT.md §2. */
static const char probe_object[] = "probe/create-once";
static const char probe_text[] = "Whether this server honours If-None-Match: * on PUT.\n";

/* "" for a bucket. What a full repository stops first is the archive. */
static int check_free(const struct conf *conf, char ret[48], struct err *err)
{
    const char *directory = repository_directory(conf);
    struct statvfs fs;
    char size[TEXT_SIZE_LEN];
    ret[0] = '\0';
    if (!directory || statvfs(directory, &fs) < 0)
        return 0;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    text_size(free_bytes, size);
    (void)snprintf(ret, 48, ", %s free", size);
    if (free_bytes >= FREE_MIN)
        return 0;
    (void)err_set(err, ERR_STORE, "the filesystem of '%s' has only %s free", directory, size);
    return err_hint(err, "free space there, or WAL cannot be archived soon");
}

int check_repository(struct check *check, struct err *err)
{
    char id[ID_TEXT_LEN], space[48];
    struct conf *hasty = malloc(sizeof(*hasty)); /* large */
    if (!hasty)
        return err_set(err, ERR_INTERNAL, "out of memory");
    *hasty = *check->conf;
    hasty->repository_retry_timeout_s =
        (unsigned)min_u64(RETRY_S, hasty->repository_retry_timeout_s);
    int rc = repository_open(hasty, NULL, &check->store, &check->repo, err);
    free(hasty);
    if (rc < 0)
        return rc;
    id_to_text(check->repo.id, id);
    rc = check_free(check->conf, space, err);
    (void)snprintf(check->detail, sizeof(check->detail), "%s, chunks of %u KiB%s", id,
                   check->repo.chunk_size / 1024, space);
    return rc;
}

/* Nobody can remove, or rename, what lies in a directory that he may not write to (store_file.h).
 * One that was made before that was so, or by hand, may be the group's to write to. */
static int check_rights(const struct conf *conf, struct err *err)
{
    static const char *const kinds[] = {"",     "snapshot", "volume",   "table",
                                        "pack", "key",      "withdrawn"};
    const char *directory = repository_directory(conf);
    char path[CONF_PATH_MAX + 16], text[CONF_PATH_MAX + 128];
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct stat st;
        (void)snprintf(path, sizeof(path), "%s%s%s", directory, kinds[i][0] ? "/" : "", kinds[i]);
        if (stat(path, &st) < 0 ||
            !((st.st_mode & S_IWOTH) || ((st.st_mode & S_IWGRP) && st.st_gid != 0) ||
              ((st.st_mode & S_IWUSR) && st.st_uid != 0)))
            continue;
        (void)snprintf(text, sizeof(text),
                       "who is not root can write to '%s' (mode %04o), so can remove snapshots",
                       path, (unsigned)st.st_mode & 07777);
        return check_warning(err, text,
                             "README, Set up, says how the server's user is left wal/ only");
    }
    return 0;
}

/* A bucket: an object that may be there already is put; the key may not remove it where nobody is
 * to remove anything. */
int check_writing(struct check *check, struct err *err)
{
    int64_t ignored_ms;
    struct err ignored;
    int rc = 0;
    if (!check->store)
        return CHECK_NONE;
    (void)snprintf(check->detail, sizeof(check->detail), "possible");
    if (repository_directory(check->conf)) {
        rc = store_clock(check->store, &ignored_ms, err); /* writes a file */
    } else {
        rc = store_put_absent(check->store, probe_object, probe_text, sizeof(probe_text) - 1, err);
        if (check->conf->repository_lock_days > 0) /* with the versions of it */
            (void)store_prepare_removes(check->store, &ignored);
        if (rc >= 0 && store_remove(check->store, probe_object, &ignored) < 0)
            (void)snprintf(check->detail, sizeof(check->detail),
                           "possible, but nothing can be removed: only expiry needs that");
    }
    if (rc >= 0)
        return repository_directory(check->conf) ? check_rights(check->conf, err) : 0;
    (void)err_prefix(err, "nothing can be written");
    return err->hint[0] ? rc
                        : err_hint(err, "the agent needs to make objects there, and nobody needs "
                                        "to replace one");
}

static int64_t wall_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* How far the store's clock is away from all that ours said while it was asked. A bucket tells
 * whole seconds. */
static int64_t clock_distance(int64_t before_ms, int64_t after_ms, int64_t store_ms)
{
    enum { COARSE_MS = 1000 };
    if (store_ms > after_ms)
        return store_ms - after_ms;
    return store_ms + COARSE_MS < before_ms ? store_ms + COARSE_MS - before_ms : 0;
}

int check_clock(struct check *check, struct err *err)
{
    int64_t store_ms = 0;
    char ours[TEXT_TIME_LEN], theirs[TEXT_TIME_LEN], text[160];
    if (!check->store)
        return CHECK_NONE;
    int64_t before_ms = wall_ms();
    int rc = store_clock(check->store, &store_ms, err);
    int64_t after_ms = wall_ms();
    if (rc < 0 || store_ms == 0)
        return CHECK_NONE; /* why it cannot be asked has its own row */
    int64_t away_ms = clock_distance(before_ms, after_ms, store_ms);
    text_time(after_ms / 1000, ours);
    text_time(store_ms / 1000, theirs);
    (void)snprintf(check->detail, sizeof(check->detail), "as the repository's");
    if (llabs(away_ms) < CLOCK_WARN_MS)
        return 0;
    (void)snprintf(text, sizeof(text),
                   "the clocks differ by %lld s: here it is %s, at the repository %s",
                   (long long)(llabs(away_ms) / 1000), ours, theirs);
    rc =
        check_warning(err, text, "set the wrong one (NTP): snapshots and their age are told by it");
    if (llabs(away_ms) < CLOCK_MAX_MS)
        return rc;
    err->code = ERR_CONFIG;
    return -ERR_CONFIG;
}

/* --- what is in it ---------------------------------------------------------------------------- */

struct newest {
    size_t count;
    int64_t captured_s;
    char tag[64], node[64];
};

static int note_snapshot(void *ctx, const struct record *record, struct err *err)
{
    struct newest *newest = ctx;
    (void)err;
    newest->count++;
    newest->captured_s = record->captured_s; /* the oldest comes first */
    (void)snprintf(newest->tag, sizeof(newest->tag), "%s", record->tag);
    (void)snprintf(newest->node, sizeof(newest->node), "%s", record->node);
    return 0;
}

int check_snapshots(struct check *check, struct err *err)
{
    struct newest newest = {0};
    size_t damaged = 0;
    char age[TEXT_AGE_LEN];
    if (!check->store)
        return CHECK_NONE;
    const char *cluster = check->conf->file[0] ? check->conf->cluster : "";
    int rc =
        catalog_list(check->store, &check->repo, cluster, note_snapshot, &newest, &damaged, err);
    if (rc < 0)
        return rc;
    if (damaged > 0) {
        (void)err_set(err, ERR_CORRUPT, "%zu damaged snapshot records in the repository", damaged);
        return err_hint(err, "take a new snapshot; `tidemark list` shows those that are good");
    }
    if (newest.count == 0)
        return check_warning(err, "there is no snapshot of this cluster yet",
                             "take one with `tidemark snapshot --tag=TAG`");
    text_age((int64_t)time(NULL) - newest.captured_s, age);
    (void)snprintf(check->detail, sizeof(check->detail), "%zu, the newest is '%s' of %s, %s old",
                   newest.count, newest.tag, newest.node, age);
    return 0;
}

int check_wal(struct check *check, struct err *err)
{
    struct wal_gaps gaps;
    if (!check->store)
        return CHECK_NONE;
    int rc = wal_gaps(check->store, &check->repo, check->conf->cluster, &gaps, err);
    if (rc < 0)
        return rc;
    if (gaps.timelines == 0)
        return CHECK_NONE;
    (void)snprintf(check->detail, sizeof(check->detail),
                   "no gap from snapshot '%s' on (timelines: %zu)", gaps.oldest, gaps.timelines);
    return 0;
}

/* The newest job of this type that ended well, with this repository; borrowed from jobs, NULL =
 * none. */
static const json_t *last_good(const json_t *jobs, const char *type, const char *repository)
{
    for (size_t i = json_array_size(jobs); i-- > 0;) {
        const json_t *job = json_array_get(jobs, i);
        if (json_is(job, "type", type) && json_is(job, "state", "complete") &&
            json_is(job, "repository", repository) &&
            !json_is_true(json_object_get(job, "dry_run")))
            return job;
    }
    return NULL;
}

static const char *job_tag(const json_t *job)
{
    const char *tag = json_str(json_object_get(job, "result"), "tag");
    return tag[0] ? tag : json_str(json_object_get(job, "plan"), "tag");
}

static int tell_last(struct check *check, const char *type, const char *done, const char *none,
                     const char *hint, struct err *err)
{
    free_json json_t *jobs = NULL;
    char age[TEXT_AGE_LEN], repository[ID_TEXT_LEN];
    if (!check->store)
        return CHECK_NONE;
    int rc = job_list(check->conf, &jobs, err);
    if (rc < 0)
        return rc;
    id_to_text(check->repo.id, repository);
    const json_t *job = last_good(jobs, type, repository);
    if (!job)
        return check_warning(err, none, hint);
    text_age((int64_t)time(NULL) - json_integer_value(json_object_get(job, "ended_s")), age);
    const char *tag = job_tag(job), *quote = tag[0] ? "'" : ""; /* none: of everything */
    const json_t *percent = json_object_get(json_object_get(job, "result"), "percent");
    char sample[48] = "";
    if (percent)
        (void)snprintf(sample, sizeof(sample), "a sample of %d %% of ",
                       (int)json_integer_value(percent));
    (void)snprintf(check->detail, sizeof(check->detail), "%s%s%s%s was %s %s ago", sample, quote,
                   tag[0] ? tag : "all of it", quote, done, age);
    return 0;
}

int check_verification(struct check *check, struct err *err)
{
    return tell_last(check, "verification", "read back and found good",
                     "no snapshot of this repository has been verified on this host",
                     "`tidemark verify latest` reads one back and checks every byte", err);
}

/* Until there are drills, only a restore is as good as one. */
int check_drill(struct check *check, struct err *err)
{
    return tell_last(check, "restore", "restored here",
                     "no drill yet: no restore from this repository was tried here",
                     "only a restore that was tried is one that works", err);
}
