/* Drives io/repo.h and agent/wal.h from a test:
 *     tool_wal init URL                                             prints the repository's id
 *     tool_wal check URL CLUSTER SYSTEM_ID NAME
 *     tool_wal read URL CLUSTER SYSTEM_ID NAME                      the raw file on stdout
 *     tool_wal range URL CLUSTER SYSTEM_ID TLI START END SEGMENT_SIZE
 *     tool_wal timelines URL CLUSTER SYSTEM_ID */
#include "agent/log.h"
#include "agent/pg_names.h"
#include "agent/wal.h"

#include <stdio.h>

static int init(const char *url, struct err *err)
{
    struct store *store;
    struct repo repo;
    char id[ID_TEXT_LEN];
    int rc = store_open(url, NULL, true, &store, err);
    if (rc < 0)
        return rc;
    rc = repo_create(store, 32768, &repo, err);
    store_close(store);
    if (rc < 0)
        return rc;
    id_to_text(repo.id, id);
    puts(id);
    return 0;
}

static int print_file(const struct wal_archive *archive, const char *name, struct err *err)
{
    free_mem void *raw = NULL;
    size_t len;
    int rc = wal_read(archive, name, &raw, &len, err);
    if (rc == 0 && fwrite(raw, 1, len, stdout) != len)
        return err_sys(err, ERR_DEVICE, "write to stdout");
    return rc;
}

static int print_timelines(const struct wal_archive *archive, struct err *err)
{
    uint32_t *timelines;
    size_t count;
    int rc = wal_timelines(archive, &timelines, &count, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < count; i++)
        printf("%u\n", timelines[i]);
    free(timelines);
    return 0;
}

static int run_verb(const struct wal_archive *archive, int argc, char **argv, struct err *err)
{
    uint64_t start, end;
    if (strcmp(argv[1], "timelines") == 0)
        return print_timelines(archive, err);
    if (argc == 6 && strcmp(argv[1], "check") == 0)
        return wal_check(archive, argv[5], err);
    if (argc == 6 && strcmp(argv[1], "read") == 0)
        return print_file(archive, argv[5], err);
    if (argc == 9 && strcmp(argv[1], "range") == 0 && pg_lsn_parse(argv[6], &start) &&
        pg_lsn_parse(argv[7], &end))
        return wal_check_range(archive, (uint32_t)strtoul(argv[5], NULL, 10), start, end,
                               (uint32_t)strtoul(argv[8], NULL, 10), err);
    return err_set(err, ERR_USAGE, "usage: see the top of tool_wal.c");
}

int main(int argc, char **argv)
{
    struct err err;
    struct repo repo;
    struct wal_archive archive = {.repo = &repo};
    bool used_copy;
    int rc;
    if (argc == 3 && strcmp(argv[1], "init") == 0) {
        rc = init(argv[2], &err);
    } else if (argc >= 5) {
        snprintf(archive.cluster, sizeof(archive.cluster), "%s", argv[3]);
        archive.system_id = strtoull(argv[4], NULL, 10);
        rc = store_open(argv[2], NULL, false, &archive.store, &err);
        if (rc == 0)
            rc = repo_open(archive.store, &repo, &used_copy, &err);
        if (rc == 0)
            rc = run_verb(&archive, argc, argv, &err);
        store_close(archive.store);
    } else {
        rc = err_set(&err, ERR_USAGE, "usage: see the top of tool_wal.c");
    }
    if (rc == 0)
        return 0;
    log_err(&err);
    return err_exit_status(err.code);
}
