/* The signer against the worked examples that AWS publishes: Amazon S3 API Reference,
 * "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk",
 * with its example credentials, date and bucket. */
#include "io/sigv4.h"

#include "io/crypt.h"
#include "tests/tap.h"

static const char empty_hash[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

static struct sigv4_request example(const char *method, const char *path, const char *query,
                                    const struct sigv4_header *headers, size_t count)
{
    return (struct sigv4_request){
        .method = method,
        .path = path,
        .query = query,
        .headers = headers,
        .header_count = count,
        .payload_hash = empty_hash,
        .date = "20130524T000000Z",
        .region = "us-east-1",
        .access_key = "AKIAIOSFODNN7EXAMPLE",
        .secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    };
}

static void check(const struct sigv4_request *request, const char *names, const char *signature,
                  const char *what)
{
    char got[1024] = "", want[1024];
    ok(sigv4_authorize(request, got, sizeof(got)), "%s is signed", what);
    snprintf(want, sizeof(want),
             "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
             "SignedHeaders=%s,Signature=%s",
             names, signature);
    is_str(got, want, "%s: as published", what);
}

static void check_get_object(void)
{
    const struct sigv4_header headers[] = {{"host", "examplebucket.s3.amazonaws.com"},
                                           {"range", "bytes=0-9"},
                                           {"x-amz-content-sha256", empty_hash},
                                           {"x-amz-date", "20130524T000000Z"}};
    struct sigv4_request request = example("GET", "/test.txt", "", headers, ARRAY_LEN(headers));
    check(&request, "host;range;x-amz-content-sha256;x-amz-date",
          "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41", "GET Object");
}

static void check_put_object(void)
{
    static const char body[] = "Welcome to Amazon S3.";
    char hash[SIGV4_HASH_LEN], path[64] = "";
    sigv4_hash(body, strlen(body), hash);
    is_str(hash, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
           "the payload's hash");
    const struct sigv4_header headers[] = {{"date", "Fri, 24 May 2013 00:00:00 GMT"},
                                           {"host", "examplebucket.s3.amazonaws.com"},
                                           {"x-amz-content-sha256", hash},
                                           {"x-amz-date", "20130524T000000Z"},
                                           {"x-amz-storage-class", "REDUCED_REDUNDANCY"}};
    ok(sigv4_escape("/test$file.text", true, path, sizeof(path)), "the path is escaped");
    struct sigv4_request request = example("PUT", path, "", headers, ARRAY_LEN(headers));
    request.payload_hash = hash;
    check(&request, "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
          "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd", "PUT Object");
}

static void check_queries(void)
{
    const struct sigv4_header headers[] = {{"host", "examplebucket.s3.amazonaws.com"},
                                           {"x-amz-content-sha256", empty_hash},
                                           {"x-amz-date", "20130524T000000Z"}};
    struct sigv4_request request = example("GET", "/", "lifecycle=", headers, ARRAY_LEN(headers));
    check(&request, "host;x-amz-content-sha256;x-amz-date",
          "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", "GET Lifecycle");
    request.query = "max-keys=2&prefix=J";
    check(&request, "host;x-amz-content-sha256;x-amz-date",
          "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7", "List Objects");
}

static void check_escape(void)
{
    char text[64] = "x=";
    ok(sigv4_escape("aZ09-._~ /%\xc3\xa9", false, text, sizeof(text)), "escapes");
    is_str(text, "x=aZ09-._~%20%2F%25%C3%A9", "as RFC 3986 says, after what is there");
    char small[5] = "";
    ok(!sigv4_escape("ab%", false, small, sizeof(small)), "says that it does not fit");
    is_str(small, "ab", "never half of an escape");
}

static void check_limits(void)
{
    char out[1024], date[SIGV4_DATE_LEN], long_text[20000], secret[400];
    const struct sigv4_header headers[] = {{"host", "h"}};
    struct sigv4_request request = example("GET", "/", "", headers, 1);
    ok(!sigv4_authorize(&request, out, 40), "a header that does not fit is refused");
    memset(long_text, 'a', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    request.query = long_text;
    ok(!sigv4_authorize(&request, out, sizeof(out)), "a request that does not fit is refused");
    request.query = "";
    memset(secret, 's', sizeof(secret) - 1);
    secret[sizeof(secret) - 1] = '\0';
    request.secret_key = secret;
    ok(!sigv4_authorize(&request, out, sizeof(out)), "a secret that does not fit is refused");
    sigv4_date(1369353600, date);
    is_str(date, "20130524T000000Z", "date");
    sigv4_date((time_t)1 << 50, date);
    is_u64(strlen(date), SIGV4_DATE_LEN - 1, "a clock far out still makes a date");
}

/* RFC 4231 §4.3, RFC 1321 §A.5. */
static void check_primitives(void)
{
    static const uint8_t mac_want[] = {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e,
                                       0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7,
                                       0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83,
                                       0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43};
    static const uint8_t md5_want[] = {0x90, 0x01, 0x50, 0x98, 0x3c, 0xd2, 0x4f, 0xb0,
                                       0xd6, 0x96, 0x3f, 0x7d, 0x28, 0xe1, 0x7f, 0x72};
    uint8_t mac[SHA256_LEN], digest[MD5_LEN];
    hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, mac);
    ok(memcmp(mac, mac_want, sizeof(mac)) == 0, "HMAC-SHA-256 of RFC 4231");
    md5("abc", 3, digest);
    ok(memcmp(digest, md5_want, sizeof(digest)) == 0, "MD5 of RFC 1321");
}

int main(void)
{
    check_get_object();
    check_put_object();
    check_queries();
    check_escape();
    check_limits();
    check_primitives();
    return done();
}
