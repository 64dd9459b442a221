/* Bodies of API requests. The first byte chooses the type; what is accepted is accepted again with
 * its "type" taken out, and gives the same request. */
#include "agent/api_request.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const types[] = {"snapshot", "restore", "verification", "resume"};
    if (size == 0)
        return 0;
    const char *type = types[data[0] % ARRAY_LEN(types)];
    free_mem uint8_t *copy = fuzz_copy(data + 1, size - 1);
    free_json json_t *request = NULL, *again = NULL;
    struct err err;
    int rc = api_request_parse(type, (const char *)copy, size - 1, &request, &err);
    if (!fuzz_good(rc, &err)) {
        FUZZ_CHECK(err.code == ERR_USAGE);
        return 0;
    }
    free_json json_t *body = json_deep_copy(request);
    (void)json_object_del(body, "type");
    free_mem char *text = json_text(body);
    FUZZ_CHECK(api_request_parse(type, text, strlen(text), &again, &err) == 0);
    FUZZ_CHECK(json_equal(request, again));
    return 0;
}
