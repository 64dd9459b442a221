/* The kernel's side of io/marks: one program on the tracepoint block_bio_queue, which every bio
 * passes before its driver sees it, whatever the driver (blk-mq, loop, dm, md, zram). It sets the
 * bits of the chunks that a bio will change, and counts their sectors.
 *
 * There is no program on the completion side. Completions are lost under nesting and re-pointed by
 * multipath; what makes a mark trustworthy is that it is cleared only while the filesystem is
 * frozen (DESIGN §4), and that the sectors counted here are compared with the kernel's own.
 *
 * Structures name only the members that are used: libbpf finds their places in the BTF of the
 * running kernel (CO-RE). */
#include <linux/types.h>

#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "io/marks_shared.h"

#define KERNEL __attribute__((preserve_access_index))

struct gendisk {
    int major;
    int first_minor;
} KERNEL;
struct block_device {
    struct gendisk *bd_disk;
} KERNEL;
struct bvec_iter {
    __u64 bi_sector;
    unsigned int bi_size;
} KERNEL;
struct bio {
    struct block_device *bi_bdev;
    unsigned int bi_opf;
    struct bvec_iter bi_iter;
} KERNEL;

/* The value is the running kernel's, not this one. */
enum req_op { REQ_OP_DISCARD = 3 };
enum { OP_MASK = 0xff, OP_DATA_OUT = 1 }; /* op_is_write(): every odd operation sends data */

/* Set before the program is loaded. Sectors are absolute on the whole disk: bios of partitions have
 * been remapped when they arrive here. */
const volatile struct marks_settings settings;

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct marks_counts);
} counts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} words SEC(".maps");

static __always_inline void set_bits(__u32 index, __u64 bits, struct marks_counts *count)
{
    __u64 *word = bpf_map_lookup_elem(&words, &index);
    if (word)
        __sync_fetch_and_or(word, bits);
    else
        count->faults++;
}

struct fill {
    struct marks_counts *count;
    __u32 first;
};

static long fill_word(__u32 i, struct fill *fill)
{
    __u32 index = fill->first + i;
    __u64 *word = bpf_map_lookup_elem(&words, &index);
    if (!word)
        return 1;
    __sync_fetch_and_or(word, ~0ULL);
    return 0;
}

/* start < end, within the range. */
static __always_inline void mark(__u64 start, __u64 end, struct marks_counts *count)
{
    __u64 first = (start - settings.first_sector) >> settings.chunk_shift;
    __u64 last = (end - 1 - settings.first_sector) >> settings.chunk_shift;
    __u32 from = first / 64, to = last / 64;
    __u64 head = ~0ULL << (first % 64), tail = ~0ULL >> (63 - last % 64);
    if (from == to) {
        set_bits(from, head & tail, count);
        return;
    }
    set_bits(from, head, count);
    set_bits(to, tail, count);
    if (to - from > 1) { /* a large discard: the verifier takes no such loop */
        struct fill fill = {.first = from + 1};
        if (bpf_loop(to - from - 1, fill_word, &fill, 0) != to - from - 1)
            count->faults++;
    }
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(on_bio, struct bio *bio)
{
    __u32 op = bio->bi_opf & OP_MASK;
    struct gendisk *disk = bio->bi_bdev->bd_disk;
    __u64 start = bio->bi_iter.bi_sector, end = start + (bio->bi_iter.bi_size >> 9);
    __u32 zero = 0;
    if (!(op & OP_DATA_OUT) || (__u32)disk->major != settings.disk_major ||
        (__u32)disk->first_minor != settings.disk_minor)
        return 0;
    if (start < settings.first_sector)
        start = settings.first_sector;
    if (end > settings.end_sector)
        end = settings.end_sector;
    struct marks_counts *count = bpf_map_lookup_elem(&counts, &zero);
    if (start >= end || !count) /* an array always has its element 0 */
        return 0;
    count->events++;
    if (settings.hide_every && count->events % settings.hide_every == 0)
        return 0;
    if (op == bpf_core_enum_value(enum req_op, REQ_OP_DISCARD))
        count->discarded_sectors += end - start;
    else
        count->written_sectors += end - start;
    if (!settings.drop_every || count->events % settings.drop_every != 0)
        mark(start, end, count);
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
