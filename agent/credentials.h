/* Keys for an s3:// repository. The first of these that is there is taken, whole:
 *
 *   1. the file that is configured (repository.credentials_file, wal.credentials_file or
 *      --credentials-file), and nothing else when one is configured;
 *   2. TIDEMARK_ACCESS_KEY_ID, TIDEMARK_SECRET_ACCESS_KEY, TIDEMARK_SESSION_TOKEN;
 *   3. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN;
 *   4. $AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials, when it exists.
 *
 * A file holds lines `access_key = …`, `secret_key = …` and, for temporary keys, `session_token =
 * …` (or aws_access_key_id, aws_secret_access_key, aws_session_token), comments with # or ;, and
 * optionally [profiles] of which AWS_PROFILE ("default") is read. It belongs to root or to the user
 * who reads it, with mode 0600 or less, or 0640 or less when root owns it: PostgreSQL's own rule
 * for private keys, which allows one file for the agent and the server's group. Somebody else's is
 * refused: its owner could change the keys, and with them in whose bucket the repository is. It is
 * read anew for every store that is opened: a file that is replaced needs no restart.
 *
 * Keys live in memory that core dumps leave out (io/secret.h). Where they came by the environment,
 * or a session token has to be sent in plain headers, they are in other memory as well, and the
 * process gives up its core dumps (PR_SET_DUMPABLE). Job processes inherit the environment or read
 * the file by its name: never by their arguments. Errors name files and variables, never values.
 * Lean. One thread. */
#ifndef TIDEMARK_AGENT_CREDENTIALS_H
#define TIDEMARK_AGENT_CREDENTIALS_H

#include "io/err.h"

struct credentials {
    char access_key[128];
    char secret_key[256];
    char session_token[4097]; /* "" = none */
};

/* file: "" = none is configured. ERR_AUTH when there are none, a file cannot be read, may be read
 * by others, belongs to somebody else, or is malformed. The caller gives *ret to
 * credentials_free(). */
int credentials_load(const char *file, struct credentials **ret, struct err *err);
/* Accepts NULL. */
void credentials_free(struct credentials *credentials);

#endif
