/* Chunker 2: the scan with AVX-512. 64 positions are one vector; its comparison gives their marks at once. Compiled
 * twice: as it stands for F and BW, and by search_vbmi.c with the byte permutes of VBMI, which make it a quarter faster
 * on AMD's cores. */
#include "search_scan.h"

#if defined(TT_X86)
#include <immintrin.h>

#if defined(TT_VBMI)
#define TARGET TT_TARGET_VBMI
#define SCAN tt_scan_vbmi
#else
#define TARGET TT_TARGET_AVX512
#define SCAN tt_scan_avx512
#endif

typedef struct {
    __m512i low, high, level;
#if defined(TT_VBMI)
    __m512i for_u, for_v;
#else
    __m512i nibble;
#endif
} constants;

/* The values of the 64 positions before. */
typedef struct {
    __m512i t, u, v, w;
} history;

TARGET static inline __m512i load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}

TARGET static inline __m512i four_times(const uint8_t table[16])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}

#if defined(TT_VBMI)
/* Takes one of the 64 bytes of the table by the low six bits of each index. The table is four times the same 16 bytes,
 * so that the upper two of them do not matter: nothing need be masked, and the 16-bit shift may bring in strange bits. */
TARGET static inline __m512i map(__m512i a, const constants *c)
{
    return _mm512_xor_si512(_mm512_permutexvar_epi8(a, c->low),
                            _mm512_permutexvar_epi8(_mm512_srli_epi16(a, 4), c->high));
}

/* Indices into two vectors that give each position the byte k positions earlier. */
TARGET static inline __m512i earlier_by(int k)
{
    uint8_t index[64];
    for (int i = 0; i < 64; i++)
        index[i] = (uint8_t)(64 + i - k);
    return load(index);
}

#define EARLIER_FOR_U(now, before) _mm512_permutex2var_epi8(before, c->for_u, now)
#define EARLIER_FOR_V(now, before) _mm512_permutex2var_epi8(before, c->for_v, now)

TARGET static inline constants load_constants(int level)
{
    const constants c = {four_times(TT_LOW), four_times(TT_HIGH), _mm512_set1_epi8((char)level), earlier_by(TT_STEP_U),
                         earlier_by(TT_STEP_V)};
    return c;
}

#else
TARGET static inline __m512i map(__m512i a, const constants *c)
{
    __m512i low = _mm512_and_si512(a, c->nibble), high = _mm512_and_si512(_mm512_srli_epi16(a, 4), c->nibble);
    return _mm512_xor_si512(_mm512_shuffle_epi8(c->low, low), _mm512_shuffle_epi8(c->high, high));
}

/* The values k < 16 positions earlier, where `now` follows `before`: in the middle vector each quarter has the quarter
 * in front of it. A macro because k is part of the instruction. */
#define EARLIER(now, before, k) _mm512_alignr_epi8(now, _mm512_alignr_epi64(now, before, 6), 16 - (k))
#define EARLIER_FOR_U(now, before) EARLIER(now, before, TT_STEP_U)
#define EARLIER_FOR_V(now, before) EARLIER(now, before, TT_STEP_V)

TARGET static inline constants load_constants(int level)
{
    const constants c = {four_times(TT_LOW), four_times(TT_HIGH), _mm512_set1_epi8((char)level), _mm512_set1_epi8(15)};
    return c;
}
#endif

/* Marks of the 64 positions from p on. */
TARGET static inline uint64_t step(const uint8_t *p, const constants *c, history *h)
{
    __m512i a = _mm512_xor_si512(_mm512_sub_epi8(load(p), load(p - 1)), _mm512_add_epi8(load(p - 2), load(p - 3)));
    __m512i t = map(a, c);
    __m512i u = _mm512_sub_epi8(t, EARLIER_FOR_U(t, h->t));
    __m512i v = _mm512_xor_si512(u, EARLIER_FOR_V(u, h->u));
    __m512i w = _mm512_add_epi8(v, _mm512_alignr_epi64(v, h->v, 4)); /* 32 positions are half a vector */
    __m512i x = _mm512_xor_si512(w, h->w);
    h->t = t;
    h->u = u;
    h->v = v;
    h->w = w;
    uint64_t marked = _mm512_cmpgt_epi8_mask(x, c->level);
    __asm__("" : "+r"(marked)); /* into a general register once; gcc would fetch it anew for each use */
    return marked;
}

#include "search_loop.h"
#endif
