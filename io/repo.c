/* The repository's identity and the names of its objects: see repo.h. */
#include "io/repo.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "io/keyring.h"

static const char repo_object[] = "tidemark.repo";
static const char repo_object_copy[] = "tidemark.repo.copy";

bool repo_name_valid(const char *text, size_t len_max)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t len = strlen(text);
    if (len == 0 || len > len_max || strspn(text, allowed) != len)
        return false;
    return strcmp(text, ".") != 0 && strcmp(text, "..") != 0;
}

bool repo_tag_valid(const char *tag)
{
    uint8_t id[ID_LEN];
    return repo_name_valid(tag, 30) && strcmp(tag, "latest") != 0 && !id_from_text(tag, id);
}

static void pack_like_name(char *name, const char *prefix, const uint8_t volume[ID_LEN],
                           const uint8_t snapshot[ID_LEN], uint32_t number)
{
    char volume_text[ID_TEXT_LEN], snapshot_text[ID_TEXT_LEN];
    id_to_text(volume, volume_text);
    id_to_text(snapshot, snapshot_text);
    (void)snprintf(name, STORE_NAME_MAX + 1, "%s/%s/%s/%08" PRIx32, prefix, volume_text,
                   snapshot_text, number);
}

void repo_pack_name(char *name, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                    uint32_t number)
{
    pack_like_name(name, "pack", volume, snapshot, number);
}

void repo_table_name(char *name, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN],
                     uint32_t number)
{
    pack_like_name(name, "table", volume, snapshot, number);
}

void repo_manifest_name(char *name, const uint8_t volume[ID_LEN], const uint8_t snapshot[ID_LEN])
{
    char volume_text[ID_TEXT_LEN], snapshot_text[ID_TEXT_LEN];
    id_to_text(volume, volume_text);
    id_to_text(snapshot, snapshot_text);
    (void)snprintf(name, STORE_NAME_MAX + 1, "volume/%s/%s", volume_text, snapshot_text);
}

void repo_record_name(char *name, const char *cluster, const char *node,
                      const uint8_t snapshot[ID_LEN])
{
    char snapshot_text[ID_TEXT_LEN];
    id_to_text(snapshot, snapshot_text);
    (void)snprintf(name, STORE_NAME_MAX + 1, "snapshot/%s/%s/%s.json", cluster, node,
                   snapshot_text);
}

void repo_wal_name(char *name, const char *cluster, uint64_t system_id, uint32_t timeline,
                   const char *file)
{
    (void)snprintf(name, STORE_NAME_MAX + 1, "wal/%s/%" PRIu64 "/%08" PRIX32 "/%s", cluster,
                   system_id, timeline, file);
}

static int refuse_existing(struct store *store, struct err *err)
{
    (void)err_set(err, ERR_REFUSED, "%s already holds a repository", store_url(store));
    return err_hint(err, "use it as it is, or choose an empty place");
}

/* ERR_REFUSED when the copy is there although tidemark.repo may be lost: a new identity beside old
 * objects would make them unreadable. */
static int refuse_copy(struct store *store, struct err *err)
{
    uint64_t size;
    int rc = store_size(store, repo_object_copy, &size, err);
    if (rc == 0)
        return refuse_existing(store, err);
    return rc == -ERR_MISSING ? 0 : rc;
}

static int refuse_object(void *ctx, const char *name, uint64_t size, struct err *err)
{
    static const char *const prefixes[] = {"snapshot/", "pack/", "wal/"};
    const struct store *store = ctx;
    bool ours = false;
    (void)size;
    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++)
        ours = ours || strncmp(name, prefixes[i], strlen(prefixes[i])) == 0;
    if (!ours)
        return 0;
    (void)err_set(err, ERR_REFUSED, "%s has no %s, but what a repository left: '%.150s'",
                  store_url(store), repo_object, name);
    return err_hint(err,
                    "bring %s or its copy back, from another copy of the repository or, in a "
                    "bucket that keeps versions, from behind a delete marker; or choose an "
                    "empty place",
                    repo_object);
}

static int make(uint32_t chunk_size, enum repo_cipher cipher, struct repo *ret, struct err *err)
{
    struct repo repo = {.chunk_size = chunk_size, .region_size = FMT_REGION_SIZE, .cipher = cipher};
    uint8_t seed[ID_LEN];
    if (!fmt_chunk_size_valid(chunk_size))
        return err_set(err, ERR_USAGE, "chunk size %" PRIu32 " is not 16, 32 or 64 KiB",
                       chunk_size);
    int rc = id_random(repo.id, err);
    if (rc == 0)
        rc = id_random(seed, err);
    if (rc < 0)
        return rc;
    repo.digest_seed = get_le64(seed);
    repo.created_s = (int64_t)time(NULL);
    *ret = repo;
    return 0;
}

static int create(struct store *store, const struct repo *repo, struct err *err)
{
    uint8_t object[FMT_REPO_LEN];
    int rc = refuse_copy(store, err);
    if (rc == 0)
        rc = store_list(store, "", refuse_object, store, err); /* the same where both are lost */
    if (rc < 0)
        return rc;
    fmt_repo_encode(repo, object);
    rc = store_put(store, repo_object, object, sizeof(object), err);
    if (rc == STORE_EXISTS)
        return refuse_existing(store, err);
    if (rc < 0)
        return rc;
    rc = store_put(store, repo_object_copy, object, sizeof(object), err);
    if (rc != 0) {
        struct err ignored; /* the first error is what the caller must see */
        (void)store_remove(store, repo_object, &ignored);
        return rc == STORE_EXISTS ? refuse_existing(store, err) : rc;
    }
    return 0;
}

int repo_create(struct store *store, uint32_t chunk_size, struct repo *ret, struct err *err)
{
    struct repo repo;
    int rc = make(chunk_size, REPO_PLAIN, &repo, err);
    if (rc == 0)
        rc = create(store, &repo, err);
    if (rc == 0)
        *ret = repo;
    return rc;
}

/* Without a key ring nobody can use what would be left. */
static void undo_create(struct store *store)
{
    struct err ignored;
    (void)store_remove(store, repo_object, &ignored);
    (void)store_remove(store, repo_object_copy, &ignored);
}

int repo_create_sealed(struct store *store, uint32_t chunk_size, const struct key_secret *secret,
                       struct repo *ret, struct err *err)
{
    struct repo repo;
    int rc = make(chunk_size, REPO_AES_256_GCM, &repo, err);
    if (rc == 0)
        rc = create(store, &repo, err);
    if (rc < 0)
        return rc;
    rc = keyring_create(store, &repo, secret, err);
    if (rc < 0) {
        undo_create(store);
        return rc;
    }
    *ret = repo;
    return 0;
}

static int repo_read_once(struct store *store, const char *name, struct repo *ret, struct err *err)
{
    free_mem void *buf = NULL;
    size_t len;
    int rc = store_get_all(store, name, FMT_REPO_LEN, &buf, &len, err);
    if (rc < 0)
        return rc;
    rc = fmt_repo_decode(buf, len, ret, err);
    return rc < 0 ? err_prefix(err, "%s", name) : 0;
}

static int repo_read(struct store *store, const char *name, struct repo *ret, struct err *err)
{
    int rc = -ERR_CORRUPT;
    for (unsigned i = 0; rc == -ERR_CORRUPT && i < STORE_READ_TRIES; i++)
        rc = repo_read_once(store, name, ret, err);
    return rc;
}

int repo_open(struct store *store, struct repo *ret, bool *ret_used_copy, struct err *err)
{
    struct repo repo;
    int rc = repo_read(store, repo_object, &repo, err);
    bool use_copy = rc == -ERR_MISSING || rc == -ERR_CORRUPT;
    if (use_copy) {
        struct err copy_err;
        int copy_rc = repo_read(store, repo_object_copy, &repo, &copy_err);
        if (copy_rc == -ERR_MISSING && rc == -ERR_MISSING) {
            (void)err_set(err, ERR_MISSING, "%s holds no repository: there is no %s",
                          store_url(store), repo_object);
            return err_hint(err, "check the URL and that it is mounted; `tidemark init` makes a "
                                 "new repository");
        }
        if (copy_rc < 0 && copy_rc != -ERR_MISSING)
            *err = copy_err;
        if (copy_rc == -ERR_CORRUPT || (copy_rc == -ERR_MISSING && rc == -ERR_CORRUPT))
            return err_hint(err, "put one of the two objects back from another copy of the "
                                 "repository: both hold the same bytes");
        if (copy_rc < 0)
            return copy_rc;
        rc = 0;
    }
    if (rc < 0)
        return rc;
    if (repo.cipher != REPO_PLAIN)
        store_set_sealed(store);
    *ret = repo;
    *ret_used_copy = use_copy;
    return 0;
}
