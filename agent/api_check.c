/* See api_check.h. */
#include "agent/api_check.h"

#include "agent/check.h"

int api_post_checks(struct api *api, struct api_call *call, const char *arg, struct err *err)
{
    json_t *rows = NULL;
    (void)arg;
    if (call->body_len > 0)
        return err_set(err, ERR_USAGE, "POST /checks takes no body");
    if (pthread_mutex_trylock(&api->check_mutex) != 0) {
        (void)err_set(err, ERR_BUSY, "checks are being made already");
        return err_hint(err, "try again when they have ended: they take %d s at the most",
                        CHECK_ALL_S);
    }
    int rc = check_run_apart(api->conf, &rows, err);
    (void)pthread_mutex_unlock(&api->check_mutex);
    if (rc < 0)
        return rc;
    call->status = 200;
    call->answer = json_pack("{s:o}", "checks", rows);
    return 0;
}
