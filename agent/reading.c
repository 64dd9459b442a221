/* See reading.h. */
#include "agent/reading.h"

#include <stdio.h>

#include "agent/catalog.h"
#include "agent/log.h"
#include "agent/mark.h"
#include "agent/repository.h"
#include "agent/restore.h"

enum { RENEW_S = READING_LIFE_S / 7, RETRY_S = 600, SUFFIX_LEN = 8 };

static const char prefix[] = "reading/";

bool reading_parse(const char *name, uint8_t ret_snapshot[ID_LEN])
{
    enum { DIGITS = ID_TEXT_LEN - 1 };
    char text[ID_TEXT_LEN] = "";
    const char *at = name + strlen(prefix);
    if (strlen(at) != 2 * DIGITS + 2 + SUFFIX_LEN || at[DIGITS] != '-')
        return false;
    memcpy(text, at, DIGITS);
    return id_from_text(text, ret_snapshot);
}

/* --- the mark --------------------------------------------------------------------------------- */

/* Under a new name: no object is ever replaced, and the store's clock tells its age. */
static int put(const struct reading_mark *reading, struct store *store, struct err *err)
{
    char name[STORE_NAME_MAX + 1], snapshot[ID_TEXT_LEN];
    uint8_t random[ID_LEN];
    int rc = id_random(random, err);
    if (rc < 0)
        return rc;
    id_to_text(reading->snapshot, snapshot);
    (void)snprintf(name, sizeof(name), "%s%s-%s-%08x", prefix, snapshot, reading->job,
                   get_le32(random));
    return mark_put_as(store, &reading->repo, name, reading->snapshot, NULL, reading->node, err);
}

/* The older ones stay until the end: who lists the names just now may miss the new one. */
static void renew(struct reading_mark *reading)
{
    struct err err;
    int rc = put(reading, reading->store, &err);
    if (rc < 0 && reading->is_put)
        log_warn("the mark that a snapshot is being read was not renewed err=\"%s\"", err.text);
    else if (rc == 0 && !reading->is_put)
        log_info("the mark that a snapshot is being read is there now");
    reading->is_put = rc == 0;
}

/* --- the thread ------------------------------------------------------------------------------- */

static unsigned interval_s(const struct reading_mark *reading)
{
    const char *test = getenv("TIDEMARK_TEST_RENEW_S"); /* tests do not wait for a day */
    return test ? (unsigned)strtoul(test, NULL, 10) : reading->is_put ? RENEW_S : RETRY_S;
}

static void *thread_main(void *ctx)
{
    struct reading_mark *reading = ctx;
    while (!background_wait(&reading->thread, interval_s(reading) * UINT64_C(1000)))
        renew(reading);
    return NULL;
}

/* Without a thread the mark lives for READING_LIFE_S. */
static void start(struct reading_mark *reading, struct store *store)
{
    struct err err;
    int rc = store_clone(store, &reading->store, &err);
    if (rc == 0)
        rc = background_start(&reading->thread, thread_main, reading, &err);
    if (rc < 0)
        log_warn("the mark that a snapshot is being read will not be renewed err=\"%s\"", err.text);
}

/* --- begin and end ---------------------------------------------------------------------------- */

/* The mark that withdraws it goes last, the record first. */
static int check_there(struct store *store, const struct record *record, struct err *err)
{
    char name[STORE_NAME_MAX + 1];
    uint64_t size;
    int rc = catalog_check_withdrawn(store, record->id, err);
    if (rc < 0)
        return rc;
    repo_record_name(name, record->cluster, record->node, record->id);
    rc = store_size(store, name, &size, err);
    return rc == -ERR_MISSING
               ? err_set(err, ERR_MISSING, "snapshot '%s' was withdrawn and removed", record->tag)
               : rc;
}

/* Of the job, among the marks that begin so. */
static void remove_marks(struct store *store, const char *beginning, const char *job)
{
    enum { JOB_AT = sizeof(prefix) - 1 + ID_TEXT_LEN }; /* behind the snapshot and its '-' */
    struct mark_names found = {.items = NULL};
    uint8_t ignored[ID_LEN];
    struct err err;
    int rc = mark_names(store, beginning, &found, &err);
    for (size_t i = 0; rc == 0 && i < found.count; i++)
        if (reading_parse(found.items[i], ignored) &&
            strncmp(found.items[i] + JOB_AT, job, ID_TEXT_LEN - 1) == 0)
            rc = store_remove(store, found.items[i], &err);
    if (rc < 0)
        log_info("the mark that a snapshot is being read stays for %d days err=\"%s\"",
                 READING_LIFE_S / 86400, err.text);
    free(found.items);
}

int reading_begin(struct reading_mark *reading, struct store *store, const struct repo *repo,
                  const struct job *job, const struct record *record, bool begun, struct err *err)
{
    if (reading->job[0])
        return 0;
    reading->repo = *repo;
    memcpy(reading->snapshot, record->id, ID_LEN);
    memcpy(reading->job, job->id, sizeof(reading->job));
    (void)snprintf(reading->node, sizeof(reading->node), "%s", job->conf.node);
    restore_test_stop("reading-begin");
    int rc = put(reading, store, err);
    reading->is_put = rc == 0;
    if (rc == -ERR_CANCELLED)
        return rc;
    if (rc < 0) {
        log_warn("`tidemark expire` cannot know that this job reads the snapshot: it has "
                 "[retention] grace for it, unless a later try puts the mark err=\"%s\"",
                 err->text);
        err_clear(err);
    }
    rc = begun ? 0 : check_there(store, record, err);
    if (rc < 0) {
        reading_end(reading, store, job, record->id);
        return rc;
    }
    start(reading, store);
    restore_test_stop("reading-begun");
    return 0;
}

void reading_pause(struct reading_mark *reading)
{
    background_stop(&reading->thread);
    if (reading->store)
        store_close(reading->store);
    memset(reading, 0, sizeof(*reading));
}

void reading_end(struct reading_mark *reading, struct store *store, const struct job *job,
                 const uint8_t snapshot[ID_LEN])
{
    char beginning[STORE_NAME_MAX + 1], id[ID_TEXT_LEN];
    reading_pause(reading);
    id_to_text(snapshot, id);
    (void)snprintf(beginning, sizeof(beginning), "%s%s-", prefix, id);
    remove_marks(store, beginning, job->id);
}

/* --- of a job that has ended without a run of its own ----------------------------------------- */

/* One that is left paused or shut down at its target may be started again: from the WAL that the
 * mark keeps. */
static bool may_start_again(const json_t *request, const json_t *journal)
{
    const char *action = json_str(request, "action");
    return json_is(journal, "step", "verifying") && action[0] && strcmp(action, "promote") != 0;
}

int reading_forget_main(const char *dir, int ready_fd)
{
    static struct conf conf; /* large; one a process */
    struct store *store = NULL;
    struct err err;
    free_json json_t *request = NULL, *journal = NULL;
    int status = job_open_ended(dir, ready_fd, &conf, &request, &journal);
    if (status > 0 || may_start_again(request, journal))
        return status;
    if (repository_open_store(&conf, false, NULL, &store, &err) < 0) {
        log_err(&err);
        return err_exit_status(err.code);
    }
    remove_marks(store, prefix, json_str(journal, "id"));
    store_close(store);
    return 0;
}
