/* KEY=VALUE words of the command lines of tests/s3/tool_*: endpoint region addressing ca_file
 * connections retry_ms stall_ms seed. Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
 */
#ifndef TIDEMARK_TESTS_S3_OPTIONS_H
#define TIDEMARK_TESTS_S3_OPTIONS_H

#include <stdlib.h>
#include <string.h>

#include "io/store.h"

static void options_set(struct store_s3_options *options, char *text)
{
    char *value = strchr(text, '=');
    if (!value)
        return;
    *value++ = '\0'; /* the words are ours from here on */
    unsigned number = (unsigned)strtoul(value, NULL, 10);
    if (strcmp(text, "endpoint") == 0)
        options->endpoint = value;
    else if (strcmp(text, "region") == 0)
        options->region = value;
    else if (strcmp(text, "ca_file") == 0)
        options->ca_file = value;
    else if (strcmp(text, "addressing") == 0)
        options->addressing = strcmp(value, "path") == 0 ? STORE_S3_PATH : STORE_S3_VIRTUAL;
    else if (strcmp(text, "connections") == 0)
        options->connections = number;
    else if (strcmp(text, "retry_ms") == 0)
        options->retry_timeout_ms = number;
    else if (strcmp(text, "stall_ms") == 0)
        options->stall_timeout_ms = number;
    else if (strcmp(text, "seed") == 0)
        options->seed = number;
}

/* Words that are not known are left for somebody else. */
static void options_read(struct store_s3_options *options, int count, char **words)
{
    *options = (struct store_s3_options){.access_key = getenv("AWS_ACCESS_KEY_ID"),
                                         .secret_key = getenv("AWS_SECRET_ACCESS_KEY")};
    for (int i = 0; i < count; i++)
        options_set(options, words[i]);
}

#endif
