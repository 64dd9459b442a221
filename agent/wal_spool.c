/* The spool of prefetched segments: see wal_spool.h. */
#include "agent/wal_spool.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "agent/pg_names.h"
#include "agent/wal_page.h"

static const char state_magic[8] = "TMSPOOL1";

void wal_spool_path(const struct wal_spool *spool, const char *name, const char *suffix, char *ret,
                    size_t size)
{
    (void)snprintf(ret, size, "%s/%s%s", spool->dir, name, suffix);
}

bool wal_spool_load(struct wal_spool *spool)
{
    struct wal_spool_state state;
    if (spool->state_fd < 0 ||
        pread(spool->state_fd, &state, sizeof(state), 0) != (ssize_t)sizeof(state) ||
        memcmp(state.magic, state_magic, sizeof(state_magic)) != 0 ||
        memchr(state.last, '\0', sizeof(state.last)) == NULL || !wal_name_valid(state.last, NULL) ||
        !pg_segment_size_valid(state.segment_size))
        return false;
    spool->state = state;
    return true;
}

bool wal_spool_open(const char *base, uint64_t system_id, const uint8_t repository_id[ID_LEN],
                    bool create, struct wal_spool *ret)
{
    char id[ID_TEXT_LEN], path[sizeof(ret->dir) + 16];
    memset(ret, 0, sizeof(*ret));
    id_to_text(repository_id, id);
    int len = snprintf(ret->dir, sizeof(ret->dir), "%s/%" PRIu64 "-%s", base, system_id, id);
    ret->state_fd = -1;
    if (len < 0 || (size_t)len >= sizeof(ret->dir))
        return false;
    if (create) {
        (void)mkdir(base, 0700);
        (void)mkdir(ret->dir, 0700);
    }
    wal_spool_path(ret, "state", "", path, sizeof(path));
    ret->state_fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0), 0600);
    if (ret->state_fd < 0)
        return false;
    if (!wal_spool_load(ret))
        memcpy(ret->state.magic, state_magic, sizeof(state_magic));
    return true;
}

void wal_spool_close(struct wal_spool *spool)
{
    if (spool->state_fd >= 0)
        (void)close(take_fd(&spool->state_fd));
}

/* Cheap on purpose: the prefetcher has checked every byte before the file got its name, so here
 * only the identity is looked at. */
static bool segment_fits(int fd, const char *name, uint64_t system_id, uint32_t *ret_size)
{
    uint8_t head[WAL_PAGE_HEADER_LEN];
    struct stat st;
    struct err ignored;
    if (fstat(fd, &st) < 0 || pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head) ||
        wal_page_check(head, sizeof(head), name, system_id, (uint64_t)st.st_size, &ignored) < 0)
        return false;
    *ret_size = (uint32_t)st.st_size;
    return true;
}

bool wal_spool_take(struct wal_spool *spool, const char *name, uint64_t system_id,
                    const char *to_path, uint32_t *ret_size)
{
    char path[sizeof(spool->dir) + WAL_NAME_MAX + 2];
    uint32_t size;
    wal_spool_path(spool, name, "", path, sizeof(path));
    close_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    if (!segment_fits(fd, name, system_id, &size)) {
        (void)unlink(path);
        return false;
    }
    if (rename(path, to_path) < 0) /* another filesystem, … : fetched like any other then */
        return false;
    *ret_size = size;
    return true;
}

void wal_spool_delivered(struct wal_spool *spool, const char *name, uint32_t segment_size,
                         enum wal_spool_event event)
{
    struct wal_spool_state *state = &spool->state;
    (void)snprintf(state->last, sizeof(state->last), "%s", name);
    state->segment_size = segment_size;
    state->hits += event == SPOOL_HIT;
    state->waits += event == SPOOL_WAIT;
    state->misses += event == SPOOL_MISS;
    struct stat st;
    size_t len = offsetof(struct wal_spool_state, prefetched);
    if (fstat(spool->state_fd, &st) == 0 && st.st_size < (off_t)sizeof(*state))
        len = sizeof(*state); /* a new file: the prefetcher's part as well */
    ssize_t ignored = pwrite(spool->state_fd, state, len, 0);
    (void)ignored; /* without it the prefetcher does not move: slower, not wrong */
}

bool wal_spool_busy(const struct wal_spool *spool)
{
    if (flock(spool->state_fd, LOCK_EX | LOCK_NB) < 0)
        return true;
    (void)flock(spool->state_fd, LOCK_UN);
    return false;
}
