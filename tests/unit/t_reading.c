/* The marks of who reads a snapshot: another one now and then, the older ones stay until the end; a
 * first one that cannot be put is put later. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "tests/tap.h"
#include "tests/unit/record_fixture.h"

#include "agent/mark.h"
#include "agent/reading.h"

static struct err err;
static char directory[] = "/tmp/tidemark-t_reading-XXXXXX";
static struct store *store;
static struct repo repo;
static struct job *job;
static struct record *record;
static struct reading_mark reading;

static size_t count(char ret_first[STORE_NAME_MAX + 1])
{
    struct mark_names names = {.items = NULL};
    struct err ignored;
    (void)mark_names(store, "reading/", &names, &ignored);
    size_t found = names.count;
    if (found && ret_first)
        (void)snprintf(ret_first, STORE_NAME_MAX + 1, "%s", names.items[0]);
    free(names.items);
    return found;
}

static bool wait_for(size_t marks)
{
    const struct timespec tick = {.tv_nsec = 50000000};
    for (unsigned i = 0; i < 1200 && count(NULL) < marks; i++)
        (void)nanosleep(&tick, NULL);
    return count(NULL) >= marks;
}

static void test_renewed(void)
{
    char first[STORE_NAME_MAX + 1] = "";
    uint64_t size;
    is_good(reading_begin(&reading, store, &repo, job, record, true, &err), &err, "begin");
    is_u64(count(first), 1, "a mark");
    ok(wait_for(3), "then more of them");
    is_good(store_size(store, first, &size, &err), &err, "and the first one stays");
    reading_pause(&reading);
    ok(count(NULL) >= 3, "a pause keeps them");
    reading_end(&reading, store, job, record->id);
    is_u64(count(NULL), 0, "the end removes all");
}

/* FORMAT.md §8: `why` is a string, or missing. */
static void test_text(void)
{
    char name[STORE_NAME_MAX + 1] = "";
    size_t len = 0;
    is_good(reading_begin(&reading, store, &repo, job, record, true, &err), &err, "begin");
    (void)count(name);
    free_mem void *object = NULL;
    is_good(store_get_all(store, name, 4096, &object, &len, &err), &err, "the mark");
    ok(len > 0 && memmem(object, len, "\"by\"", 4) && !memmem(object, len, "why", 3),
       "has no key why");
    reading_end(&reading, store, job, record->id);
}

/* The store has a file where the marks' directory would be. */
static void test_late(void)
{
    char path[600];
    (void)snprintf(path, sizeof(path), "%s/repo/reading", directory);
    (void)rmdir(path);
    FILE *file = fopen(path, "w");
    ok(file && fclose(file) == 0, "marks cannot be put");
    is_good(reading_begin(&reading, store, &repo, job, record, true, &err), &err,
            "a job begins all the same");
    (void)unlink(path);
    ok(wait_for(1), "and has its mark when they can");
    reading_end(&reading, store, job, record->id);
    is_u64(count(NULL), 0, "until its end");
}

int main(void)
{
    char url[600], command[600];
    (void)setenv("TIDEMARK_TEST_RENEW_S", "1", 1);
    job = calloc(1, sizeof(*job));
    record = calloc(1, sizeof(*record));
    if (!mkdtemp(directory) || !job || !record)
        return 1;
    (void)snprintf(url, sizeof(url), "file://%s/repo", directory);
    is_good(store_open(url, NULL, true, &store, &err), &err, "a store");
    is_good(repo_create(store, 32 << 10, &repo, &err), &err, "a repository");
    fixture_record(record, 0x10, "read");
    (void)snprintf(job->id, sizeof(job->id), "%s", "0123456789abcdef0123456789abcdef");
    (void)snprintf(job->conf.node, sizeof(job->conf.node), "db1");
    test_renewed();
    test_text();
    test_late();
    store_close(store);
    record_release(record);
    free(record);
    free(job);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    return system(command) != 0 || done();
}
