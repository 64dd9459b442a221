/* The XML bodies that S3 answers with: a small strict parser for just these. Pure, any thread.
 *
 * Input comes from the network. Refused: a document type (no entities but the five of XML and
 * character references), text that is not closed, names that do not match, nesting deeper than
 * S3_XML_DEPTH_MAX, anything behind the root element. Unknown elements and all attributes are
 * skipped: servers add their own. Element names are compared without a namespace.
 *
 * Formats: Amazon S3 API Reference, "Error responses", "ListObjectsV2", "ListObjectVersions",
 * "DeleteObjects", "GetObjectLockConfiguration", "GetBucketVersioning". */
#ifndef TIDEMARK_IO_S3_XML_H
#define TIDEMARK_IO_S3_XML_H

#include "io/err.h"

enum { S3_XML_DEPTH_MAX = 8, S3_KEY_MAX = 1024, S3_TOKEN_MAX = 2048, S3_VERSION_MAX = 1024 };

/* <Error>; what is missing is "". Texts are cut to their size and hold printable ASCII only, so
 * that they can be logged. */
struct s3_xml_error {
    char code[64];
    char message[256];
    char region[64];
    char endpoint[128];
};

/* False when it is no such document. */
bool s3_xml_error_parse(const char *ptr, size_t len, struct s3_xml_error *ret);

struct s3_xml_page {
    bool truncated;                /* there is more */
    char token[S3_TOKEN_MAX + 1];  /* for the next page, "" without one */
    char encoding[8];              /* "url": keys were escaped (and have been decoded) */
    char last_key[S3_KEY_MAX + 1]; /* of this page, "" when it is empty */
    uint64_t count;                /* of keys */
};

/* ListObjectsV2: calls each() for every key in their order; a non-zero return stops and is
 * returned. Keys arrive decoded. ERR_STORE when it is no such document, when a key is longer than
 * S3_KEY_MAX or holds a NUL, when a size is no number, when it does not say whether it is
 * truncated, is truncated without a token, or holds another number of keys than it says. each() may
 * have been called for the keys before. */
int s3_xml_list_parse(const char *ptr, size_t len,
                      int (*each)(void *ctx, const char *key, uint64_t size, struct err *err),
                      void *ctx, struct s3_xml_page *ret, struct err *err);

struct s3_xml_version {
    char key[S3_KEY_MAX + 1];
    char version[S3_VERSION_MAX + 1];
    char etag[64];  /* of an object that was put at once its MD5; "" = not told */
    bool is_marker; /* of a removal: nothing is in it */
};

struct s3_xml_versions_page {
    bool truncated;
    /* For the next page. */
    char key_marker[S3_KEY_MAX + 1], version_marker[S3_VERSION_MAX + 1];
    uint64_t count;
};

/* ListObjectVersions: calls each() for every version, of a key the newest first. As above, but that
 * it does not say how many it holds; truncated needs a key marker. */
int s3_xml_versions_parse(const char *ptr, size_t len,
                          int (*each)(void *ctx, const struct s3_xml_version *version,
                                      struct err *err),
                          void *ctx, struct s3_xml_versions_page *ret, struct err *err);

/* The text of the last element at path ("VersioningConfiguration/Status"), "" when there is none.
 * False when it is no document with the root of path, or the text does not fit. */
bool s3_xml_text_parse(const char *ptr, size_t len, const char *path, char *ret, size_t size);

/* DeleteObjects: calls each() for every key that was NOT removed. As above. */
int s3_xml_delete_parse(const char *ptr, size_t len,
                        int (*each)(void *ctx, const char *key, const struct s3_xml_error *why,
                                    struct err *err),
                        void *ctx, struct err *err);

/* Appends text with the five characters of XML escaped; false when it does not fit. */
bool s3_xml_escape(const char *text, char *to, size_t size);

#endif
