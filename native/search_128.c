/* Chunker 2: the scan with 128-bit vectors, for SSSE3 and for NEON. The arithmetic is written once, with the vector
 * types of gcc and clang; only the byte shuffle, the shift across two vectors and the collecting of marks differ. */
#include "search_scan.h"

#if defined(TT_X86) || defined(TT_NEON)

typedef uint8_t vec __attribute__((vector_size(16)));
enum { WIDTH = 16, PARTS = 64 / WIDTH };

#if defined(TT_X86)
#include <immintrin.h>
#define TARGET TT_TARGET_SSSE3

/* table[index] in each lane; indices are 0..15. */
TARGET static inline vec lookup(vec table, vec index)
{
    return (vec)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
}

/* The values k positions earlier, where `now` follows `before`. A macro because k is part of the instruction. */
#define EARLIER(now, before, k) ((vec)_mm_alignr_epi8((__m128i)(now), (__m128i)(before), WIDTH - (k)))

/* One bit for each byte of x[0..PARTS) that is greater than the level. */
TARGET static inline uint64_t mark(const vec x[PARTS], vec level)
{
    uint64_t marks = 0;
    for (int k = 0; k < PARTS; k++) {
        __m128i above = _mm_cmpgt_epi8((__m128i)x[k], (__m128i)level);
        marks |= (uint64_t)(unsigned)_mm_movemask_epi8(above) << (WIDTH * k);
    }
    return marks;
}

#else
#include <arm_neon.h>
#define TARGET

static inline vec lookup(vec table, vec index)
{
    return (vec)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
}

#define EARLIER(now, before, k) ((vec)vextq_u8((uint8x16_t)(before), (uint8x16_t)(now), WIDTH - (k)))

/* Arm has no instruction that collects one bit of each lane: each lane keeps the bit of its place in its byte of the
 * result, and three rounds of adding neighbours bring the eight bits of each byte together. */
static inline uint64_t mark(const vec x[PARTS], vec level)
{
    const uint8x16_t place = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t bits[PARTS];
    for (int k = 0; k < PARTS; k++)
        bits[k] = vandq_u8(vcgtq_s8((int8x16_t)x[k], (int8x16_t)level), place);
    uint8x16_t sum = vpaddq_u8(vpaddq_u8(bits[0], bits[1]), vpaddq_u8(bits[2], bits[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sum, sum)), 0);
}
#endif

typedef struct {
    vec low, high, level;
} constants;

/* The earlier values that the steps ask for. */
typedef struct {
    vec t, u, v[TT_STEP_W / WIDTH], w[TT_STEP_X / WIDTH];
} history;

TARGET static inline vec load(const uint8_t *p)
{
    vec value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

/* Marks of the 64 positions from `data` on. */
TARGET static inline uint64_t step(const uint8_t *data, const constants *c, history *h)
{
    vec x[PARTS];
#pragma GCC unroll 4
    for (int k = 0; k < PARTS; k++) {
        const uint8_t *p = data + WIDTH * k;
        vec a = (load(p) - load(p - 1)) ^ (load(p - 2) + load(p - 3));
        vec t = lookup(c->low, a & 15) ^ lookup(c->high, a >> 4);
        vec u = t - EARLIER(t, h->t, TT_STEP_U);
        vec v = u ^ EARLIER(u, h->u, TT_STEP_V);
        vec w = v + h->v[k % 2];
        x[k] = w ^ h->w[k];
        h->t = t;
        h->u = u;
        h->v[k % 2] = v;
        h->w[k] = w;
    }
    return mark(x, c->level);
}

TARGET static inline constants load_constants(int level)
{
    const constants c = {load(TT_LOW), load(TT_HIGH), (vec){0} + (uint8_t)level};
    return c;
}

#define SCAN tt_scan_128
#include "search_loop.h"
#endif
