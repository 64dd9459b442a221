/* The XML bodies that S3 answers with: a small strict parser for just these. Pure, any thread.
 *
 * Input comes from the network. Refused: a document type (no entities but the five of XML and
 * character references), text that is not closed, names that do not match, nesting deeper than
 * S3_XML_DEPTH_MAX, anything behind the root element. Unknown elements and all attributes are
 * skipped: servers add their own. Element names are compared without a namespace.
 *
 * Formats: Amazon S3 API Reference, "Error responses", "ListObjectsV2", "DeleteObjects". */
#ifndef TIDEMARK_IO_S3_XML_H
#define TIDEMARK_IO_S3_XML_H

#include "io/err.h"

enum { S3_XML_DEPTH_MAX = 8, S3_KEY_MAX = 1024, S3_TOKEN_MAX = 2048 };

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

/* DeleteObjects: calls each() for every key that was NOT removed. As above. */
int s3_xml_delete_parse(const char *ptr, size_t len,
                        int (*each)(void *ctx, const char *key, const struct s3_xml_error *why,
                                    struct err *err),
                        void *ctx, struct err *err);

/* Appends text with the five characters of XML escaped; false when it does not fit. */
bool s3_xml_escape(const char *text, char *to, size_t size);

#endif
