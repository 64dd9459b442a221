/* A pull parser of elements and text, and the three documents read with it: see s3_xml.h. */
#include "io/s3_xml.h"

#include <assert.h>
#include <stdio.h>

enum { TEXT_MAX = 3 * S3_KEY_MAX + S3_TOKEN_MAX };

enum event { XML_OPEN, XML_CLOSE, XML_END, XML_BAD };

struct name {
    const char *ptr;
    size_t len;
};

struct xml {
    const char *at, *end;
    struct name stack[S3_XML_DEPTH_MAX];
    size_t depth;
    bool had_root, self_closing;
    char text[TEXT_MAX + 1]; /* of the innermost element since its last tag */
    size_t text_len;
    bool text_over; /* longer than TEXT_MAX, or it held a NUL */
};

/* --- characters --------------------------------------------------------------------------------*/
static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static void add_byte(struct xml *xml, char c)
{
    if (xml->text_len == TEXT_MAX || c == '\0') {
        xml->text_over = true;
        return;
    }
    xml->text[xml->text_len++] = c;
    xml->text[xml->text_len] = '\0';
}

static void add_code_point(struct xml *xml, uint32_t point)
{
    if (point < 0x80) {
        add_byte(xml, (char)point);
    } else if (point < 0x800) {
        add_byte(xml, (char)(0xc0 | point >> 6));
        add_byte(xml, (char)(0x80 | (point & 63)));
    } else if (point < 0x10000) {
        add_byte(xml, (char)(0xe0 | point >> 12));
        add_byte(xml, (char)(0x80 | (point >> 6 & 63)));
        add_byte(xml, (char)(0x80 | (point & 63)));
    } else {
        add_byte(xml, (char)(0xf0 | point >> 18));
        add_byte(xml, (char)(0x80 | (point >> 12 & 63)));
        add_byte(xml, (char)(0x80 | (point >> 6 & 63)));
        add_byte(xml, (char)(0x80 | (point & 63)));
    }
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;
}

/* "#65" or "#x41" */
static bool add_reference(struct xml *xml, const char *ptr, size_t len)
{
    unsigned base = len > 1 && ptr[1] == 'x' ? 16 : 10;
    size_t i = base == 16 ? 2 : 1;
    uint32_t point = 0;
    if (i == len)
        return false;
    for (; i < len; i++) {
        unsigned digit = (unsigned)digit_value(ptr[i]);
        if (digit >= base)
            return false;
        point = point * base + digit;
        if (point > 0x10ffff)
            return false;
    }
    add_code_point(xml, point);
    return true;
}

/* at is behind '&'. */
static bool add_entity(struct xml *xml)
{
    static const struct {
        const char *name;
        char c;
    } entities[] = {{"lt", '<'}, {"gt", '>'}, {"amp", '&'}, {"quot", '"'}, {"apos", '\''}};
    size_t left = (size_t)(xml->end - xml->at);
    const char *stop = memchr(xml->at, ';', left < 12 ? left : 12);
    if (stop == NULL)
        return false;
    const char *ptr = xml->at;
    size_t len = (size_t)(stop - ptr);
    xml->at = stop + 1;
    if (len > 0 && ptr[0] == '#')
        return add_reference(xml, ptr, len);
    for (size_t i = 0; i < ARRAY_LEN(entities); i++)
        if (strlen(entities[i].name) == len && memcmp(entities[i].name, ptr, len) == 0) {
            add_byte(xml, entities[i].c);
            return true;
        }
    return false;
}

/* --- tags --------------------------------------------------------------------------------------*/
static bool skip_to(struct xml *xml, const char *mark)
{
    const char *found = memmem(xml->at, (size_t)(xml->end - xml->at), mark, strlen(mark));
    if (found == NULL)
        return false;
    xml->at = found + strlen(mark);
    return true;
}

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == ':';
}

/* What follows a namespace prefix. */
static struct name read_name(struct xml *xml)
{
    struct name name = {.ptr = xml->at};
    for (; xml->at < xml->end && name_char(*xml->at); xml->at++)
        if (*xml->at == ':')
            name.ptr = xml->at + 1;
    name.len = (size_t)(xml->at - name.ptr);
    return name;
}

/* Attributes up to '>' or '/>'; values may hold '>'. */
static bool skip_attributes(struct xml *xml)
{
    while (xml->at < xml->end && *xml->at != '>') {
        char c = *xml->at++;
        if (c == '<')
            return false;
        if (c == '"' || c == '\'') {
            const char *close = memchr(xml->at, c, (size_t)(xml->end - xml->at));
            if (close == NULL)
                return false;
            xml->at = close + 1;
        }
    }
    if (xml->at == xml->end)
        return false;
    xml->self_closing = xml->at[-1] == '/';
    xml->at++;
    return true;
}

static enum event open_tag(struct xml *xml)
{
    struct name name = read_name(xml);
    if (name.len == 0 || xml->depth == S3_XML_DEPTH_MAX || (xml->depth == 0 && xml->had_root) ||
        !skip_attributes(xml))
        return XML_BAD;
    xml->had_root = true;
    xml->stack[xml->depth++] = name;
    xml->text_len = 0;
    xml->text[0] = '\0';
    xml->text_over = false;
    return XML_OPEN;
}

static enum event close_tag(struct xml *xml)
{
    struct name name = read_name(xml);
    if (xml->depth == 0)
        return XML_BAD;
    const struct name *top = &xml->stack[xml->depth - 1];
    while (xml->at < xml->end && is_space(*xml->at))
        xml->at++;
    if (name.len != top->len || memcmp(name.ptr, top->ptr, name.len) != 0 || xml->at == xml->end ||
        *xml->at++ != '>')
        return XML_BAD;
    return XML_CLOSE;
}

/* at is behind '<'. XML_END: nothing to report, go on. */
static enum event read_tag(struct xml *xml)
{
    size_t left = (size_t)(xml->end - xml->at);
    if (left > 0 && *xml->at == '?')
        return skip_to(xml, "?>") ? XML_END : XML_BAD;
    if (left >= 3 && memcmp(xml->at, "!--", 3) == 0)
        return skip_to(xml, "-->") ? XML_END : XML_BAD;
    if (left > 0 && *xml->at == '/') {
        xml->at++;
        return close_tag(xml);
    }
    return open_tag(xml);
}

/* After XML_CLOSE the element is still on the stack until the next call, with its text. */
static enum event xml_next(struct xml *xml, enum event last)
{
    if (last == XML_CLOSE) {
        xml->depth--;
        xml->text_len = 0;
        xml->text[0] = '\0';
        xml->text_over = false;
    }
    if (xml->self_closing) {
        xml->self_closing = false;
        return XML_CLOSE;
    }
    while (xml->at < xml->end) {
        char c = *xml->at++;
        enum event event = XML_END;
        if (c == '<')
            event = read_tag(xml);
        else if (xml->depth == 0 && !is_space(c))
            event = XML_BAD;
        else if (c == '&')
            event = add_entity(xml) ? XML_END : XML_BAD;
        else if (xml->depth > 0)
            add_byte(xml, c);
        if (event != XML_END)
            return event;
    }
    return xml->depth == 0 && xml->had_root ? XML_END : XML_BAD;
}

static struct xml *xml_open(const char *ptr, size_t len)
{
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    struct xml *xml = calloc(1, sizeof(*xml));
    if (xml == NULL)
        return NULL;
    xml->end = ptr + len;
    xml->at = len >= 3 && memcmp(ptr, byte_order_mark, 3) == 0 ? ptr + 3 : ptr;
    return xml;
}

/* True when the elements from the root are path ("ListBucketResult/Contents/Key"). */
static bool at_path(const struct xml *xml, const char *path)
{
    size_t depth = 0;
    for (;; path++) {
        size_t len = strcspn(path, "/");
        if (depth == xml->depth || xml->stack[depth].len != len ||
            memcmp(xml->stack[depth].ptr, path, len) != 0)
            return false;
        depth++;
        path += len;
        if (*path == '\0')
            return depth == xml->depth;
    }
}

/* --- values ------------------------------------------------------------------------------------*/
/* Into a text for people: printable ASCII, blanks for the rest, cut. */
static void copy_text(const struct xml *xml, char *to, size_t size)
{
    size_t len = xml->text_len < size - 1 ? xml->text_len : size - 1;
    for (size_t i = 0; i < len; i++)
        to[i] = xml->text[i] >= ' ' && xml->text[i] <= '~' ? xml->text[i] : ' ';
    to[len] = '\0';
}

/* Takes an element of an <Error> whose path is base. */
static void take_error(const struct xml *xml, const char *base, struct s3_xml_error *error)
{
    const struct {
        const char *name;
        char *to;
        size_t size;
    } fields[] = {{"Code", error->code, sizeof(error->code)},
                  {"Message", error->message, sizeof(error->message)},
                  {"Region", error->region, sizeof(error->region)},
                  {"Endpoint", error->endpoint, sizeof(error->endpoint)}};
    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        char path[64];
        (void)snprintf(path, sizeof(path), "%s/%s", base, fields[i].name);
        if (at_path(xml, path))
            copy_text(xml, fields[i].to, fields[i].size);
    }
}

bool s3_xml_error_parse(const char *ptr, size_t len, struct s3_xml_error *ret)
{
    struct s3_xml_error error = {0};
    free_mem struct xml *xml = xml_open(ptr, len);
    enum event event = XML_OPEN;
    if (xml == NULL)
        return false;
    while ((event = xml_next(xml, event)) == XML_OPEN || event == XML_CLOSE)
        if (event == XML_CLOSE)
            take_error(xml, "Error", &error);
    if (event != XML_END || error.code[0] == '\0')
        return false;
    *ret = error;
    return true;
}

static bool decode_url(const char *from, char *to, size_t size)
{
    size_t at = 0;
    for (; *from; from++) {
        char c = *from == '+' ? ' ' : *from;
        if (*from == '%') {
            int high = digit_value(from[1]);
            int low = high < 16 ? digit_value(from[2]) : 16;
            if (low == 16 || (high | low) == 0)
                return false;
            c = (char)(high << 4 | low);
            from += 2;
        }
        if (at + 1 >= size)
            return false;
        to[at++] = c;
    }
    to[at] = '\0';
    return at > 0;
}

static bool copy_exact(const struct xml *xml, char *to, size_t size)
{
    if (xml->text_over || xml->text_len >= size)
        return false;
    memcpy(to, xml->text, xml->text_len + 1);
    return true;
}

static bool read_number(const struct xml *xml, uint64_t *ret)
{
    uint64_t value = 0;
    if (xml->text_over || xml->text_len == 0)
        return false;
    for (const char *at = xml->text; *at; at++)
        if (*at < '0' || *at > '9' || !mul_u64(value, 10, &value) ||
            !add_u64(value, (uint64_t)(*at - '0'), &value))
            return false;
    *ret = value;
    return true;
}

/* --- ListObjectsV2 -----------------------------------------------------------------------------*/
/* What decides by absence (no such tag, nothing withdrawn) rests on a list that is whole: a page
 * has to say whether there is more, and to hold as many keys as it says, when it says it. */
struct page_claims {
    bool says_whether, has_count;
    uint64_t key_count;
};

/* EncodingType may stand behind the keys (Ceph) or before them, so the document is read twice: the
 * first time for everything but the keys. */
static bool take_page(const struct xml *xml, struct s3_xml_page *page, struct page_claims *claims)
{
    if (at_path(xml, "ListBucketResult/IsTruncated")) {
        page->truncated = strcmp(xml->text, "true") == 0;
        claims->says_whether = page->truncated || strcmp(xml->text, "false") == 0;
        return claims->says_whether;
    }
    if (at_path(xml, "ListBucketResult/KeyCount")) {
        claims->has_count = true;
        return read_number(xml, &claims->key_count);
    }
    if (at_path(xml, "ListBucketResult/NextContinuationToken"))
        return copy_exact(xml, page->token, sizeof(page->token));
    else if (at_path(xml, "ListBucketResult/EncodingType"))
        return copy_exact(xml, page->encoding, sizeof(page->encoding));
    return true;
}

static bool read_page(const char *ptr, size_t len, struct s3_xml_page *page,
                      struct page_claims *claims)
{
    free_mem struct xml *xml = xml_open(ptr, len);
    enum event event = XML_OPEN;
    bool is_list = false;
    if (xml == NULL)
        return false;
    while ((event = xml_next(xml, event)) == XML_OPEN || event == XML_CLOSE) {
        is_list = is_list || at_path(xml, "ListBucketResult");
        if (event == XML_CLOSE && !take_page(xml, page, claims))
            return false;
    }
    if (page->encoding[0] && strcmp(page->encoding, "url") != 0)
        return false;
    return event == XML_END && is_list && claims->says_whether &&
           (!page->truncated || page->token[0]);
}

static int bad_list(struct err *err)
{
    (void)err_set(err, ERR_STORE, "the server's list of objects cannot be read");
    return err_hint(err, "is the endpoint an S3 server?");
}

struct entry {
    char key[S3_KEY_MAX + 1];
    uint64_t size;
    bool has_size, bad;
};

static void take_entry(const struct xml *xml, bool encoded, struct entry *entry)
{
    if (at_path(xml, "ListBucketResult/Contents/Key"))
        entry->bad |=
            xml->text_over || (encoded ? !decode_url(xml->text, entry->key, sizeof(entry->key))
                                       : !copy_exact(xml, entry->key, sizeof(entry->key)));
    else if (at_path(xml, "ListBucketResult/Contents/Size"))
        entry->bad |= !(entry->has_size = read_number(xml, &entry->size));
}

int s3_xml_list_parse(const char *ptr, size_t len,
                      int (*each)(void *ctx, const char *key, uint64_t size, struct err *err),
                      void *ctx, struct s3_xml_page *ret, struct err *err)
{
    free_mem struct s3_xml_page *page = calloc(1, sizeof(*page));
    free_mem struct xml *xml = xml_open(ptr, len);
    struct entry entry = {.size = 0};
    struct page_claims claims = {0};
    enum event event = XML_OPEN;
    if (xml == NULL || page == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    if (!read_page(ptr, len, page, &claims))
        return bad_list(err);
    while ((event = xml_next(xml, event)) == XML_OPEN || event == XML_CLOSE) {
        if (event == XML_OPEN)
            continue;
        take_entry(xml, page->encoding[0] != '\0', &entry);
        if (!at_path(xml, "ListBucketResult/Contents"))
            continue;
        if (entry.bad || !entry.has_size || entry.key[0] == '\0')
            return bad_list(err);
        page->count++;
        memcpy(page->last_key, entry.key, sizeof(entry.key));
        int rc = each(ctx, entry.key, entry.size, err);
        if (rc != 0)
            return rc;
        entry = (struct entry){.size = 0};
    }
    assert(event == XML_END); /* as read_page() saw */
    if (claims.has_count && claims.key_count != page->count)
        return bad_list(err);
    *ret = *page;
    return 0;
}

/* --- ListObjectVersions, one text --------------------------------------------------------------*/
bool s3_xml_text_parse(const char *ptr, size_t len, const char *path, char *ret, size_t size)
{
    free_mem struct xml *xml = xml_open(ptr, len);
    enum event event = XML_OPEN;
    size_t root_len = strcspn(path, "/");
    bool good = true, is_it = false;
    if (xml == NULL)
        return false;
    ret[0] = '\0';
    while ((event = xml_next(xml, event)) == XML_OPEN || event == XML_CLOSE) {
        is_it = is_it ||
                (xml->stack[0].len == root_len && memcmp(xml->stack[0].ptr, path, root_len) == 0);
        if (event == XML_CLOSE && at_path(xml, path))
            good = copy_exact(xml, ret, size);
    }
    return event == XML_END && is_it && good;
}

struct versions {
    struct s3_xml_versions_page page;
    struct s3_xml_version version;
    bool says_whether, encoded, bad;
};

static bool copy_key(const struct xml *xml, bool encoded, char *to)
{
    if (encoded)
        return !xml->text_over && decode_url(xml->text, to, S3_KEY_MAX + 1);
    return copy_exact(xml, to, S3_KEY_MAX + 1);
}

/* EncodingType may stand behind what it is about: see take_page(). */
static void take_versions(const struct xml *xml, struct versions *versions)
{
    struct s3_xml_versions_page *page = &versions->page;
    if (at_path(xml, "ListVersionsResult/IsTruncated")) {
        page->truncated = strcmp(xml->text, "true") == 0;
        versions->says_whether = page->truncated || strcmp(xml->text, "false") == 0;
    } else if (at_path(xml, "ListVersionsResult/NextKeyMarker"))
        versions->bad |= xml->text_len > 0 && !copy_key(xml, versions->encoded, page->key_marker);
    else if (at_path(xml, "ListVersionsResult/NextVersionIdMarker"))
        versions->bad |= !copy_exact(xml, page->version_marker, sizeof(page->version_marker));
    else if (at_path(xml, "ListVersionsResult/Version/Key") ||
             at_path(xml, "ListVersionsResult/DeleteMarker/Key"))
        versions->bad |= !copy_key(xml, versions->encoded, versions->version.key);
    else if (at_path(xml, "ListVersionsResult/Version/VersionId") ||
             at_path(xml, "ListVersionsResult/DeleteMarker/VersionId"))
        versions->bad |= !copy_exact(xml, versions->version.version, S3_VERSION_MAX + 1);
    else if (at_path(xml, "ListVersionsResult/Version/ETag"))
        copy_text(xml, versions->version.etag, sizeof(versions->version.etag));
}

/* each NULL: only what the page says of itself. */
static int read_versions(const char *ptr, size_t len, struct versions *versions,
                         int (*each)(void *ctx, const struct s3_xml_version *version,
                                     struct err *err),
                         void *ctx, struct err *err)
{
    free_mem struct xml *xml = xml_open(ptr, len);
    enum event event = XML_OPEN;
    if (xml == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    while ((event = xml_next(xml, event)) == XML_OPEN || event == XML_CLOSE) {
        struct s3_xml_version *version = &versions->version;
        if (event == XML_OPEN)
            continue;
        take_versions(xml, versions);
        version->is_marker = at_path(xml, "ListVersionsResult/DeleteMarker");
        if (!version->is_marker && !at_path(xml, "ListVersionsResult/Version"))
            continue;
        versions->bad |= version->key[0] == '\0' || version->version[0] == '\0';
        versions->page.count++;
        int rc = versions->bad || each == NULL ? 0 : each(ctx, version, err);
        if (rc != 0)
            return rc;
        version->key[0] = version->version[0] = version->etag[0] = '\0';
    }
    return event == XML_END && versions->says_whether && !versions->bad &&
                   (!versions->page.truncated || versions->page.key_marker[0])
               ? 0
               : bad_list(err);
}

int s3_xml_versions_parse(const char *ptr, size_t len,
                          int (*each)(void *ctx, const struct s3_xml_version *version,
                                      struct err *err),
                          void *ctx, struct s3_xml_versions_page *ret, struct err *err)
{
    free_mem struct versions *versions = calloc(1, sizeof(*versions));
    char encoding[8];
    if (versions == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    if (!s3_xml_text_parse(ptr, len, "ListVersionsResult/EncodingType", encoding,
                           sizeof(encoding)) ||
        (encoding[0] && strcmp(encoding, "url") != 0))
        return bad_list(err);
    versions->encoded = encoding[0] != '\0';
    int rc = read_versions(ptr, len, versions, NULL, NULL, err); /* whole, before any is told */
    bool encoded = versions->encoded;
    *versions = (struct versions){.encoded = encoded};
    if (rc == 0)
        rc = read_versions(ptr, len, versions, each, ctx, err);
    if (rc == 0)
        *ret = versions->page;
    return rc;
}

/* --- DeleteObjects -----------------------------------------------------------------------------*/
int s3_xml_delete_parse(const char *ptr, size_t len,
                        int (*each)(void *ctx, const char *key, const struct s3_xml_error *why,
                                    struct err *err),
                        void *ctx, struct err *err)
{
    free_mem struct xml *xml = xml_open(ptr, len);
    struct s3_xml_error error = {0};
    char key[S3_KEY_MAX + 1] = "";
    enum event event = XML_OPEN;
    bool is_result = false;
    if (xml == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    while ((event = xml_next(xml, event)) == XML_OPEN || event == XML_CLOSE) {
        is_result = is_result || at_path(xml, "DeleteResult");
        if (event == XML_OPEN)
            continue;
        take_error(xml, "DeleteResult/Error", &error);
        if (at_path(xml, "DeleteResult/Error/Key"))
            copy_text(xml, key, sizeof(key));
        if (!at_path(xml, "DeleteResult/Error"))
            continue;
        int rc = each(ctx, key, &error, err);
        if (rc != 0)
            return rc;
        key[0] = '\0';
        memset(&error, 0, sizeof(error));
    }
    if (event != XML_END || !is_result)
        return err_set(err, ERR_STORE, "the server's answer to a batch of deletes cannot be read");
    return 0;
}
