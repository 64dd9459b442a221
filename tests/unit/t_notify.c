/* agent/notify_body: what is told of which end of a job. */
#include "agent/notify.h"
#include "tests/tap.h"

#define ID "0123456789abcdef0123456789abcdef"

static struct conf conf;

static json_t *parse(const char *text)
{
    json_error_t error;
    json_t *json = json_loads(text, 0, &error);
    if (!json)
        printf("# %s in %s\n", error.text, text);
    return json;
}

static void test_wanted(void)
{
    static const struct {
        const char *journal;
        bool always, failure;
    } rows[] = {
        {"{\"state\":\"complete\"}", true, false},
        {"{\"state\":\"complete\",\"dry_run\":true}", false, false},
        {"{\"state\":\"failed\"}", true, true},
        {"{\"state\":\"cancelled\"}", true, true},
        {"{\"state\":\"running\"}", false, false},
        {"{\"state\":\"running\",\"interrupted_s\":7}", true, true},
        {"{\"state\":\"prepared\"}", false, false},
        {"{\"state\":\"held\"}", false, false},
        {"{\"state\":\"executed\"}", false, false},
        {"{}", false, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        free_json json_t *journal = parse(rows[i].journal);
        memset(&conf, 0, sizeof(conf));
        ok(!notify_wanted(&conf, journal), "%s: no hook", rows[i].journal);
        (void)snprintf(conf.notify_command, sizeof(conf.notify_command), "true");
        conf.notify_on = NOTIFY_ALWAYS;
        ok(notify_wanted(&conf, journal) == rows[i].always, "%s: always", rows[i].journal);
        conf.notify_on = NOTIFY_FAILURE;
        ok(notify_wanted(&conf, journal) == rows[i].failure, "%s: failure", rows[i].journal);
    }
}

/* Parts of the body as text, of this request and journal. */
static void is_body(const char *request, const char *journal, const char *jobs, const char *key,
                    const char *want)
{
    free_json json_t *asked = parse(request), *ended = parse(journal), *all = parse(jobs);
    free_json json_t *body = notify_body(&conf, asked, ended, all);
    json_t *part = json_object_get(body, key);
    free_mem char *text = part ? json_dumps(part, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    is_str(text ? text : "(none)", want, "%s of %s", key, journal);
}

static void test_names(void)
{
    is_body("{}", "{\"state\":\"running\",\"interrupted_s\":7}", "[]", "state", "\"interrupted\"");
    is_body("{\"cluster_job\":\"c\"}", "{}", "[]", "cluster_job", "\"c\"");
    is_body("{\"tag\":\"t\"}", "{\"result\":{\"snapshot\":\"s\",\"tag\":\"t\"}}", "[]", "snapshot",
            "\"s\"");
    is_body("{\"tag\":\"t\"}", "{}", "[]", "tag", "\"t\"");
    is_body("{\"tag\":\"t\"}", "{}", "[]", "snapshot", "null");
    is_body("{\"snapshot\":\"t\"}", "{}", "[]", "tag", "\"t\"");
    is_body("{\"snapshot\":\"latest\"}", "{}", "[]", "tag", "null");
    is_body("{\"snapshot\":\"" ID "\"}", "{}", "[]", "snapshot", "\"" ID "\"");
    is_body("{\"snapshot\":\"" ID "\"}", "{}", "[]", "tag", "null");
    is_body("{\"snapshot\":\"latest\"}", "{\"plan\":{\"snapshot\":\"s\",\"tag\":\"u\"}}", "[]",
            "tag", "\"u\"");
    is_body("{}", "{\"snapshot\":\"s\"}", "[]", "snapshot", "\"s\"");
    is_body("{}", "{\"cluster\":{\"job\":\"j\",\"epoch\":1}}", "[]", "cluster_job", "\"j\"");
    is_body("{}", "{\"error\":{\"code\":\"store\"}}", "[]", "error", "{\"code\":\"store\"}");
}

static void test_times(void)
{
    const char *journal = "{\"started_s\":1700000000,\"ended_s\":1700000075}";
    is_body("{}", journal, "[]", "started", "\"2023-11-14T22:13:20Z\"");
    is_body("{}", journal, "[]", "ended", "\"2023-11-14T22:14:35Z\"");
    is_body("{}", journal, "[]", "duration_s", "75");
    is_body("{}", "{\"ended_s\":1700000075}", "[]", "started", "null"); /* it never ran */
    is_body("{}", "{\"ended_s\":1700000075}", "[]", "duration_s", "null");
}

static void test_last_good(void)
{
    const char *jobs =
        "[{\"type\":\"snapshot\",\"state\":\"complete\",\"ended_s\":1700000060},"
        "{\"id\":\"a\",\"type\":\"verification\",\"state\":\"complete\",\"ended_s\":1700000000},"
        "{\"id\":\"b\",\"type\":\"restore\",\"state\":\"complete\",\"ended_s\":1700000040,"
        "\"plan\":{\"snapshot\":\"s\",\"tag\":\"t\"},"
        "\"verification\":{\"level\":\"quick\",\"ok\":true}},"
        "{\"id\":\"c\",\"type\":\"restore\",\"state\":\"complete\",\"ended_s\":1700000050,"
        "\"verification\":{\"level\":\"none\",\"ok\":true}},"
        "{\"id\":\"d\",\"type\":\"verification\",\"state\":\"failed\",\"ended_s\":1700000055}]";
    is_body("{}", "{\"ended_s\":1700000100}", jobs, "last_good_verification",
            "{\"job\":\"b\",\"event\":\"restore\",\"snapshot\":\"s\",\"tag\":\"t\","
            "\"ended\":\"2023-11-14T22:14:00Z\",\"age_s\":60}");
    is_body("{}", "{\"ended_s\":1700000100}", "[]", "last_good_verification", "null");
    free_json json_t *body = notify_body(&conf, NULL, NULL, NULL);
    ok(json_is_null(json_object_get(body, "last_good_verification")), "nothing is known: null");
}

int main(void)
{
    test_wanted();
    test_names();
    test_times();
    test_last_good();
    return done();
}
