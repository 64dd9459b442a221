/* The program in the kernel is loaded from bytes of ours, told its device, and attached; from then
 * on only its maps are read. Everything that can be missing on a host is missing here, so this is
 * where it gets its name. */
#include "io/marks.h"

#include <assert.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#include "io/marks_shared.h"

enum { SECTOR = 512 };

/* io/marks_object.S */
extern const char marks_object[], marks_object_end[];

struct marks {
    struct bpf_object *object;
    struct bpf_link *link;
    uint64_t *words; /* one bit a chunk; the kernel's, mapped */
    size_t word_count, map_len;
    int counts_fd, program_fd;
    int cpu_count;
    uint64_t size;
    uint32_t chunk_size;
};

/* --- loading ---------------------------------------------------------------------------------- */

/* libbpf's own messages are about its internals; errno and a look at the host say more. */
static int err_load(struct err *err, int rc, const char *what)
{
    errno = -rc;
    if (access("/sys/kernel/btf/vmlinux", R_OK) < 0)
        err_sys(err, ERR_REFUSED, "this kernel has no BTF (/sys/kernel/btf/vmlinux)");
    else if (rc == -EPERM || rc == -EACCES)
        err_sys(err, ERR_REFUSED, "watching writes needs CAP_BPF and CAP_PERFMON: %s", what);
    else if (rc == -ESRCH || rc == -ENOENT)
        err_sys(err, ERR_REFUSED, "this kernel has no tracepoint block_bio_queue in its BTF");
    else
        err_sys(err, ERR_REFUSED, "this kernel takes no eBPF program of ours: %s", what);
    return err_hint(err, "watching writes needs Linux 5.17 with CONFIG_DEBUG_INFO_BTF and eBPF; "
                         "providers freeze, command and offline do without");
}

static uint32_t test_setting(const char *name)
{
    const char *value = getenv(name);
    return value != NULL ? (uint32_t)strtoul(value, NULL, 10) : 0;
}

static int set_up(struct marks *marks, const struct marks_place *place)
{
    struct marks_settings settings = {
        .first_sector = place->offset / SECTOR,
        .end_sector = (place->offset + place->len) / SECTOR,
        .disk_major = place->disk_major,
        .disk_minor = place->disk_minor,
        .chunk_shift = (uint32_t)__builtin_ctz(marks->chunk_size / SECTOR),
        .drop_every = test_setting("TIDEMARK_TEST_MARKS_DROP"),
        .hide_every = test_setting("TIDEMARK_TEST_MARKS_HIDE"),
    };
    struct bpf_map *constants = bpf_object__find_map_by_name(marks->object, ".rodata");
    struct bpf_map *words = bpf_object__find_map_by_name(marks->object, "words");
    assert(constants != NULL && words != NULL);
    int rc = bpf_map__set_initial_value(constants, &settings, sizeof(settings));
    return rc < 0 ? rc : bpf_map__set_max_entries(words, (uint32_t)marks->word_count);
}

static int map_words(struct marks *marks, struct err *err)
{
    struct bpf_map *words = bpf_object__find_map_by_name(marks->object, "words");
    marks->map_len = align_up(marks->word_count * sizeof(uint64_t), (uint64_t)getpagesize());
    void *map =
        mmap(NULL, marks->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(words), 0);
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
    rc = map_words(marks, err);
    if (rc < 0)
        return rc;
    struct bpf_program *program = bpf_object__find_program_by_name(marks->object, "on_bio");
    assert(program != NULL);
    marks->program_fd = bpf_program__fd(program);
    marks->counts_fd = bpf_object__find_map_fd_by_name(marks->object, "counts");
    marks->link = bpf_program__attach(program);
    return marks->link != NULL ? 0 : err_load(err, -errno, "attach the program");
}

int marks_open(const struct marks_place *place, uint32_t chunk_size, struct marks **ret,
               struct err *err)
{
    assert(chunk_size >= SECTOR && (chunk_size & (chunk_size - 1)) == 0);
    assert(place->len > 0 && place->offset % SECTOR == 0 && place->len % SECTOR == 0);
    struct marks *marks = calloc(1, sizeof(*marks));
    if (marks == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory for marks");
    marks->size = place->len;
    marks->chunk_size = chunk_size;
    marks->word_count = (size_t)div_round_up(div_round_up(place->len, chunk_size), 64);
    marks->cpu_count = libbpf_num_possible_cpus();
    int rc = 0;
    if (marks->word_count > INT32_MAX)
        rc = err_set(err, ERR_REFUSED, "too many chunks to mark");
    else if (marks->cpu_count < 1)
        rc = err_set(err, ERR_INTERNAL, "cannot count the processors");
    if (rc == 0)
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
    bpf_link__destroy(marks->link);
    if (marks->words != NULL)
        (void)munmap(marks->words, marks->map_len);
    bpf_object__close(marks->object);
    free(marks);
}

/* --- reading ---------------------------------------------------------------------------------- */

uint64_t marks_bytes(const struct marks *marks)
{
    uint64_t chunks = 0;
    for (size_t i = 0; i < marks->word_count; i++)
        chunks +=
            (uint64_t)__builtin_popcountll(__atomic_load_n(&marks->words[i], __ATOMIC_RELAXED));
    return chunks * marks->chunk_size;
}

/* Adds chunk, growing the last extent where it adjoins. */
static int add_chunk(const struct marks *marks, uint64_t chunk, struct extent_list *to,
                     struct err *err)
{
    uint64_t offset = chunk * marks->chunk_size;
    uint64_t len = min_u64(marks->chunk_size, marks->size - offset);
    struct extent *last = to->count > 0 ? &to->items[to->count - 1] : NULL;
    if (last == NULL || last->offset + last->len != offset)
        return extent_list_add(to, offset, len, err);
    last->len += len;
    return 0;
}

int marks_take(struct marks *marks, struct extent_list *ret, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < marks->word_count; i++) {
        if (__atomic_load_n(&marks->words[i], __ATOMIC_RELAXED) == 0)
            continue;
        uint64_t bits = __atomic_exchange_n(&marks->words[i], 0, __ATOMIC_SEQ_CST);
        for (; rc == 0 && bits != 0; bits &= bits - 1)
            rc = add_chunk(marks, i * 64 + (uint64_t)__builtin_ctzll(bits), ret, err);
    }
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
