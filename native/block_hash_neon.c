#include "block_hash.h"

#if defined(TT_NEON)
#include <arm_neon.h>

/* As block_hash_x86.c, with two accumulators to a vector. */

static inline uint64x2_t load(const uint8_t *p)
{
    return vreinterpretq_u64_u8(vld1q_u8(p));
}

static inline void stripe_neon(uint64x2_t acc[4], const uint8_t *stripe, const uint8_t *key)
{
    for (int i = 0; i < 4; i++) {
        uint64x2_t value = load(stripe + 16 * i), keyed = veorq_u64(value, load(key + 16 * i));
        acc[i] = vaddq_u64(acc[i], vextq_u64(value, value, 1));
        acc[i] = vmlal_u32(acc[i], vmovn_u64(keyed), vshrn_n_u64(keyed, 32));
    }
    TT_PREFETCH(stripe, TT_AHEAD);
}

static inline uint64x2_t scramble_neon(uint64x2_t acc, const uint8_t *key)
{
    const uint32x2_t prime = vdup_n_u32(TT_PRIME32_1);
    acc = veorq_u64(veorq_u64(acc, vshrq_n_u64(acc, 47)), load(key));
    uint64x2_t high = vmull_u32(vshrn_n_u64(acc, 32), prime);
    return vmlal_u32(vshlq_n_u64(high, 32), vmovn_u64(acc), prime);
}

uint64_t tt_block_hash_neon(const uint8_t *block)
{
    uint64_t merged[8];
    uint64x2_t acc[4];
    memcpy(acc, tt_accumulators, sizeof acc);
    for (int part = 0; part < TT_PARTS; part++, block += TT_PART) {
        for (int j = 0; j < 15; j++)
            stripe_neon(acc, block + TT_STRIPE * j, tt_secret + TT_SECRET_STEP * j);
        if (part == TT_PARTS - 1)
            break;
        stripe_neon(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_STEP * 15);
        for (int i = 0; i < 4; i++)
            acc[i] = scramble_neon(acc[i], tt_secret + TT_SECRET_SCRAMBLE + 16 * i);
    }
    stripe_neon(acc, block + TT_STRIPE * 15, tt_secret + TT_SECRET_LAST);
    memcpy(merged, acc, sizeof merged);
    return tt_merge(merged);
}
#else
typedef int nothing_here; /* a translation unit must not be empty */
#endif
