/* The main of a fuzz target in builds without libFuzzer: runs every file given, or every file of
 * every directory given, once. Exit status 0 when all ran; a fault ends it as it would end
 * libFuzzer. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

static unsigned long count;

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat stat_buf;
    if (!file || fstat(fileno(file), &stat_buf) < 0) {
        perror(path);
        return -1;
    }
    size_t len = (size_t)stat_buf.st_size;
    free_mem uint8_t *bytes = malloc(len ? len : 1);
    if (!bytes || fread(bytes, 1, len, file) != len) {
        perror(path);
        (void)fclose(file);
        return -1;
    }
    (void)fclose(file);
    (void)LLVMFuzzerTestOneInput(bytes, len);
    count++;
    return 0;
}

static int replay(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return replay_file(path);
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir)) != NULL;) {
        char name[PATH_MAX];
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        rc = replay_file(name);
    }
    (void)closedir(dir);
    return rc;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (replay(argv[i]) < 0)
            return 1;
    printf("%lu inputs\n", count);
    return count == 0;
}
