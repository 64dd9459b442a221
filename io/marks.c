/* The program in the kernel is loaded from bytes of ours, told its device, and attached; from then
 * on only its maps are read. Everything that can be missing on a host is missing here, so this is
 * where it gets its name. */
#include "io/marks.h"

#include <assert.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "io/hash.h"
#include "io/marks_shared.h"

#define BPF_FS "/sys/fs/bpf"

enum { SECTOR = 512, PIN_PATH_MAX = 256, LOCKDOWN_MAX = 128 };

/* io/marks_object.S */
extern const char marks_object[], marks_object_end[];

struct marks {
    struct bpf_object *object; /* NULL: found, and the descriptors below are our own */
    struct bpf_link *link;
    uint64_t *words; /* one bit a chunk; the kernel's, mapped */
    size_t word_count, map_len;
    int link_fd, program_fd, words_fd, counts_fd, settings_fd;
    int cpu_count;
    bool lossy;
    uint64_t size;
    uint32_t chunk_size;
};

/* --- loading ---------------------------------------------------------------------------------- */

/* Has this process itself what bpf() asks for? Then EPERM is somebody else's. */
static bool has_capabilities(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &head, data) < 0)
        return false;
    uint64_t have = data[0].effective | (uint64_t)data[1].effective << 32;
    uint64_t needed = UINT64_C(1) << CAP_BPF | UINT64_C(1) << CAP_PERFMON;
    return (have & needed) == needed || (have & UINT64_C(1) << CAP_SYS_ADMIN) != 0;
}

/* kernel_lockdown(7). Distributions differ in how much of eBPF a mode forbids. The file reads like
 * "none [integrity] confidentiality"; where securityfs is not mounted nobody can say. */
static bool is_locked_down(char mode[LOCKDOWN_MAX])
{
    char text[LOCKDOWN_MAX];
    close_fd int fd = open("/sys/kernel/security/lockdown", O_RDONLY | O_CLOEXEC);
    ssize_t len = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    text[len > 0 ? len : 0] = '\0';
    const char *start = strchr(text, '[');
    if (start == NULL)
        return false;
    (void)snprintf(mode, LOCKDOWN_MAX, "%.*s", (int)strcspn(start + 1, "]"), start + 1);
    return strcmp(mode, "none") != 0;
}

/* EPERM has several causes. */
static int err_forbidden(struct err *err, int rc, const char *what)
{
    char mode[LOCKDOWN_MAX];
    bool locked_down = has_capabilities() && is_locked_down(mode);
    errno = -rc;
    if (locked_down) {
        err_sys(err, ERR_REFUSED, "the kernel is locked down (%s) and takes no eBPF: %s", mode,
                what);
        return err_hint(err, "no right of the agent helps: boot with lockdown=none (it comes with "
                             "Secure Boot); providers freeze, command and offline do without");
    }
    err_sys(err, ERR_REFUSED, "watching writes needs CAP_BPF and CAP_PERFMON: %s", what);
    return err_hint(err, "leave the agent these capabilities (CapabilityBoundingSet= of its unit) "
                         "and bpf() (SystemCallFilter=), and start it again; providers freeze, "
                         "command and offline do without");
}

/* libbpf's own messages are about its internals; errno and a look at the host say more. */
static int err_load(struct err *err, int rc, const char *what)
{
    errno = -rc;
    if (access("/sys/kernel/btf/vmlinux", R_OK) < 0) {
        err_sys(err, ERR_REFUSED, "this kernel has no BTF (/sys/kernel/btf/vmlinux)");
    } else if (rc == -EPERM || rc == -EACCES) {
        return err_forbidden(err, rc, what);
    } else if (rc == -ESRCH || rc == -ENOENT) {
        err_sys(err, ERR_REFUSED, "this kernel has no tracepoint block_bio_queue in its BTF");
    } else {
        err_sys(err, ERR_REFUSED, "this kernel takes no eBPF program of ours: %s", what);
    }
    return err_hint(err, "watching writes needs Linux 5.17 with CONFIG_DEBUG_INFO_BTF and eBPF; "
                         "providers freeze, command and offline do without");
}

/* One variable that was forgotten in an environment must not lose marks in silence: a test that
 * loses some has the evidence kept as well, which no snapshot does unnoticed. */
static uint32_t test_setting(const char *name)
{
    const char *value = getenv("TIDEMARK_TEST_PRECOPY_KEEP") != NULL ? getenv(name) : NULL;
    return value != NULL ? (uint32_t)strtoul(value, NULL, 10) : 0;
}

static uint64_t program_digest(void)
{
    uint8_t digest[16];
    hash_xxh3_128(marks_object, (size_t)(marks_object_end - marks_object), 0, digest);
    return get_le64(digest);
}

static struct marks_settings settings_for(const struct marks *marks,
                                          const struct marks_place *place)
{
    return (struct marks_settings){
        .program = program_digest(),
        .first_sector = place->offset / SECTOR,
        .end_sector = (place->offset + place->len) / SECTOR,
        .disk_major = place->disk_major,
        .disk_minor = place->disk_minor,
        .chunk_shift = (uint32_t)__builtin_ctz(marks->chunk_size / SECTOR),
        .drop_every = test_setting("TIDEMARK_TEST_MARKS_DROP"),
        .hide_every = test_setting("TIDEMARK_TEST_MARKS_HIDE"),
    };
}

static int set_up(struct marks *marks, const struct marks_place *place)
{
    struct marks_settings settings = settings_for(marks, place);
    struct bpf_map *constants = bpf_object__find_map_by_name(marks->object, ".rodata");
    struct bpf_map *words = bpf_object__find_map_by_name(marks->object, "words");
    assert(constants != NULL && words != NULL);
    int rc = bpf_map__set_initial_value(constants, &settings, sizeof(settings));
    return rc < 0 ? rc : bpf_map__set_max_entries(words, (uint32_t)marks->word_count);
}

static int map_words(struct marks *marks, struct err *err)
{
    marks->map_len = align_up(marks->word_count * sizeof(uint64_t), (uint64_t)getpagesize());
    void *map = mmap(NULL, marks->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, marks->words_fd, 0);
    if (map == MAP_FAILED)
        return err_sys(err, ERR_INTERNAL, "map the marks");
    marks->words = map;
    return 0;
}

static int load(struct marks *marks, const struct marks_place *place, struct err *err)
{
    LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "tidemark");
    libbpf_set_print(NULL);
    marks->object =
        bpf_object__open_mem(marks_object, (size_t)(marks_object_end - marks_object), &options);
    if (marks->object == NULL)
        return err_load(err, -errno, "read the program");
    int rc = set_up(marks, place);
    if (rc < 0)
        return err_load(err, rc, "set the program up");
    rc = bpf_object__load(marks->object);
    if (rc < 0)
        return err_load(err, rc, "load the program");
    marks->words_fd = bpf_object__find_map_fd_by_name(marks->object, "words");
    marks->counts_fd = bpf_object__find_map_fd_by_name(marks->object, "counts");
    marks->settings_fd = bpf_object__find_map_fd_by_name(marks->object, ".rodata");
    rc = map_words(marks, err);
    if (rc < 0)
        return rc;
    struct bpf_program *program = bpf_object__find_program_by_name(marks->object, "on_bio");
    assert(program != NULL);
    marks->program_fd = bpf_program__fd(program);
    marks->link = bpf_program__attach(program);
    if (marks->link == NULL)
        return err_load(err, -errno, "attach the program");
    marks->link_fd = bpf_link__fd(marks->link);
    return 0;
}

/* Everything but what the kernel holds. */
static int allocate(const struct marks_place *place, uint32_t chunk_size, struct marks **ret,
                    struct err *err)
{
    assert(chunk_size >= SECTOR && (chunk_size & (chunk_size - 1)) == 0);
    assert(place->len > 0 && place->offset % SECTOR == 0 && place->len % SECTOR == 0);
    struct marks *marks = calloc(1, sizeof(*marks));
    if (marks == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for marks");
    marks->link_fd = marks->program_fd = -1;
    marks->words_fd = marks->counts_fd = marks->settings_fd = -1;
    marks->size = place->len;
    marks->chunk_size = chunk_size;
    marks->word_count = (size_t)div_round_up(div_round_up(place->len, chunk_size), 64);
    marks->cpu_count = libbpf_num_possible_cpus();
    struct marks_settings settings = settings_for(marks, place);
    marks->lossy = settings.drop_every > 0 || settings.hide_every > 0;
    int rc = 0;
    if (marks->word_count > INT32_MAX)
        rc = err_set(err, ERR_REFUSED, "too many chunks to mark");
    else if (marks->cpu_count < 1)
        rc = err_set(err, ERR_INTERNAL, "cannot count the processors");
    if (rc == 0)
        *ret = marks;
    else
        free(marks);
    return rc;
}

int marks_open(const struct marks_place *place, uint32_t chunk_size, struct marks **ret,
               struct err *err)
{
    struct marks *marks = NULL;
    int rc = allocate(place, chunk_size, &marks, err);
    if (rc < 0)
        return rc;
    rc = load(marks, place, err);
    if (rc < 0) {
        marks_close(marks);
        return rc;
    }
    *ret = marks;
    return 0;
}

void marks_close(struct marks *marks)
{
    if (marks == NULL)
        return;
    if (marks->words != NULL)
        (void)munmap(marks->words, marks->map_len);
    bpf_link__destroy(marks->link);
    if (marks->object == NULL) {
        cleanup_close(&marks->link_fd);
        cleanup_close(&marks->program_fd);
        cleanup_close(&marks->words_fd);
        cleanup_close(&marks->counts_fd);
        cleanup_close(&marks->settings_fd);
    }
    bpf_object__close(marks->object);
    free(marks);
}

/* --- kept by the kernel ----------------------------------------------------------------------- */

/* The program is found through its link. */
static const char *const pin_names[] = {"words", "counts", "settings", "link"};

static void pin_path(char path[PIN_PATH_MAX], const char *name, size_t index)
{
    (void)snprintf(path, PIN_PATH_MAX, BPF_FS "/tidemark/%s/%s", name, pin_names[index]);
}

static void pin_directory(char path[PIN_PATH_MAX], const char *name)
{
    (void)snprintf(path, PIN_PATH_MAX, BPF_FS "/tidemark/%s", name);
}

int marks_keep(struct marks *marks, const char *name, struct err *err)
{
    const int fds[] = {marks->words_fd, marks->counts_fd, marks->settings_fd, marks->link_fd};
    struct statfs st;
    char path[PIN_PATH_MAX];
    if (statfs(BPF_FS, &st) < 0 || st.f_type != BPF_FS_MAGIC) {
        err_set(err, ERR_REFUSED, "no BPF file system is mounted on " BPF_FS);
        return err_hint(err, "mount -t bpf bpf " BPF_FS);
    }
    (void)marks_forget(name);
    pin_directory(path, name);
    if ((mkdir(BPF_FS "/tidemark", 0700) < 0 && errno != EEXIST) || mkdir(path, 0700) < 0)
        return err_sys(err, ERR_REFUSED, "create '%s'", path);
    for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
        pin_path(path, name, i);
        if (bpf_obj_pin(fds[i], path) < 0) {
            err_sys(err, ERR_REFUSED, "create '%s'", path);
            (void)marks_forget(name);
            return -ERR_REFUSED;
        }
    }
    return 0;
}

bool marks_forget(const char *name)
{
    char path[PIN_PATH_MAX];
    for (size_t i = 0; i < ARRAY_LEN(pin_names); i++) {
        pin_path(path, name, i);
        (void)unlink(path);
    }
    pin_directory(path, name);
    return rmdir(path) == 0;
}

static bool open_pins(struct marks *marks, const char *name)
{
    int *const fds[] = {&marks->words_fd, &marks->counts_fd, &marks->settings_fd, &marks->link_fd};
    char path[PIN_PATH_MAX];
    for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
        pin_path(path, name, i);
        *fds[i] = bpf_obj_get(path);
        if (*fds[i] < 0)
            return false;
    }
    struct bpf_link_info info = {0};
    uint32_t len = sizeof(info);
    if (bpf_obj_get_info_by_fd(marks->link_fd, &info, &len) == 0)
        marks->program_fd = bpf_prog_get_fd_by_id(info.prog_id);
    return marks->program_fd >= 0;
}

/* Is it a map of the program's, as large as ours would be? */
static bool is_map_of_program(const struct marks *marks, int fd, size_t count, size_t value_size)
{
    struct bpf_map_info map = {0};
    uint32_t ids[8] = {0}, map_len = sizeof(map), program_len = sizeof(struct bpf_prog_info);
    struct bpf_prog_info program = {.nr_map_ids = ARRAY_LEN(ids),
                                    .map_ids = (uint64_t)(uintptr_t)ids};
    if (bpf_obj_get_info_by_fd(fd, &map, &map_len) < 0 ||
        bpf_obj_get_info_by_fd(marks->program_fd, &program, &program_len) < 0 ||
        map.max_entries != count || map.value_size != value_size)
        return false;
    for (uint32_t i = 0; i < program.nr_map_ids && i < ARRAY_LEN(ids); i++)
        if (ids[i] == map.id)
            return true;
    return false;
}

static bool is_ours(const struct marks *marks, const struct marks_place *place)
{
    struct marks_settings want = settings_for(marks, place), have;
    uint32_t zero = 0;
    return is_map_of_program(marks, marks->words_fd, marks->word_count, sizeof(uint64_t)) &&
           is_map_of_program(marks, marks->counts_fd, 1, sizeof(struct marks_counts)) &&
           is_map_of_program(marks, marks->settings_fd, 1, sizeof(have)) &&
           bpf_map_lookup_elem(marks->settings_fd, &zero, &have) == 0 &&
           memcmp(&have, &want, sizeof(have)) == 0;
}

int marks_find(const char *name, const struct marks_place *place, uint32_t chunk_size,
               struct marks **ret, struct err *err)
{
    struct marks *marks = NULL;
    int rc = allocate(place, chunk_size, &marks, err);
    if (rc < 0)
        return rc;
    if (!open_pins(marks, name))
        rc = err_set(err, ERR_MISSING, "the tracker is gone");
    else if (!is_ours(marks, place))
        rc = err_set(err, ERR_REFUSED, "the tracker watches something else");
    else
        rc = map_words(marks, err);
    if (rc == 0)
        *ret = marks;
    else
        marks_close(marks);
    return rc;
}

int marks_instance(const struct marks *marks, char ret[MARKS_INSTANCE_LEN], struct err *err)
{
    struct bpf_prog_info info = {0};
    uint32_t len = sizeof(info);
    if (bpf_obj_get_info_by_fd(marks->program_fd, &info, &len) < 0)
        return err_sys(err, ERR_INTERNAL, "read about the program of marks");
    (void)snprintf(ret, MARKS_INSTANCE_LEN, "%u-%llu", info.id, (unsigned long long)info.load_time);
    return 0;
}

bool marks_are_lossy(const struct marks *marks)
{
    return marks->lossy;
}

/* --- reading ---------------------------------------------------------------------------------- */

static int add_chunk(const struct marks *marks, uint64_t chunk, struct extent_list *to,
                     struct err *err)
{
    uint64_t offset = chunk * marks->chunk_size;
    return extent_list_append(to, offset, min_u64(marks->chunk_size, marks->size - offset), err);
}

static int add_word(const struct marks *marks, size_t index, uint64_t bits, struct extent_list *to,
                    struct err *err)
{
    int rc = 0;
    for (; rc == 0 && bits != 0; bits &= bits - 1)
        rc = add_chunk(marks, index * 64 + (uint64_t)__builtin_ctzll(bits), to, err);
    return rc;
}

int marks_take(struct marks *marks, struct extent_list *ret, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < marks->word_count; i++) {
        if (__atomic_load_n(&marks->words[i], __ATOMIC_RELAXED) == 0)
            continue;
        uint64_t bits = __atomic_exchange_n(&marks->words[i], 0, __ATOMIC_SEQ_CST);
        rc = add_word(marks, i, bits, ret, err);
    }
    return rc;
}

void marks_return(struct marks *marks, const struct extent_list *extents)
{
    for (size_t i = 0; i < extents->count; i++) {
        uint64_t end = extents->items[i].offset + extents->items[i].len;
        for (uint64_t chunk = extents->items[i].offset / marks->chunk_size;
             chunk * marks->chunk_size < end; chunk++)
            (void)__atomic_fetch_or(&marks->words[chunk / 64], UINT64_C(1) << (chunk % 64),
                                    __ATOMIC_RELAXED);
    }
}

int marks_peek(const struct marks *marks, struct extent_list *ret, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < marks->word_count; i++)
        rc = add_word(marks, i, __atomic_load_n(&marks->words[i], __ATOMIC_RELAXED), ret, err);
    return rc;
}

int marks_counters(const struct marks *marks, struct marks_counters *ret, struct err *err)
{
    free_mem struct marks_counts *counts = calloc((size_t)marks->cpu_count, sizeof(*counts));
    struct bpf_prog_info info = {0};
    uint32_t zero = 0, info_len = sizeof(info);
    if (counts == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for counters");
    if (bpf_map_lookup_elem(marks->counts_fd, &zero, counts) < 0 ||
        bpf_obj_get_info_by_fd(marks->program_fd, &info, &info_len) < 0)
        return err_sys(err, ERR_INTERNAL, "read the counters of marks");
    *ret = (struct marks_counters){.missed = info.recursion_misses};
    for (int i = 0; i < marks->cpu_count; i++) {
        ret->written_sectors += counts[i].written_sectors;
        ret->discarded_sectors += counts[i].discarded_sectors;
        ret->missed += counts[i].faults;
    }
    return 0;
}
