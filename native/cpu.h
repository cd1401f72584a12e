/* Which instruction set the functions of this folder use: found at run time, one choice for all of them.
 *
 * Every function with more than one path gives identical results on each of them; the choice is about speed only. It
 * is made per call: `switch (tt_path())`. The paths above scalar exist where the compiler knows function-level targets
 * (gcc and clang) on 64-bit x86, and path 1 on 64-bit Arm, where NEON is always present; elsewhere all is scalar.
 */
#ifndef TT_CPU_H
#define TT_CPU_H
#include <stdint.h>
#include <string.h>

enum {
    TT_SCALAR = 0, /* plain C */
    TT_128 = 1,    /* 128-bit vectors with a byte shuffle: SSSE3 on x86, NEON on Arm */
    TT_AVX2 = 2,
    TT_AVX512 = 3, /* AVX-512 F, BW, DQ and VL */
};

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define TT_X86 1
/* For functions with intrinsics, and for the static inline functions that they call. */
#define TT_TARGET_SSSE3 __attribute__((target("ssse3")))
#define TT_TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define TT_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,popcnt")))
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define TT_NEON 1
#endif

#if defined(__GNUC__) || defined(__clang__)
/* Asks for the cache line `ahead` bytes after `pointer`. It may lie outside the buffer: a prefetch never faults, and
 * the sum is made on integers because C has no such pointer. */
#define TT_PREFETCH(pointer, ahead) __builtin_prefetch((const void *)((uintptr_t)(pointer) + (ahead)))
#else
#define TT_PREFETCH(pointer, ahead) ((void)(pointer))
#endif

/* Little-endian reads at any alignment. */
static inline uint64_t tt_read64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline uint32_t tt_read32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

/* cffi: begin */
/* The path in use: TT_SCALAR, TT_128, TT_AVX2 or TT_AVX512. */
int tt_path(void);
/* Makes every later call use `path`, or the best one if `path` is negative. Returns the path now in use, or -1 (and
 * changes nothing) if this machine or this build does not have it. For tests and benchmarks; any thread may call it,
 * and calls that are already running finish on the path they began with. */
int tt_select(int path);
/* cffi: end */
#endif
