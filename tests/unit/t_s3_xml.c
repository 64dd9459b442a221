/* The XML of S3: bodies as AWS documents them, as radosgw and Swift send them, and broken ones. */
#include "io/s3_xml.h"

#include "tests/tap.h"

struct seen {
    char text[512];
};

static int take(void *ctx, const char *key, uint64_t size, struct err *err)
{
    struct seen *seen = ctx;
    size_t at = strlen(seen->text);
    (void)err;
    snprintf(seen->text + at, sizeof(seen->text) - at, "%s=%llu;", key, (unsigned long long)size);
    return strcmp(key, "stop") == 0 ? 7 : 0;
}

static int list(const char *xml, struct seen *seen, struct s3_xml_page *page, struct err *err)
{
    memset(seen, 0, sizeof(*seen));
    return s3_xml_list_parse(xml, strlen(xml), take, seen, page, err);
}

#define LIST             "<ListBucketResult><IsTruncated>false</IsTruncated>"
#define ENTRY(key, size) "<Contents><Key>" key "</Key><Size>" size "</Size></Contents>"

static void check_list(struct err *err)
{
    struct seen seen;
    struct s3_xml_page page;
    is_good(list("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult "
                 "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>"
                 "<Prefix/><KeyCount>2</KeyCount><IsTruncated>true</IsTruncated>"
                 "<NextContinuationToken>1ueG&amp;/=</NextContinuationToken>" //
                 ENTRY("a/b", "434234") "<!-- x --><Contents><Key>c&lt;&#x64;&#101;</Key>"
                                        "<ETag>&quot;x&quot;</ETag><Size>0</Size><Owner><ID>1</"
                                        "ID></Owner></Contents>"
                                        "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes></"
                                        "ListBucketResult>\n",
                 &seen, &page, err),
            err, "a page");
    is_str(seen.text, "a/b=434234;c<de=0;", "keys and sizes, entities resolved");
    ok(page.truncated && page.count == 2, "truncated, counted");
    is_str(page.token, "1ueG&/=", "token");
    is_str(page.last_key, "c<de", "last key");
    is_good(
        list(LIST ENTRY("a%2Fb+%C3%A9", "1") "<EncodingType>url</EncodingType></ListBucketResult>",
             &seen, &page, err),
        err, "an escaped page, where the encoding stands behind the keys (Ceph)");
    is_str(seen.text, "a/b \xc3\xa9=1;", "decoded");
    is_good(list(LIST "</ListBucketResult>", &seen, &page, err), err, "an empty page");
    is_u64(list(LIST ENTRY("stop", "1") ENTRY("z", "1") "</ListBucketResult>", &seen, &page, err),
           7, "the caller's answer is returned");
    is_str(seen.text, "stop=1;", "and stops");
}

/* Each must be refused, none may crash (the fuzz target tries more). */
static const char *const bad_lists[] = {
    "",
    "x",
    "<html><body>hello</body></html>",
    "<Error><Code>SlowDown</Code></Error>",
    "<ListBucketResult>",
    "<ListBucketResult></ListBucketResult",
    LIST "</listbucketresult>",
    LIST "</ListBucketResult><x/>",
    LIST "</ListBucketResult>x",
    "<!DOCTYPE a [<!ENTITY b \"c\">]><ListBucketResult></ListBucketResult>",
    LIST "&b;</ListBucketResult>",
    LIST "&#x110000;</ListBucketResult>",
    LIST "&#;</ListBucketResult>",
    LIST "&#x;</ListBucketResult>",
    LIST "<a b=\"c></a></ListBucketResult>",
    "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    "<ListBucketResult/>",
    "<ListBucketResult><IsTruncated>True</IsTruncated></ListBucketResult>",
    "<ListBucketResult><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>",
    LIST "<EncodingType>rot13</EncodingType></ListBucketResult>",
    LIST ENTRY("", "1") "</ListBucketResult>",
    LIST ENTRY("a", "") "</ListBucketResult>",
    LIST ENTRY("a", "-1") "</ListBucketResult>",
    LIST ENTRY("a", "99999999999999999999") "</ListBucketResult>",
    LIST ENTRY("a&#0;b", "1") "</ListBucketResult>",
    LIST "<EncodingType>url</EncodingType>" ENTRY("a%0", "1") "</ListBucketResult>",
    LIST "<EncodingType>url</EncodingType>" ENTRY("%00", "1") "</ListBucketResult>",
    LIST "<Contents><Key>a</Key></Contents></ListBucketResult>",
    LIST "<a><b><c><d><e><f><g><h></h></g></f></e></d></c></b></a></ListBucketResult>",
};

static void check_bad_lists(struct err *err)
{
    struct seen seen;
    struct s3_xml_page page;
    for (size_t i = 0; i < ARRAY_LEN(bad_lists); i++)
        is_err(list(bad_lists[i], &seen, &page, err), err, ERR_STORE, "cannot be read",
               "refused: %.70s", bad_lists[i]);
    char long_key[3000];
    memset(long_key, 0, sizeof(long_key));
    strcpy(long_key, LIST "<Contents><Key>");
    memset(long_key + strlen(long_key), 'k', S3_KEY_MAX + 1);
    strcat(long_key, "</Key><Size>1</Size></Contents></ListBucketResult>");
    is_err(list(long_key, &seen, &page, err), err, ERR_STORE, "cannot be read",
           "refused: a key of 1025 bytes");
}

static bool error(const char *xml, struct s3_xml_error *ret)
{
    return s3_xml_error_parse(xml, strlen(xml), ret);
}

static void check_errors(void)
{
    struct s3_xml_error e;
    ok(error("<?xml version='1.0' encoding='UTF-8'?><Error><Code>AuthorizationHeaderMalformed"
             "</Code><Message>the region 'x' is wrong\r\nexpecting</Message><Region>eu-west-1"
             "</Region><RequestId>1</RequestId></Error>",
             &e),
       "an error of AWS and Swift");
    is_str(e.code, "AuthorizationHeaderMalformed", "code");
    is_str(e.message, "the region 'x' is wrong  expecting", "message, on one line");
    is_str(e.region, "eu-west-1", "region");
    ok(error("<Error><Code>NoSuchKey</Code><BucketName>b</BucketName></Error>", &e),
       "an error of radosgw");
    is_str(e.message, "", "without a message");
    ok(!error("<html><Error><Code>NoSuchKey</Code></Error></html>", &e), "not as the root");
    ok(!error("<Error><Code>NoSuchKey</Code>", &e), "not when it is cut");
    ok(!error("<Error><Message>m</Message></Error>", &e), "not without a code");
    char text[400] = "<Error><Code>";
    memset(text + strlen(text), 'c', 100);
    strcat(text, "</Code></Error>");
    ok(error(text, &e) && strlen(e.code) == sizeof(e.code) - 1, "a long code is cut");
}

static int not_removed(void *ctx, const char *key, const struct s3_xml_error *why, struct err *err)
{
    struct seen *seen = ctx;
    size_t at = strlen(seen->text);
    (void)err;
    snprintf(seen->text + at, sizeof(seen->text) - at, "%s:%s;", key, why->code);
    return 0;
}

static void check_deletes(struct err *err)
{
    struct seen seen = {""};
    static const char answer[] =
        "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>AccessDenied</Code>"
        "<Message>no</Message></Error><Error><Key>c</Key><Code>X</Code></Error></DeleteResult>";
    is_good(s3_xml_delete_parse(answer, strlen(answer), not_removed, &seen, err), err,
            "a batch of deletes");
    is_str(seen.text, "b:AccessDenied;c:X;", "those that were not removed");
    is_err(s3_xml_delete_parse(answer, strlen(answer) - 1, not_removed, &seen, err), err, ERR_STORE,
           "cannot be read", "cut");
    char text[32] = "<";
    ok(s3_xml_escape("a&<>\"b", text, sizeof(text)), "escape");
    is_str(text, "<a&amp;&lt;&gt;&quot;b", "escaped");
    ok(!s3_xml_escape("&&&&&&", text, sizeof(text)), "what does not fit");
}

static int take_version(void *ctx, const struct s3_xml_version *version, struct err *err)
{
    struct seen *seen = ctx;
    size_t at = strlen(seen->text);
    (void)err;
    snprintf(seen->text + at, sizeof(seen->text) - at, "%s:%s%s;", version->key, version->version,
             version->is_marker ? "-" : version->etag);
    return strcmp(version->key, "stop") == 0 ? 7 : 0;
}

static int versions(const char *xml, struct seen *seen, struct s3_xml_versions_page *page,
                    struct err *err)
{
    memset(seen, 0, sizeof(*seen));
    return s3_xml_versions_parse(xml, strlen(xml), take_version, seen, page, err);
}

#define VERSIONS        "<ListVersionsResult><IsTruncated>false</IsTruncated>"
#define VERSION(key, v) "<Version><Key>" key "</Key><VersionId>" v "</VersionId></Version>"
#define GONE(k, v)      "<DeleteMarker><Key>" k "</Key><VersionId>" v "</VersionId></DeleteMarker>"

static const char *const bad_versions[] = {
    "",
    "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
    "<ListVersionsResult></ListVersionsResult>",
    "<ListVersionsResult><IsTruncated>true</IsTruncated></ListVersionsResult>",
    VERSIONS VERSION("a", "1"),
    VERSIONS VERSION("", "1") "</ListVersionsResult>",
    VERSIONS VERSION("a", "") "</ListVersionsResult>",
    VERSIONS "<Version><Key>a</Key></Version></ListVersionsResult>",
    VERSIONS "<EncodingType>rot13</EncodingType></ListVersionsResult>",
    VERSIONS "<EncodingType>url</EncodingType>" VERSION("%00", "1") "</ListVersionsResult>",
};

static void check_versions(struct err *err)
{
    struct seen seen;
    struct s3_xml_versions_page page;
    is_good(versions("<ListVersionsResult><EncodingType>url</EncodingType><IsTruncated>true"
                     "</IsTruncated><NextKeyMarker>a%2Fb</NextKeyMarker><NextVersionIdMarker>v+1"
                     "</NextVersionIdMarker>" GONE("a%2Fb", "v+2") VERSION("a%2Fb", "v+1") //
                     "<Version><Key>c</Key><VersionId>1</VersionId><ETag>&quot;e&quot;</ETag>"
                     "</Version></ListVersionsResult>",
                     &seen, &page, err),
            err, "a page of versions");
    is_str(seen.text, "a/b:v+2-;a/b:v+1;c:1\"e\";", "a marker and what is behind it");
    ok(page.truncated && page.count == 3, "truncated, counted");
    is_str(page.key_marker, "a/b", "goes on there");
    is_str(page.version_marker, "v+1", "at that version");
    is_u64(versions(VERSIONS VERSION("stop", "1") VERSION("z", "1") "</ListVersionsResult>", &seen,
                    &page, err),
           7, "the caller's answer is returned");
    is_str(seen.text, "stop:1;", "and stops");
    for (size_t i = 0; i < ARRAY_LEN(bad_versions); i++) {
        is_err(versions(bad_versions[i], &seen, &page, err), err, ERR_STORE, "cannot be read",
               "refused: %.70s", bad_versions[i]);
        is_str(seen.text, "", "and nothing is told of it");
    }
}

static bool status(const char *xml, char ret[8])
{
    return s3_xml_text_parse(xml, strlen(xml), "VersioningConfiguration/Status", ret, 8);
}

static void check_texts(void)
{
    char text[8];
    ok(status("<VersioningConfiguration xmlns='x'><Status>Enabled</Status><MFADelete>Disabled"
              "</MFADelete></VersioningConfiguration>",
              text),
       "one text of a document");
    is_str(text, "Enabled", "is found");
    ok(status("<VersioningConfiguration/>", text) && text[0] == '\0', "or empty");
    ok(!status("<Status>Enabled</Status>", text), "another document");
    ok(!status("<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>",
               text),
       "a text that does not fit");
    ok(!status("<VersioningConfiguration><Status>Enabled</Status>", text), "a cut one");
}

int main(void)
{
    struct err err;
    check_list(&err);
    check_bad_lists(&err);
    check_errors();
    check_deletes(&err);
    check_versions(&err);
    check_texts();
    return done();
}
