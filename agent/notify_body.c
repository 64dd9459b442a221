/* What is told of a job's end, see notify.h. */
#include "agent/notify.h"

#include <time.h>

#include "agent/job.h"

enum { INDEXES_MAX = 50 };

static const char *text_of(const json_t *from, const char *key)
{
    return json_string_value(json_object_get(from, key));
}

static bool is(const json_t *from, const char *key, const char *value)
{
    const char *text = text_of(from, key);
    return text && strcmp(text, value) == 0;
}

/* Its journal still says running. */
static bool is_interrupted(const json_t *journal)
{
    return is(journal, "state", "running") && json_object_get(journal, "interrupted_s");
}

bool notify_wanted(const struct conf *conf, const json_t *journal)
{
    const char *state = text_of(journal, "state");
    if (!conf->notify_command[0] && !conf->notify_webhook[0])
        return false;
    if (is_interrupted(journal))
        return true;
    if (!state || !job_state_is_final(state) || json_is_true(json_object_get(journal, "dry_run")))
        return false;
    if (strcmp(state, "taken_over") == 0) /* its end is for the other coordinator to tell */
        return false;
    return conf->notify_on == NOTIFY_ALWAYS || strcmp(state, "complete") != 0;
}

/* The verb's result knows it best, then its plan; before these there is only what was asked for. */
static const char *known(const json_t *journal, const char *key)
{
    const char *text = text_of(json_object_get(journal, "result"), key);
    if (!text)
        text = text_of(json_object_get(journal, "plan"), key);
    return text ? text : text_of(journal, key);
}

static bool is_id(const char *text)
{
    uint8_t id[ID_LEN];
    return text && id_from_text(text, id);
}

/* A restore and a verification name it by id, tag or "latest". */
static void add_snapshot(json_t *body, const json_t *request, const json_t *journal)
{
    const char *asked = text_of(request, "snapshot");
    const char *snapshot = known(journal, "snapshot"), *tag = known(journal, "tag");
    if (!snapshot && is_id(asked))
        snapshot = asked;
    if (!tag)
        tag = text_of(request, "tag");
    if (!tag && asked && !is_id(asked) && strcmp(asked, "latest") != 0)
        tag = asked;
    (void)json_object_set_new(body, "tag", tag ? json_string(tag) : json_null());
    (void)json_object_set_new(body, "snapshot", snapshot ? json_string(snapshot) : json_null());
}

/* RFC 3339; null for what never was. */
static json_t *time_json(const json_t *seconds)
{
    struct tm utc;
    char text[32];
    time_t at = (time_t)json_integer_value(seconds);
    if (!seconds || !gmtime_r(&at, &utc) ||
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        return json_null();
    return json_string(text);
}

static void add_times(json_t *body, const json_t *journal)
{
    const json_t *started = json_object_get(journal, "started_s");
    const json_t *ended = json_object_get(journal, "ended_s");
    (void)json_object_set_new(body, "started", time_json(started));
    (void)json_object_set_new(body, "ended", time_json(ended));
    json_int_t duration_s = json_integer_value(ended) - json_integer_value(started);
    (void)json_object_set_new(body, "duration_s",
                              started && ended ? json_integer(duration_s) : json_null());
}

/* A verification of the repository's objects, or a restore whose server was verified. */
static bool is_good_verification(const json_t *job)
{
    const json_t *verified = json_object_get(job, "verification");
    if (!is(job, "state", "complete"))
        return false;
    return is(job, "type", "verification") ||
           (json_is_true(json_object_get(verified, "ok")) && !is(verified, "level", "none"));
}

static json_t *last_good(const json_t *jobs, const json_t *journal)
{
    const json_t *best = NULL;
    json_int_t best_s = 0, now_s = json_integer_value(job_told_time(journal));
    for (size_t i = 0; i < json_array_size(jobs); i++) {
        const json_t *job = json_array_get(jobs, i);
        json_int_t ended_s = json_integer_value(json_object_get(job, "ended_s"));
        if (!is_good_verification(job) || ended_s < best_s)
            continue;
        best = job;
        best_s = ended_s;
    }
    if (!best)
        return json_null();
    return json_pack("{s:s?, s:s?, s:s?, s:s?, s:o, s:I}", "job", text_of(best, "id"), "event",
                     text_of(best, "type"), "snapshot", known(best, "snapshot"), "tag",
                     known(best, "tag"), "ended", time_json(json_object_get(best, "ended_s")),
                     "age_s", now_s > best_s ? now_s - best_s : 0);
}

/* What the restored server was found to be: indexes that were damaged, and whether they are
 * rebuilt.
 */
static json_t *verification_json(const json_t *journal)
{
    const json_t *from = json_object_get(journal, "verification");
    if (!from)
        return json_null();
    json_t *indexes = json_object_get(from, "indexes"), *first = json_array(), *index;
    size_t i;
    json_array_foreach(indexes, i, index)
    {
        if (i < INDEXES_MAX)
            (void)json_array_append(first, index);
    }
    return json_pack("{s:s?, s:O?, s:I, s:o}", "level", text_of(from, "level"), "ok",
                     json_object_get(from, "ok"), "index_count",
                     (json_int_t)json_array_size(indexes), "indexes", first);
}

json_t *notify_body(const struct conf *conf, const json_t *request, const json_t *journal,
                    const json_t *jobs)
{
    json_t *body =
        json_pack("{s:s?, s:s?, s:s, s:s, s:s?}", "event", text_of(journal, "type"), "state",
                  is_interrupted(journal) ? "interrupted" : text_of(journal, "state"), "cluster",
                  conf->cluster, "node", conf->node, "job", text_of(journal, "id"));
    const char *step = text_of(journal, "step");
    const char *part_of = text_of(json_object_get(journal, "cluster"), "job");
    if (!part_of)
        part_of = text_of(request, "cluster_job"); /* of a snapshot */
    json_t *error = json_object_get(journal, "error");
    add_snapshot(body, request, journal);
    (void)json_object_set_new(body, "cluster_job", part_of ? json_string(part_of) : json_null());
    (void)json_object_set_new(body, "step", step ? json_string(step) : json_null());
    (void)json_object_set_new(body, "error", error ? json_incref(error) : json_null());
    add_times(body, journal);
    (void)json_object_set_new(body, "verification", verification_json(journal));
    (void)json_object_set_new(body, "last_good_verification", last_good(jobs, journal));
    (void)json_object_set_new(body, "last_good_drill", json_null()); /* there are none yet */
    return body;
}
