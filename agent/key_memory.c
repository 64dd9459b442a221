/* See key_memory.h. */
#include "agent/key_memory.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/file.h>
#include <unistd.h>

#include "agent/json.h"
#include "agent/key_file.h"
#include "agent/log.h"

enum { MEMORY_PATH_MAX = CONF_PATH_MAX + 64 };

#define UNREADABLE UINT64_MAX

static void path_of(const struct conf *conf, const struct repo *repo, char path[MEMORY_PATH_MAX])
{
    char id[ID_TEXT_LEN];
    id_to_text(repo->id, id);
    (void)snprintf(path, MEMORY_PATH_MAX, "%s/keyring-%s.json", conf->state_dir, id);
}

/* 0 when nothing is known; UNREADABLE stays until somebody has looked: it is not written anew. */
static uint64_t recall(const char *path)
{
    free_json json_t *json = NULL;
    struct err err;
    uint64_t generation = 0;
    int rc = json_load_path(path, &json, &err);
    if (rc == 0)
        rc = json_get_u64(json, "generation", ERR_CORRUPT, &generation, &err);
    if (rc < 0 && rc != -ERR_MISSING)
        log_warn(
            "which generations of the key ring were seen here is not known, remove %s to begin "
            "anew: %s",
            path, err.text);
    return rc == -ERR_MISSING ? 0 : rc < 0 ? UNREADABLE : generation;
}

/* Who comes later may know less: the highest stays. Whoever writes holds the directory. */
static void remember(const char *state_dir, const char *path, uint32_t generation)
{
    close_fd int fd = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX) == 0 && recall(path) >= generation)
        return;
    free_json json_t *json = json_pack("{s:I}", "generation", (json_int_t)generation);
    struct err err;
    if (json_save(path, json, true, &err) < 0)
        log_warn("generation %08" PRIx32 " of the key ring is not remembered: %s", generation,
                 err.text);
}

int key_memory_check(const struct conf *conf, const struct repo *repo, struct store *store,
                     struct err *err)
{
    char path[MEMORY_PATH_MAX];
    struct keyring_info info;
    if (!store_keys(store) || access(conf->state_dir, W_OK) < 0)
        return 0;
    keyring_describe(store_keys(store), &info);
    path_of(conf, repo, path);
    uint64_t known = recall(path);
    if (known == UNREADABLE)
        return 0;
    if (info.generation < known) { /* a `rotate` may have come in between */
        int rc = key_file_unlock(conf, REPOSITORY_JOBS, store, repo, err);
        if (rc < 0)
            return rc;
        keyring_describe(store_keys(store), &info);
    }
    if (info.generation < known) {
        (void)err_set(err, ERR_REFUSED,
                      "the key ring of %s is of generation %08" PRIx32
                      ", and this host has seen %08" PRIx64,
                      conf->repository_url, info.generation, known);
        return err_hint(err,
                        "somebody has put an older one back: put key/%08" PRIx64 " back from a "
                        "copy; if an older copy of the whole repository is there on purpose, "
                        "remove %.120s",
                        known, path);
    }
    if (info.generation > known)
        remember(conf->state_dir, path, info.generation);
    return 0;
}
