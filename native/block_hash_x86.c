#include "block_hash.h"

#if defined(TT_X86)
#include <immintrin.h>

/* The same computation three times, with two, four and eight accumulators to a vector. A product of 32-bit halves is
 * one instruction; a 64-bit product with a 32-bit prime is made of two. `value` goes to the neighbouring accumulator,
 * hence the exchange of the halves of each 128 bits. It is added to the product first: the accumulator then waits for
 * one addition per stripe. */

TT_TARGET_SSSE3 static inline __m128i add_128(__m128i acc, __m128i value, const uint8_t *key)
{
    __m128i keyed = _mm_xor_si128(value, _mm_loadu_si128((const __m128i *)key));
    __m128i product = _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32));
    return _mm_add_epi64(acc, _mm_add_epi64(product, _mm_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2))));
}

TT_TARGET_SSSE3 static inline __m128i scramble_128(__m128i acc, const uint8_t *key)
{
    const __m128i prime = _mm_set1_epi32((int)TT_PRIME32_1);
    acc = _mm_xor_si128(acc, _mm_srli_epi64(acc, 47));
    acc = _mm_xor_si128(acc, _mm_loadu_si128((const __m128i *)key));
    __m128i high = _mm_mul_epu32(_mm_srli_epi64(acc, 32), prime);
    return _mm_add_epi64(_mm_mul_epu32(acc, prime), _mm_slli_epi64(high, 32));
}

TT_TARGET_SSSE3 static inline void stripe_128(__m128i acc[4], const uint8_t *stripe, const uint8_t *key)
{
    for (int i = 0; i < 4; i++)
        acc[i] = add_128(acc[i], _mm_loadu_si128((const __m128i *)stripe + i), key + 16 * i);
    TT_PREFETCH(stripe, TT_AHEAD);
}

TT_TARGET_SSSE3 uint64_t tt_block_hash_ssse3(const uint8_t *block)
{
    uint64_t merged[8];
    __m128i acc[4];
    memcpy(acc, tt_accumulators, sizeof acc);
    for (int part = 0; part < TT_PARTS; part++, block += TT_PART) {
        for (int j = 0; j < 15; j++)
            stripe_128(acc, block + TT_STRIPE * j, tt_secret + TT_SECRET_STEP * j);
        if (part == TT_PARTS - 1)
            break;
        stripe_128(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_STEP * 15);
        for (int i = 0; i < 4; i++)
            acc[i] = scramble_128(acc[i], tt_secret + TT_SECRET_SCRAMBLE + 16 * i);
    }
    stripe_128(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_LAST);
    memcpy(merged, acc, sizeof merged);
    return tt_merge(merged);
}

TT_TARGET_AVX2 static inline __m256i add_256(__m256i acc, __m256i value, const uint8_t *key)
{
    __m256i keyed = _mm256_xor_si256(value, _mm256_loadu_si256((const __m256i *)key));
    __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    return _mm256_add_epi64(acc, _mm256_add_epi64(product, _mm256_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2))));
}

TT_TARGET_AVX2 static inline __m256i scramble_256(__m256i acc, const uint8_t *key)
{
    const __m256i prime = _mm256_set1_epi32((int)TT_PRIME32_1);
    acc = _mm256_xor_si256(acc, _mm256_srli_epi64(acc, 47));
    acc = _mm256_xor_si256(acc, _mm256_loadu_si256((const __m256i *)key));
    __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(acc, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(acc, prime), _mm256_slli_epi64(high, 32));
}

TT_TARGET_AVX2 static inline void stripe_256(__m256i acc[2], const uint8_t *stripe, const uint8_t *key)
{
    for (int i = 0; i < 2; i++)
        acc[i] = add_256(acc[i], _mm256_loadu_si256((const __m256i *)stripe + i), key + 32 * i);
    TT_PREFETCH(stripe, TT_AHEAD);
}

TT_TARGET_AVX2 uint64_t tt_block_hash_avx2(const uint8_t *block)
{
    uint64_t merged[8];
    __m256i acc[2];
    memcpy(acc, tt_accumulators, sizeof acc);
    for (int part = 0; part < TT_PARTS; part++, block += TT_PART) {
        for (int j = 0; j < 15; j++)
            stripe_256(acc, block + TT_STRIPE * j, tt_secret + TT_SECRET_STEP * j);
        if (part == TT_PARTS - 1)
            break;
        stripe_256(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_STEP * 15);
        for (int i = 0; i < 2; i++)
            acc[i] = scramble_256(acc[i], tt_secret + TT_SECRET_SCRAMBLE + 32 * i);
    }
    stripe_256(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_LAST);
    memcpy(merged, acc, sizeof merged);
    return tt_merge(merged);
}

TT_TARGET_AVX512 static inline __m512i stripe_512(__m512i acc, const uint8_t *stripe, const uint8_t *key)
{
    __m512i value = _mm512_loadu_si512(stripe);
    __m512i keyed = _mm512_xor_si512(value, _mm512_loadu_si512(key));
    __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
    TT_PREFETCH(stripe, TT_AHEAD);
    return _mm512_add_epi64(acc, _mm512_add_epi64(product, _mm512_shuffle_epi32(value, _MM_PERM_BADC)));
}

TT_TARGET_AVX512 static inline __m512i scramble_512(__m512i acc, const uint8_t *key)
{
    const __m512i prime = _mm512_set1_epi32((int)TT_PRIME32_1);
    acc = _mm512_xor_si512(acc, _mm512_srli_epi64(acc, 47));
    acc = _mm512_xor_si512(acc, _mm512_loadu_si512(key));
    __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(acc, 32), prime);
    return _mm512_add_epi64(_mm512_mul_epu32(acc, prime), _mm512_slli_epi64(high, 32));
}

TT_TARGET_AVX512 uint64_t tt_block_hash_avx512(const uint8_t *block)
{
    uint64_t merged[8];
    __m512i acc = _mm512_loadu_si512(tt_accumulators);
    for (int part = 0; part < TT_PARTS; part++, block += TT_PART) {
        for (int j = 0; j < 15; j++)
            acc = stripe_512(acc, block + TT_STRIPE * j, tt_secret + TT_SECRET_STEP * j);
        if (part == TT_PARTS - 1)
            break;
        acc = stripe_512(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_STEP * 15);
        acc = scramble_512(acc, tt_secret + TT_SECRET_SCRAMBLE);
    }
    acc = stripe_512(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_LAST);
    _mm512_storeu_si512(merged, acc);
    return tt_merge(merged);
}
#else
typedef int nothing_here; /* a translation unit must not be empty */
#endif
