/* agent/json: parsing, typed access, unknown keys, base64, files. */
#include "agent/json.h"

#include <sys/stat.h>

#include "tests/tap.h"

static struct err err;

static json_t *parse(const char *text)
{
    json_t *json = NULL;
    err_clear(&err);
    (void)json_parse(text, strlen(text), ERR_USAGE, &json, &err);
    return json;
}

static void test_parse(void)
{
    static const char *const bad[] = {"",
                                      "{",
                                      "{\"a\":1,\"a\":2}",
                                      "{} x",
                                      "{\"a\":}",
                                      "{\"a\":\"b\\u0000c\"}",
                                      "\"\xff\"",
                                      "{\"a\":1e999}"};
    free_json json_t *good = parse(" {\"a\": 1} ");
    ok(good != NULL, "a good text");
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        json_t *json = parse(bad[i]);
        ok(!json && err.code == ERR_USAGE, "refused: %s", bad[i]);
    }
    is_str((json_decref(parse("{\"a\":1,\"a\":2}")), err.text),
           "not valid JSON at line 1, column 10: duplicate object key near '\"a\"'",
           "a duplicate key says where");
}

static void test_getters(void)
{
    free_json json_t *json = parse("{\"s\":\"x\",\"n\":5,\"neg\":-1,\"b\":true,\"null\":null}");
    const char *text = "old";
    uint64_t number = 7;
    bool flag = false;
    is_good(json_get_string(json, "s", ERR_CORRUPT, &text, &err), &err, "string");
    is_str(text, "x", "string value");
    is_good(json_get_u64(json, "n", ERR_CORRUPT, &number, &err), &err, "number");
    is_u64(number, 5, "number value");
    is_good(json_opt_bool(json, "b", ERR_CORRUPT, &flag, &err), &err, "bool");
    ok(flag, "bool value");
    is_good(json_opt_string(json, "null", ERR_CORRUPT, &text, &err), &err, "null is absent");
    is_str(text, "x", "and leaves the value");
    is_good(json_opt_u64(json, "gone", ERR_CORRUPT, &number, &err), &err, "absent");
    is_err(json_get_string(json, "gone", ERR_CORRUPT, &text, &err), &err, ERR_CORRUPT,
           "missing or wrong 'gone'", "required and absent");
    is_err(json_get_string(json, "n", ERR_USAGE, &text, &err), &err, ERR_USAGE,
           "missing or wrong 'n'", "wrong type");
    is_err(json_get_u64(json, "neg", ERR_USAGE, &number, &err), &err, ERR_USAGE,
           "missing or wrong 'neg'", "negative");
    is_err(json_opt_bool(json, "n", ERR_USAGE, &flag, &err), &err, ERR_USAGE,
           "missing or wrong 'n'", "not a bool");
}

static void test_keys(void)
{
    static const char *const known[] = {"tag", "full", NULL};
    free_json json_t *good = parse("{\"tag\":1}"), *near = parse("{\"tga\":1}"),
                     *far = parse("{\"zzzzzzzz\":1}"), *array = parse("[]");
    is_good(json_check_keys(good, known, &err), &err, "known keys");
    is_err(json_check_keys(near, known, &err), &err, ERR_USAGE,
           "unknown field 'tga' (did you mean 'tag'?)", "near");
    is_err(json_check_keys(far, known, &err), &err, ERR_USAGE, "unknown field 'zzzzzzzz'", "far");
    is_err(json_check_keys(array, known, &err), &err, ERR_USAGE, "expected a JSON object",
           "an array");
}

static void test_base64(void)
{
    static const char *const texts[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                        "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    static const char *const bad[] = {
        "Zg=", "Zg", "Zh==", "Zm9=", "====", "Z===", "Zg==Zg==", "Zm 8", "Zm9v\n"};
    for (size_t len = 0; len < ARRAY_LEN(texts); len++) {
        free_json json_t *obj = json_object();
        free_mem void *bytes = NULL;
        size_t got = 99;
        (void)json_object_set_new(obj, "x", json_base64("foobar", len));
        is_str(json_string_value(json_object_get(obj, "x")), texts[len], "RFC 4648 vector %zu",
               len);
        is_good(json_get_base64(obj, "x", ERR_CORRUPT, &bytes, &got, &err), &err, "decodes");
        ok(got == len && memcmp(bytes, "foobar", len) == 0, "to the same bytes");
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        free_json json_t *obj = json_pack("{s:s}", "x", bad[i]);
        void *bytes = NULL;
        size_t len;
        is_err(json_get_base64(obj, "x", ERR_CORRUPT, &bytes, &len, &err), &err, ERR_CORRUPT,
               "missing or wrong 'x'", "not canonical: %s", bad[i]);
    }
}

static void test_files(void)
{
    char dir[] = "/tmp/t_json.XXXXXX", path[64];
    free_json json_t *json = parse("{\"a\":\"b\"}"), *back = NULL;
    struct stat st;
    if (!mkdtemp(dir))
        abort();
    (void)snprintf(path, sizeof(path), "%s/x.json", dir);
    is_good(json_save(path, json, true, &err), &err, "save");
    is_good(json_save(path, json, false, &err), &err, "save over it");
    ok(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600, "mode 0600");
    is_good(json_load_path(path, &back, &err), &err, "load");
    ok(json_equal(json, back), "the same value");
    if (truncate(path, 4) < 0)
        abort();
    json_t *none = NULL;
    is_err(json_load_path(path, &none, &err), &err, ERR_CORRUPT, path, "a cut file names itself");
    (void)unlink(path);
    is_err(json_load_path(path, &none, &err), &err, ERR_MISSING, "does not exist", "no file");
    ok(rmdir(dir) == 0, "no temporary file is left");
    is_err(json_save(path, json, true, &err), &err, ERR_DEVICE, "create", "no directory");
}

int main(void)
{
    test_parse();
    test_getters();
    test_keys();
    test_base64();
    test_files();
    return done();
}
