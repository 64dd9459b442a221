/* JSON objects of a repository: the envelope, the JSON, and the snapshot record in it. A record
 * that is accepted must be written and read again as the same value. */
#include "agent/record.h"
#include "tests/fuzz/fuzz.h"

static void one_record(const json_t *json)
{
    struct err err;
    struct record *record = calloc(1, sizeof(*record)), *second = calloc(1, sizeof(*second));
    FUZZ_CHECK(record && second);
    if (fuzz_good(record_from_json(json, record, &err), &err)) {
        json_t *again = record_to_json(record);
        json_t *shown = record_to_public_json(record);
        FUZZ_CHECK(again && shown);
        FUZZ_CHECK(record_from_json(again, second, &err) == 0);
        json_t *third = record_to_json(second);
        FUZZ_CHECK(json_equal(again, third));
        json_decref(again);
        json_decref(shown);
        json_decref(third);
        record_release(second);
        record_release(record);
    }
    free(record);
    free(second);
}

static void one(const uint8_t *data, size_t size)
{
    struct fmt_header header;
    struct err err;
    const char *text;
    size_t len;
    for (enum fmt_json kind = FMT_JSON_RECORD; kind <= FMT_JSON_MARK; kind++) {
        free_json json_t *json = NULL;
        int rc = fmt_json_decode(data, size, kind, NULL, &header, &text, &len, &err);
        if (!fuzz_good(rc, &err))
            continue;
        if (fuzz_good(json_parse(text, len, ERR_CORRUPT, &json, &err), &err))
            one_record(json);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_object(data, size, one);
}
