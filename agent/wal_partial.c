/* Segments that are not full: see wal.h. An object is never replaced, because a PUT that nobody
 * waits for any more may still be done, minutes later, by a server that had no space or no answer;
 * it would undo the replacement. So what has grown gets a name of its own, and the last one counts.
 */
#include "agent/wal.h"

#include <stdio.h>

#include "agent/pg_names.h"
#include "agent/wal_page.h"

enum { PUSH_TRIES = 3 };

struct last_partial {
    const char *segment;
    char name[WAL_NAME_MAX + 1]; /* "" = there is none */
};

uint32_t wal_partial_number(const char *name)
{
    const char *rest = name + PG_SEGMENT_TEXT; /* behind the dot */
    return rest[0] == 'p' ? 0 : (uint32_t)strtoul(rest, NULL, 16);
}

static int note_partial(void *ctx, const char *object, uint64_t size, struct err *err)
{
    struct last_partial *last = ctx;
    enum wal_kind kind;
    const char *name = strrchr(object, '/') + 1;
    (void)size, (void)err;
    if (wal_name_parse(name, &kind, NULL) && kind == WAL_PARTIAL &&
        strncmp(name, last->segment, PG_SEGMENT_TEXT - 1) == 0 &&
        (!last->name[0] || wal_partial_number(name) > wal_partial_number(last->name)))
        (void)snprintf(last->name, sizeof(last->name), "%s", name);
    return 0;
}

static int find_last(const struct wal_archive *archive, struct last_partial *last, struct err *err)
{
    char prefix[STORE_NAME_MAX + 1];
    uint32_t timeline;
    if (!wal_name_valid(last->segment, &timeline))
        return err_set(err, ERR_INTERNAL, "'%.80s' is not the name of a segment", last->segment);
    repo_wal_name(prefix, archive->cluster, archive->system_id, timeline, "x");
    strrchr(prefix, '/')[1] = '\0';
    return store_list(archive->store, prefix, note_partial, last, err);
}

uint64_t wal_partial_len(const void *raw, size_t len, uint64_t lsn)
{
    uint64_t end = wal_page_count(raw, len, lsn) * WAL_PAGE_LEN;
    while (end > 0 && ((const uint8_t *)raw)[end - 1] == 0)
        end--;
    return end;
}

/* What is to be pushed beside the last one that the archive has. */
struct candidate {
    const char *segment;
    const void *raw;
    size_t len;
    uint64_t lsn; /* of the segment */
    bool behind;  /* it may be the beginning of what is there */
};

/* WAL only grows: all complete pages of the old one must be in the new one. Its last page may
 * differ: a crash left it half written, and the server went on from the last whole record.
 * *ret_done: nothing is to be pushed. */
static int compare_with_last(const struct wal_archive *archive, const struct candidate *new,
                             const char *last, bool *ret_done, struct err *err)
{
    free_mem void *old = NULL;
    size_t old_len;
    int rc = wal_read(archive, last, &old, &old_len, err);
    if (rc < 0)
        return rc;
    uint64_t old_pages = wal_page_count(old, old_len, new->lsn);
    uint64_t new_pages = wal_page_count(new->raw, new->len, new->lsn);
    uint64_t common = min_u64(old_pages, new_pages);
    size_t same = common > 0 ? (size_t)(common - 1) * WAL_PAGE_LEN : 0;
    bool alike = memcmp(old, new->raw, same) == 0;
    *ret_done = (old_len == new->len &&memcmp(old, new->raw, old_len) == 0) ||
                (new->behind &&alike &&new_pages <= old_pages);
    if (!*ret_done && (!alike || new_pages < old_pages || wal_partial_number(last) == UINT32_MAX))
        return err_set(err, ERR_REFUSED,
                       "'%s' in the repository holds other WAL than this server's", last);
    return 0;
}

/* The new one's name: by the count of its bytes, and behind the last one in any case. "" when
 * nothing is to be pushed. */
static int choose_name(const struct wal_archive *archive, const struct candidate *new,
                       char ret_name[WAL_NAME_MAX + 1], struct err *err)
{
    struct last_partial last = {.segment = new->segment};
    uint64_t number = wal_partial_len(new->raw, new->len, new->lsn);
    bool done = false;
    int rc = find_last(archive, &last, err);
    if (rc == 0 && last.name[0])
        rc = compare_with_last(archive, new, last.name, &done, err);
    if (rc == 0 && done)
        rc = wal_flush_name(archive, last.name, err);
    if (rc < 0)
        return rc;
    if (last.name[0])
        number = max_u64(number, (uint64_t)wal_partial_number(last.name) + 1);
    (void)snprintf(ret_name, WAL_NAME_MAX + 1, "%.24s.%08X.partial", new->segment,
                   (unsigned)number);
    if (done)
        ret_name[0] = '\0';
    return 0;
}

int wal_partial_push(const struct wal_archive *archive, const char *path, const char *segment,
                     bool behind, char ret_name[WAL_NAME_MAX + 1], struct err *err)
{
    struct candidate new = {.segment = segment, .behind = behind};
    char name[WAL_NAME_MAX + 1];
    free_mem void *raw = NULL;
    struct wal_page page;
    (void)snprintf(name, sizeof(name), "%.24s.partial", segment);
    int rc = wal_load(archive, path, name, &raw, &new.len, err);
    if (rc == 0)
        rc = wal_page_decode(raw, new.len, &page, err);
    if (rc < 0)
        return rc;
    new.raw = raw;
    new.lsn = page.address;
    /* Refused: another node of the cluster, fenced at the same time, took the name. */
    rc = -ERR_REFUSED;
    for (unsigned i = 0; rc == -ERR_REFUSED && i < PUSH_TRIES; i++) {
        rc = choose_name(archive, &new, name, err);
        if (rc < 0)
            return rc;
        rc = name[0] ? wal_push(archive, path, name, err) : 0;
    }
    if (rc == 0)
        (void)snprintf(ret_name, WAL_NAME_MAX + 1, "%s", name);
    return rc;
}
