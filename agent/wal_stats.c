/* `tidemark-wal stats`: what the spools' state files count. */
#include "agent/wal_serve.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>

#include "agent/wal_spool.h"

static void print_stats(const char *name, const struct wal_spool_state *state)
{
    uint64_t gets = state->hits + state->waits + state->misses;
    (void)printf("spool=%s last=%s gets=%" PRIu64 " hits=%" PRIu64 " waits=%" PRIu64
                 " misses=%" PRIu64 " hit_rate=%.1f%% prefetched=%" PRIu64 " discarded=%" PRIu64
                 " failed=%" PRIu64 "\n",
                 name, state->last, gets, state->hits, state->waits, state->misses,
                 gets ? 100.0 * (double)state->hits / (double)gets : 0.0, state->prefetched,
                 state->discarded, state->failed);
}

int wal_serve_stats(const struct wal_command *command)
{
    char base[CONF_PATH_MAX + 1];
    DIR *dir = wal_command_spool(command, NULL, base) ? opendir(base) : NULL;
    if (!dir)
        return 0; /* nothing was ever prefetched */
    for (const struct dirent *entry; (entry = readdir(dir));) {
        struct wal_spool spool = {.state_fd = -1};
        char path[sizeof(spool.dir) + 16];
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s/state", base, entry->d_name);
        spool.state_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (wal_spool_load(&spool))
            print_stats(entry->d_name, &spool.state);
        wal_spool_close(&spool);
    }
    (void)closedir(dir);
    return 0;
}
