#include "hints.h"

#include "block_hash.h"

/* The xxh3-64 of 4096 zero bytes. */
#define HASH_OF_ZEROS UINT64_C(0x93d76fe148c689ba)

typedef uint64_t block_hash(const uint8_t *block);

static block_hash *choose(void)
{
    switch (tt_path()) {
#if defined(TT_X86)
    case TT_128:
        return tt_block_hash_ssse3;
    case TT_AVX2:
        return tt_block_hash_avx2;
    case TT_AVX512:
        return tt_block_hash_avx512;
#elif defined(TT_NEON)
    case TT_128:
        return tt_block_hash_neon;
#endif
    default:
        return tt_block_hash_scalar;
    }
}

static uint64_t any_bit(const uint8_t *p, int length)
{
    uint64_t bits = 0;
    for (int i = 0; i < length; i += 8)
        bits |= tt_read64(p + i);
    return bits;
}

/* A block with another hash than that of zeros is not zero; one with the same hash is looked at, so that the flag is
 * exact. Nothing is spent on blocks that are not zero. */
static uint8_t flags_of(const uint8_t *block, uint64_t hash)
{
    if (hash == HASH_OF_ZEROS && any_bit(block, TT_BLOCK) == 0)
        return TT_ZERO_BLOCK;
    return any_bit(block + TT_BLOCK - 16, 16) == 0 ? TT_ZERO_TAIL : 0;
}

/* xxh3 leaves all 64 bits well mixed; this makes the value that is compared with thresholds a function of both halves
 * that stays the same should another block hash ever take its place. */
static uint32_t mix(uint64_t hash)
{
    return (uint32_t)(((hash ^ hash >> 31) * UINT64_C(0x9E3779B97F4A7C15)) >> 32);
}

void tt_hints(const uint8_t *data, uint64_t length, uint32_t *mixed, uint8_t *flags)
{
    block_hash *hash_of = choose();
    uint64_t whole = length / TT_BLOCK, rest = length % TT_BLOCK;
    for (uint64_t i = 0; i < whole; i++, data += TT_BLOCK) {
        uint64_t hash = hash_of(data);
        mixed[i] = mix(hash);
        flags[i] = flags_of(data, hash);
    }
    if (rest > 0) {
        uint8_t padded[TT_BLOCK] = {0};
        memcpy(padded, data, rest);
        uint64_t hash = hash_of(padded);
        mixed[whole] = mix(hash);
        flags[whole] = flags_of(padded, hash);
    }
}
