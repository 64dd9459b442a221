/* See api_follow.h. */
#include "agent/api_follow.h"

#include <stdio.h>

#include "agent/job.h"

enum {
    FOLLOW_TICK_MS = 200,
    FOLLOW_REPEAT_TICKS = 50, /* a line every 10 s even when nothing changes finds dead clients */
};

struct api_follow {
    const struct conf *conf;
    const _Atomic bool *stopping;
    char id[ID_TEXT_LEN];
    char *line; /* with its newline; what is left of it starts at sent */
    size_t len, sent;
    char *last;
    bool ended;
};

static void take_line(struct api_follow *follow, char *text)
{
    free(follow->line);
    free(follow->last);
    follow->last = text;
    follow->len = strlen(text) + 1;
    follow->sent = 0;
    follow->line = malloc(follow->len + 1);
    if (!follow->line)
        abort();
    (void)snprintf(follow->line, follow->len + 1, "%s\n", text);
}

/* Blocks until there is a new line, or the job or the server ends. */
static bool wait_line(struct api_follow *follow)
{
    for (unsigned ticks = 0; !atomic_load(follow->stopping); ticks++) {
        free_json json_t *status = NULL;
        struct err err;
        if (job_status(follow->conf, follow->id, &status, &err) < 0)
            return false;
        char *text = json_text(status);
        follow->ended = !json_is_true(json_object_get(status, "running"));
        if (follow->ended || !follow->last || strcmp(text, follow->last) != 0 ||
            ticks >= FOLLOW_REPEAT_TICKS) {
            take_line(follow, text);
            return true;
        }
        free(text);
        job_pause(follow->conf, follow->id, FOLLOW_TICK_MS);
    }
    return false;
}

struct api_follow *api_follow_new(const struct conf *conf, const char *id,
                                  const _Atomic bool *stopping)
{
    struct api_follow *follow = calloc(1, sizeof(*follow));
    if (!follow)
        abort();
    follow->conf = conf;
    follow->stopping = stopping;
    (void)snprintf(follow->id, sizeof(follow->id), "%s", id);
    return follow;
}

size_t api_follow_read(struct api_follow *follow, char *buf, size_t size)
{
    if (follow->sent == follow->len && (follow->ended || !wait_line(follow)))
        return 0;
    size_t len = min_u64(size, follow->len - follow->sent);
    memcpy(buf, follow->line + follow->sent, len);
    follow->sent += len;
    return len;
}

void api_follow_free(void *ctx)
{
    struct api_follow *follow = ctx;
    free(follow->line);
    free(follow->last);
    free(follow);
}
