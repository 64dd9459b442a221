/* One POST to a URL that somebody configured, see http.h. libcurl's own resolver does the look-up
 * here: it is the one that a time-out of the whole request can end. */
#include "io/http_curl.h"

static size_t drop(char *data, size_t size, size_t count, void *ctx)
{
    (void)data, (void)ctx;
    return size * count;
}

static void set_options(CURL *curl, const struct http_post *post, char *error,
                        struct curl_slist *headers)
{
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error);
    curl_easy_setopt(curl, CURLOPT_URL, post->url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)post->timeout_ms);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)post->body_len);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, post->body);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, drop);
}

static int failure(CURLcode code, const char *error, struct err *err)
{
    const char *text = error[0] ? error : curl_easy_strerror(code);
    if (code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL)
        return err_set(err, ERR_CONFIG, "malformed URL");
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE)
        return err_set(err, ERR_AUTH, "the server's certificate is not accepted: %s", text);
    if (code == CURLE_OUT_OF_MEMORY)
        return err_set(err, ERR_INTERNAL, "out of memory");
    return err_set(err, ERR_DEVICE, "no answer: %s", text);
}

int http_post(const struct http_post *post, unsigned *ret_status, struct err *err)
{
    char error[CURL_ERROR_SIZE] = "";
    long status = 0;
    int rc = http_curl_init(err);
    if (rc < 0)
        return rc;
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *all = headers ? curl_slist_append(headers, "Expect:") : NULL;
    CURLcode code = CURLE_OUT_OF_MEMORY;
    if (curl && all) {
        set_options(curl, post, error, all);
        code = curl_easy_perform(curl);
        (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    if (code != CURLE_OK)
        return failure(code, error, err);
    *ret_status = (unsigned)status;
    return 0;
}
