/* Chunker 2: the scan with AVX2. Each 64 positions are two vectors, and a byte shift across vectors takes two
 * instructions, because each of them works within halves of 16 bytes. */
#include "search_scan.h"

#if defined(TT_X86)
#include <immintrin.h>
#define TARGET TT_TARGET_AVX2

typedef struct {
    __m256i low, high, nibble, level;
} constants;

/* The values of the 32 positions before; of w also those of the 32 before that. */
typedef struct {
    __m256i t, u, v, w, w_older;
} history;

TARGET static inline __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

TARGET static inline __m256i twice(const uint8_t table[16])
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

/* The values k < 16 positions earlier, where `now` follows `before`: in the middle vector each half has the half in
 * front of it. A macro because k is part of the instruction. */
#define EARLIER(now, before, k) _mm256_alignr_epi8(now, _mm256_permute2x128_si256(before, now, 0x21), 16 - (k))

/* Marks of the 32 positions from p on. */
TARGET static inline uint32_t half_step(const uint8_t *p, const constants *c, history *h)
{
    __m256i a = _mm256_xor_si256(_mm256_sub_epi8(load(p), load(p - 1)), _mm256_add_epi8(load(p - 2), load(p - 3)));
    __m256i low = _mm256_and_si256(a, c->nibble), high = _mm256_and_si256(_mm256_srli_epi16(a, 4), c->nibble);
    __m256i t = _mm256_xor_si256(_mm256_shuffle_epi8(c->low, low), _mm256_shuffle_epi8(c->high, high));
    __m256i u = _mm256_sub_epi8(t, EARLIER(t, h->t, TT_STEP_U));
    __m256i v = _mm256_xor_si256(u, EARLIER(u, h->u, TT_STEP_V));
    __m256i w = _mm256_add_epi8(v, h->v);
    __m256i x = _mm256_xor_si256(w, h->w_older);
    h->t = t;
    h->u = u;
    h->v = v;
    h->w_older = h->w;
    h->w = w;
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(x, c->level));
}

TARGET static inline uint64_t step(const uint8_t *p, const constants *c, history *h)
{
    uint32_t first = half_step(p, c, h);
    return first | (uint64_t)half_step(p + 32, c, h) << 32;
}

TARGET static inline constants load_constants(int level)
{
    const constants c = {twice(TT_LOW), twice(TT_HIGH), _mm256_set1_epi8(15), _mm256_set1_epi8((char)level)};
    return c;
}

#define SCAN tt_scan_avx2
#include "search_loop.h"
#endif
