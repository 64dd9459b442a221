/* A host of which no configuration says anything: a restore with nothing but the repository. The
 * server comes back as it was, so its archive_command looks for a configuration that only the old
 * host had. */
#include "agent/restore.h"
#include "agent/repository_access.h"

#include <stdio.h>

static const char usual[] = "/etc/tidemark/tidemark.conf";

bool restore_host_is_configured(const struct restore *restore)
{
    return restore->job->conf.data_directory[0];
}

/* WAL that goes under another cluster's name is where no restore looks for it. */
void restore_host_advice(const struct restore *restore, char *ret, size_t size)
{
    const char *more = repository_directory(&restore->conf) ? "" : ", its endpoint and its keys";
    const char *sealed = restore->repo.cipher == REPO_PLAIN
                             ? ""
                             : ", `[wal]` and `key_file = …` (`tidemark key wal` makes the file)";
    (void)snprintf(
        ret, size,
        "write %s, readable for the server's user, with the lines `[tidemark]`, "
        "`cluster = %s`, `[repository]` and `url = %s`%s%s; archiving then catches up by "
        "itself",
        usual, restore->record.cluster, restore->conf.repository_url, more, sealed);
}

/* The file that archive_command reads when it names none. */
static bool names_repository(const struct restore *restore)
{
    struct err ignored;
    struct conf *conf = malloc(sizeof(*conf)); /* large */
    if (!conf)
        abort();
    bool names = conf_load(usual, conf, &ignored) == 0 && conf->repository_url[0] &&
                 strcmp(conf->cluster, restore->record.cluster) == 0;
    free(conf);
    return names;
}

void restore_host_warn(const struct restore *restore, json_t *warnings)
{
    char advice[768];
    if (restore_host_is_configured(restore) || !restore->record.archived ||
        names_repository(restore))
        return;
    restore_host_advice(restore, advice, sizeof(advice));
    json_append_text(
        warnings,
        "the server will not archive, unless its archive_command names the repository: %s", advice);
}
