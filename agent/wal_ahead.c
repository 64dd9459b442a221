/* archive_command's side of pushing ahead: see wal_ahead.h. */
#include "agent/wal_ahead.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "agent/wal_launch.h"
#include "agent/wal_ready.h"
#include "agent/wal_report.h"

enum { OTHERS_MIN = 2 /* ready beside the one that is pushed: then starting a process pays */ };

/* --- identity -----------------------------------------------------------------------------------
 */

bool wal_file_identify(int dir_fd, const char *name, struct wal_file_id *ret)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
        return false;
    *ret = (struct wal_file_id){
        .device = st.st_dev,
        .inode = st.st_ino,
        .size = (uint64_t)st.st_size,
        .changed_s = (uint64_t)st.st_ctim.tv_sec,
        .changed_ns = (uint64_t)st.st_ctim.tv_nsec,
        .written_s = (uint64_t)st.st_mtim.tv_sec,
        .written_ns = (uint64_t)st.st_mtim.tv_nsec,
    };
    return true;
}

/* FNV-1a of words instead of bytes, eight times as fast (struct conf has tens of KiB, most of them
 * zeros), and turned after each, or the high bits of a word would stay there. It tells
 * configurations apart, nobody has to be kept from making two that agree. */
static uint64_t mix(uint64_t hash, const void *ptr, size_t len)
{
    const uint8_t *bytes = ptr;
    for (size_t at = 0; at < len; at += sizeof(uint64_t)) {
        uint64_t word = 0;
        memcpy(&word, bytes + at, min_u64(sizeof(word), len - at));
        hash = (hash ^ word) * 0x100000001b3u;
        hash = hash << 29 | hash >> 35;
    }
    return hash;
}

/* struct conf begins as zeros and is filled in one order, so equal inputs make equal bytes. */
uint64_t wal_ahead_fingerprint(const struct wal_command *command, uint64_t system_id)
{
    static const char version[] = TIDEMARK_VERSION;
    uint64_t hash = mix(0xcbf29ce484222325u, version, sizeof(version));
    hash = mix(hash, &command->conf, sizeof(command->conf));
    hash = mix(hash, &system_id, sizeof(system_id));
    return mix(hash, command->repository_id, sizeof(command->repository_id));
}

void wal_ahead_address(int base_fd, uint64_t fingerprint, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    (void)snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/push-%016" PRIx64,
                   base_fd, fingerprint);
}

/* --- asking -------------------------------------------------------------------------------------
 */

static int open_directory_of(const char *path)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int len = slash ? snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path) + 1, path)
                    : snprintf(dir, sizeof(dir), ".");
    if (len < 0 || (size_t)len >= sizeof(dir))
        return -1;
    return open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* False for a file that does not wait to be archived: pushed by hand, from elsewhere. */
static bool prepare(const struct wal_command *command, struct wal_ahead_ask *ret, int *ret_fd)
{
    uint64_t system_id;
    struct err ignored;
    memset(ret, 0, sizeof(*ret));
    close_fd int fd = open_directory_of(command->path);
    if (fd < 0 || !wal_ready_has(fd, command->name) ||
        !wal_file_identify(fd, command->name, &ret->file) ||
        wal_command_system_id(command, &system_id, &ignored) < 0)
        return false;
    ret->fingerprint = wal_ahead_fingerprint(command, system_id);
    (void)snprintf(ret->name, sizeof(ret->name), "%s", command->name);
    *ret_fd = take_fd(&fd);
    return true;
}

/* Only our own user's word counts. */
static bool is_own(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.uid == geteuid();
}

static int reach(const char *base, uint64_t fingerprint)
{
    struct sockaddr_un address;
    close_fd int base_fd = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);
    close_fd int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (base_fd < 0 || fd < 0)
        return -1;
    wal_ahead_address(base_fd, fingerprint, &address);
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || !is_own(fd))
        return -1;
    return take_fd(&fd);
}

static bool many_wait(int wal_fd, const char *name)
{
    struct wal_ready ready;
    size_t others = 0;
    if (!wal_ready_scan(wal_fd, &ready))
        return false;
    for (size_t i = 0; i < ready.count; i++)
        others += strcmp(ready.names[i], name) != 0;
    return others >= OTHERS_MIN;
}

/* Waits as long as the process says that it works. */
static bool receive(int fd, struct wal_ahead_answer *ret)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    do {
        if (poll(&wait, 1, AHEAD_SILENCE_MS) <= 0 ||
            recv(fd, ret, sizeof(*ret), 0) != (ssize_t)sizeof(*ret))
            return false;
    } while (ret->word == AHEAD_WORKING);
    return true;
}

static enum wal_ahead_word answer_of(int fd, const struct wal_ahead_ask *ask, struct err *err)
{
    struct wal_ahead_answer answer;
    if (send(fd, ask, sizeof(*ask), MSG_NOSIGNAL) != (ssize_t)sizeof(*ask) || !receive(fd, &answer))
        return AHEAD_NOT_OURS;
    if (answer.word == AHEAD_PUSHED)
        return AHEAD_PUSHED;
    if (answer.word != AHEAD_FAILED || answer.code == ERR_OK || answer.code >= ERR_CODE_COUNT)
        return AHEAD_NOT_OURS;
    (void)err_set(err, (enum err_code)answer.code, "%.*s", (int)sizeof(answer.text) - 1,
                  answer.text);
    (void)err_hint(err, "%.*s", (int)sizeof(answer.hint) - 1, answer.hint);
    return AHEAD_FAILED;
}

enum wal_ahead_word wal_ahead_ask(const struct wal_command *command, int argc, char **argv,
                                  struct err *err)
{
    char base[CONF_PATH_MAX + 1];
    struct wal_ahead_ask ask;
    close_fd int wal_fd = -1;
    if (command->conf.wal_push_ahead == 0 || !wal_command_spool(command, command->path, base) ||
        !prepare(command, &ask, &wal_fd))
        return AHEAD_NOT_OURS;
    close_fd int fd = reach(base, ask.fingerprint);
    if (fd < 0 && many_wait(wal_fd, command->name))
        fd = wal_launch_push_ahead(argc, argv);
    if (fd < 0)
        return AHEAD_NOT_OURS;
    enum wal_ahead_word word = answer_of(fd, &ask, err);
    if (word == AHEAD_PUSHED)
        wal_report_clear(base);
    if (word == AHEAD_FAILED)
        wal_report_write(base, command->name, err);
    return word;
}
