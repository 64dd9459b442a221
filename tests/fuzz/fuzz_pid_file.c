/* postmaster.pid, also half written: a process is a positive number, and its status has no blank.
 */
#include "agent/pg_pid_file.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pg_pid_file file, part;
    free_mem char *text = fuzz_text(data, size);
    if (!pg_pid_file_parse(text, &file))
        return 0;
    FUZZ_CHECK(file.pid > 0);
    FUZZ_CHECK(strlen(file.status) < sizeof(file.status) && !strpbrk(file.status, " \n"));
    /* Read while the server wrote only its first line: the same process, no status. */
    *(strchr(text, '\n') + 1) = '\0';
    FUZZ_CHECK(pg_pid_file_parse(text, &part) && part.pid == file.pid && !part.status[0]);
    return 0;
}
