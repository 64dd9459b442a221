/* Small helpers that every file needs: checked arithmetic, alignment, little-endian access,
 * cleanup attributes.
 * Pure inline code without state; safe on any thread. */
#ifndef TIDEMARK_IO_BASE_H
#define TIDEMARK_IO_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARRAY_LEN(a)                    (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define PRINTF_LIKE(fmt, first)         __attribute__((format(printf, fmt, first)))

#define KIB ((uint64_t)1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

/* Returns true when a + b (a * b) fits and stores it; external numbers go through these only. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* align must be a power of two; align_up() must not be called with values near 2^64. */
static inline uint64_t align_down(uint64_t value, uint64_t align)
{
    return value & ~(align - 1);
}

static inline uint64_t align_up(uint64_t value, uint64_t align)
{
    return (value + align - 1) & ~(align - 1);
}

static inline uint64_t div_round_up(uint64_t value, uint64_t by)
{
    return value / by + (value % by != 0);
}

static inline void put_le32(void *to, uint32_t value)
{
    memcpy(to, &value, sizeof(value));
}

static inline void put_le64(void *to, uint64_t value)
{
    memcpy(to, &value, sizeof(value));
}

static inline uint32_t get_le32(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

static inline uint64_t get_le64(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the repository format is little-endian and this code stores host integers as they are"
#endif

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

static inline void cleanup_free(void *ptr)
{
    free(*(void **)ptr);
}

/* close_fd int fd = …; free_mem char *text = …; released at the end of the scope. */
#define close_fd __attribute__((cleanup(cleanup_close)))
#define free_mem __attribute__((cleanup(cleanup_free)))

/* Moves ownership out of a close_fd / free_mem local. */
static inline int take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

static inline void *take_ptr_impl(void *ptr)
{
    void *taken;
    memcpy(&taken, ptr, sizeof(taken));
    memset(ptr, 0, sizeof(taken));
    return taken;
}
#define take_ptr(ptr) ((__typeof__(*(ptr)))take_ptr_impl(ptr))

#endif
