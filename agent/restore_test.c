/* See restore_test_stop() in restore.h. In a file of its own: jobs of every type call it. */
#include "agent/restore.h"

#include <signal.h>

void restore_test_stop(const char *point)
{
    const char *kill_at = getenv("TIDEMARK_TEST_STOP");
    const char *pause_at = getenv("TIDEMARK_TEST_PAUSE");
    if (kill_at && strcmp(kill_at, point) == 0)
        (void)raise(SIGKILL);
    if (pause_at && strcmp(pause_at, point) == 0)
        (void)raise(SIGSTOP);
}
