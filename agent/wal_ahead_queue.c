/* See wal_ahead_queue.h. */
#include "agent/wal_ahead_queue.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "agent/clock.h"
#include "agent/repository_access.h"
#include "agent/wal_ready.h"
#include "agent/wal_serve.h"

enum {
    PUSHERS_MAX = 64,
    PUSH_MEMORY = 256 << 20, /* bytes: a push holds a file and its object at once */
    /* A file that is written to within one tick of the clock keeps its times: what is read has to
     * be older than that. */
    TICK_MS = 20,
    /* A push that ends so long after its thread has asked who the repository is asks again. */
    IDENTITY_MS = 1000,
};

enum file_state {
    FILE_WAITING,
    FILE_AT_WORK,
    FILE_STORED, /* id says which file */
    FILE_FAILED, /* err says why */
    FILE_UNSURE, /* it changed while it was read */
};

struct queued_file {
    char name[WAL_NAME_MAX + 1];
    enum file_state state;
    struct wal_file_id id;
    uint64_t failed_ms;
    struct err err;
};

/* What a thread pushes over. */
struct pusher {
    struct ahead_queue *queue;
    struct wal_connection connection; /* archive.store NULL = none */
    uint64_t asked_ms;                /* before the question that was answered last */
};

struct ahead_queue {
    struct wal_command command; /* a copy: what a push by itself would have */
    const char *wal_path;
    int wal_fd, wake_fd;
    pthread_t threads[PUSHERS_MAX];
    unsigned thread_count;
    struct wal_ready ready; /* of the thread that scans */
    /* Everything below is under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    struct queued_file *files, *spare; /* WAL_READY_MAX each, in order */
    size_t count;
    bool proven; /* one is stored */
    bool led;    /* the first has been read: others may be, too */
    bool stopped;
    unsigned at_work;
    unsigned connected, connecting; /* early: in all, and just now */
    uint64_t memory;                /* bytes, of those at work */
};

void ahead_test_step(void)
{
    static atomic_uint steps;
    const char *kill_at = getenv("TIDEMARK_TEST_AHEAD_KILL");
    if (kill_at && atomic_fetch_add(&steps, 1) + 1 == strtoul(kill_at, NULL, 10))
        (void)raise(SIGKILL);
}

static struct queued_file *find(struct ahead_queue *queue, const char *name)
{
    for (size_t i = 0; i < queue->count; i++)
        if (strcmp(queue->files[i].name, name) == 0)
            return &queue->files[i];
    return NULL;
}

/* --- the repository -----------------------------------------------------------------------------
 */

static bool is_local(const struct ahead_queue *queue)
{
    return repository_directory(&queue->command.conf) != NULL;
}

static int open_connection(struct pusher *pusher, struct err *err)
{
    pusher->asked_ms = now_ms();
    wal_disconnect(&pusher->connection);
    return wal_connect(&pusher->queue->command, &pusher->connection, err);
}

/* Asks over the open connection. Without --repository-id any repository may be the right one, but
 * it has to stay the same: what is at work was made for it. */
static int ask_again(struct pusher *pusher, struct err *err)
{
    uint8_t was[ID_LEN];
    uint64_t now = now_ms();
    memcpy(was, pusher->connection.repo.id, ID_LEN);
    int rc = wal_identify(&pusher->queue->command, &pusher->connection, err);
    if (rc < 0)
        return rc;
    if (memcmp(was, pusher->connection.repo.id, ID_LEN) != 0)
        return err_set(err, ERR_STORE, "another repository has taken the place of %s",
                       pusher->queue->command.conf.repository_url);
    pusher->asked_ms = now;
    return 0;
}

static bool is_stale(const struct pusher *pusher)
{
    return now_ms() - pusher->asked_ms >= IDENTITY_MS;
}

/* The repository that answers now, not the one that did some time ago: a directory may have been
 * unmounted, a bucket emptied. A directory is opened anew for each file; a connection is kept, and
 * asked when it has not been for IDENTITY_MS. */
static int renew(struct pusher *pusher, struct err *err)
{
    if (pusher->connection.archive.store == NULL || is_local(pusher->queue))
        return open_connection(pusher, err);
    return is_stale(pusher) ? ask_again(pusher, err) : 0;
}

/* The same of a connection, where something took long: a push, tried again and again maybe, over
 * connections that are no longer the first one. A directory is the one that was opened. */
static int confirm(struct pusher *pusher, struct err *err)
{
    return is_stale(pusher) && !is_local(pusher->queue) ? ask_again(pusher, err) : 0;
}

/* --- one push -----------------------------------------------------------------------------------
 */

static bool is_young(const struct wal_file_id *id)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    uint64_t now_in_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    return id->changed_s * 1000 + id->changed_ns / 1000000 + TICK_MS > now_in_ms;
}

enum turn { TURN_NOW, TURN_LATER, TURN_NEVER };

/* Until one file is stored, no other than the first of those at work may be. */
static enum turn turn_of(const struct ahead_queue *queue, const char *name)
{
    bool first = true;
    for (size_t i = 0; i < queue->count; i++) {
        if (strcmp(queue->files[i].name, name) == 0)
            return queue->proven    ? TURN_NOW
                   : queue->stopped ? TURN_NEVER
                   : first          ? TURN_NOW
                                    : TURN_LATER;
        first = first && queue->files[i].state != FILE_AT_WORK;
    }
    return TURN_NEVER; /* a scan has dropped it: somebody else has pushed it */
}

/* False when it may never be stored. */
static bool wait_turn(struct ahead_queue *queue, const char *name)
{
    (void)pthread_mutex_lock(&queue->lock);
    if (!queue->led)
        (void)pthread_cond_broadcast(&queue->moved);
    queue->led = true;
    enum turn turn;
    while ((turn = turn_of(queue, name)) == TURN_LATER)
        (void)pthread_cond_wait(&queue->moved, &queue->lock);
    (void)pthread_mutex_unlock(&queue->lock);
    return turn == TURN_NOW;
}

/* FILE_STORED, FILE_WAITING when it may not be, or FILE_FAILED with err. */
static enum file_state store(struct pusher *pusher, const char *path, const char *name,
                             struct err *err)
{
    const struct wal_archive *archive = &pusher->connection.archive;
    struct wal_object *object = NULL;
    enum file_state state = FILE_FAILED;
    if (renew(pusher, err) < 0 || wal_object_read(archive, path, name, &object, err) < 0)
        return FILE_FAILED;
    if (!wait_turn(pusher->queue, name))
        state = FILE_WAITING;
    else if (confirm(pusher, err) == 0 && wal_object_store(archive, object, err) == 0 &&
             confirm(pusher, err) == 0)
        state = FILE_STORED;
    wal_object_free(object);
    return state;
}

/* FILE_STORED with *ret_id, FILE_WAITING, FILE_UNSURE, or FILE_FAILED with err. */
static enum file_state push(struct pusher *pusher, const char *name, struct wal_file_id *ret_id,
                            struct err *err)
{
    const struct ahead_queue *queue = pusher->queue;
    char path[CONF_PATH_MAX + WAL_NAME_MAX + 2];
    struct wal_file_id before, after;
    if (!wal_file_identify(queue->wal_fd, name, &before))
        return FILE_UNSURE;
    if (is_young(&before)) {
        pause_ms(TICK_MS);
        if (!wal_file_identify(queue->wal_fd, name, &before) || is_young(&before))
            return FILE_UNSURE;
    }
    (void)snprintf(path, sizeof(path), "%s/%s", queue->wal_path, name);
    enum file_state state = store(pusher, path, name, err);
    if (state != FILE_STORED)
        return state;
    if (!wal_file_identify(queue->wal_fd, name, &after) ||
        memcmp(&before, &after, sizeof(before)) != 0)
        return FILE_UNSURE;
    *ret_id = before;
    return FILE_STORED;
}

/* --- threads ------------------------------------------------------------------------------------
 */

/* Bytes that a push of it takes. */
static uint64_t memory_of(const struct ahead_queue *queue, const char *name)
{
    struct wal_file_id id;
    return wal_file_identify(queue->wal_fd, name, &id) ? 2 * id.size : 0;
}

static bool is_history(const char *name)
{
    enum wal_kind kind;
    return wal_name_parse(name, &kind, NULL) && kind == WAL_HISTORY;
}

/* The next file that may begin, or NULL; marks it. */
static struct queued_file *begin(struct ahead_queue *queue, uint64_t *ret_memory)
{
    if (!queue->proven && !queue->led && queue->at_work > 0)
        return NULL;
    for (size_t i = 0; i < queue->count; i++) {
        struct queued_file *file = &queue->files[i];
        if (file->state == FILE_WAITING) {
            uint64_t memory = memory_of(queue, file->name);
            if (queue->at_work > 0 && queue->memory + memory > PUSH_MEMORY)
                return NULL;
            file->state = FILE_AT_WORK;
            queue->at_work++;
            queue->memory += memory;
            *ret_memory = memory;
            return file;
        }
        if (file->state != FILE_STORED && is_history(file->name))
            return NULL;
    }
    return NULL;
}

static void end(struct ahead_queue *queue, const char *name, enum file_state state,
                const struct wal_file_id *id, const struct err *err)
{
    static const uint64_t one = 1;
    struct queued_file *file = find(queue, name); /* a scan may have moved or dropped it */
    if (file) {
        file->state = state;
        file->id = *id;
        file->failed_ms = now_ms();
        file->err = *err;
    }
    queue->proven |= state == FILE_STORED;
    queue->stopped |= state == FILE_FAILED;
    (void)pthread_cond_broadcast(&queue->moved);
    ssize_t ignored = write(queue->wake_fd, &one, sizeof(one));
    (void)ignored; /* its counter cannot be full */
}

static unsigned count_waiting(const struct ahead_queue *queue)
{
    unsigned count = 0;
    for (size_t i = 0; i < queue->count; i++)
        count += queue->files[i].state == FILE_WAITING;
    return count;
}

/* While the first file is read, those that will have one soon connect, which takes as long. Called
 * and left with the lock. What fails here fails again, and is told, when a file begins. */
static bool connect_early(struct ahead_queue *queue, struct pusher *pusher)
{
    struct err ignored;
    if (pusher->asked_ms > 0 || queue->proven || is_local(queue) ||
        queue->connected >= count_waiting(queue))
        return false;
    queue->connected++;
    queue->connecting++;
    (void)pthread_mutex_unlock(&queue->lock);
    (void)open_connection(pusher, &ignored);
    (void)pthread_mutex_lock(&queue->lock);
    queue->connecting--;
    return true;
}

static void *pusher_main(void *arg)
{
    struct ahead_queue *queue = arg;
    struct pusher pusher = {.queue = queue};
    struct queued_file *file;
    struct wal_file_id id = {0};
    struct err err;
    uint64_t memory = 0;
    char name[WAL_NAME_MAX + 1];
    (void)pthread_mutex_lock(&queue->lock);
    while (!queue->stopped) {
        if ((file = begin(queue, &memory)) == NULL) {
            if (!connect_early(queue, &pusher))
                (void)pthread_cond_wait(&queue->moved, &queue->lock);
            continue;
        }
        (void)snprintf(name, sizeof(name), "%s", file->name);
        (void)pthread_mutex_unlock(&queue->lock);
        ahead_test_step();
        err_clear(&err);
        enum file_state state = push(&pusher, name, &id, &err);
        ahead_test_step();
        (void)pthread_mutex_lock(&queue->lock);
        queue->at_work--;
        queue->memory -= memory;
        end(queue, name, state, &id, &err);
    }
    (void)pthread_mutex_unlock(&queue->lock);
    wal_disconnect(&pusher.connection);
    return NULL;
}

bool ahead_queue_start(struct ahead_queue *queue)
{
    unsigned wanted = wal_useful_threads(&queue->command.conf, queue->command.conf.wal_push_ahead);
    while (queue->thread_count < wanted &&
           pthread_create(&queue->threads[queue->thread_count], NULL, pusher_main, queue) == 0)
        queue->thread_count++;
    return queue->thread_count > 0;
}

void ahead_queue_stop(struct ahead_queue *queue)
{
    (void)pthread_mutex_lock(&queue->lock);
    queue->stopped = true;
    (void)pthread_cond_broadcast(&queue->moved);
    (void)pthread_mutex_unlock(&queue->lock);
}

/* --- for the thread that answers ----------------------------------------------------------------
 */

struct ahead_queue *ahead_queue_make(const struct wal_command *command, const char *wal_path,
                                     int wal_fd, int wake_fd)
{
    struct ahead_queue *queue = calloc(1, sizeof(*queue));
    if (!queue)
        return NULL;
    queue->command = *command;
    queue->command.verb = WAL_PUSH;
    queue->wal_path = wal_path;
    queue->wal_fd = wal_fd;
    queue->wake_fd = wake_fd;
    (void)pthread_mutex_init(&queue->lock, NULL);
    (void)pthread_cond_init(&queue->moved, NULL);
    queue->files = calloc(WAL_READY_MAX, sizeof(*queue->files));
    queue->spare = calloc(WAL_READY_MAX, sizeof(*queue->spare));
    if (!queue->files || !queue->spare) {
        ahead_queue_free(queue);
        return NULL;
    }
    return queue;
}

void ahead_queue_free(struct ahead_queue *queue)
{
    if (!queue)
        return;
    ahead_queue_stop(queue);
    for (unsigned i = 0; i < queue->thread_count; i++)
        (void)pthread_join(queue->threads[i], NULL);
    (void)pthread_cond_destroy(&queue->moved);
    (void)pthread_mutex_destroy(&queue->lock);
    free(queue->files);
    free(queue->spare);
    free(queue);
}

void ahead_queue_scan(struct ahead_queue *queue)
{
    if (!wal_ready_scan(queue->wal_fd, &queue->ready))
        return;
    (void)pthread_mutex_lock(&queue->lock);
    for (size_t i = 0; i < queue->ready.count; i++) {
        struct queued_file *to = &queue->spare[i];
        const struct queued_file *known = find(queue, queue->ready.names[i]);
        memset(to, 0, sizeof(*to));
        (void)snprintf(to->name, sizeof(to->name), "%s", queue->ready.names[i]);
        if (known)
            *to = *known;
    }
    struct queued_file *old = queue->files;
    queue->files = queue->spare;
    queue->spare = old;
    queue->count = queue->ready.count;
    (void)pthread_cond_broadcast(&queue->moved);
    (void)pthread_mutex_unlock(&queue->lock);
}

struct ahead_queue_state ahead_queue_look(struct ahead_queue *queue)
{
    (void)pthread_mutex_lock(&queue->lock);
    struct ahead_queue_state state = {.waiting = count_waiting(queue),
                                      .at_work = queue->at_work + queue->connecting,
                                      .stopped = queue->stopped};
    (void)pthread_mutex_unlock(&queue->lock);
    return state;
}

static enum wal_ahead_word word_for(const struct ahead_queue *queue, const struct queued_file *file,
                                    const struct wal_ahead_ask *ask, uint64_t asked_ms)
{
    switch (file->state) {
    case FILE_WAITING:
        return queue->stopped ? AHEAD_NOT_OURS : AHEAD_WORKING;
    case FILE_AT_WORK:
        return AHEAD_WORKING;
    case FILE_STORED:
        return memcmp(&file->id, &ask->file, sizeof(file->id)) == 0 ? AHEAD_PUSHED : AHEAD_NOT_OURS;
    case FILE_FAILED:
        return asked_ms <= file->failed_ms ? AHEAD_FAILED : AHEAD_NOT_OURS;
    case FILE_UNSURE:
        break;
    }
    return AHEAD_NOT_OURS;
}

void ahead_queue_judge(struct ahead_queue *queue, const struct wal_ahead_ask *ask,
                       uint64_t asked_ms, struct wal_ahead_answer *ret, bool *ret_known)
{
    memset(ret, 0, sizeof(*ret));
    ret->word = AHEAD_NOT_OURS;
    (void)pthread_mutex_lock(&queue->lock);
    const struct queued_file *file = find(queue, ask->name);
    *ret_known = file != NULL;
    if (file)
        ret->word = word_for(queue, file, ask, asked_ms);
    if (ret->word == AHEAD_FAILED) {
        ret->code = file->err.code;
        memcpy(ret->text, file->err.text, sizeof(ret->text));
        memcpy(ret->hint, file->err.hint, sizeof(ret->hint));
    }
    (void)pthread_mutex_unlock(&queue->lock);
}
