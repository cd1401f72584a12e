/* xxh3-64 of exactly 4096 bytes (seed 0, default secret): one function per instruction set, all of them equal.
 *
 * For this length the general algorithm has one shape. Eight 64-bit accumulators take in 64-byte stripes; stripe j of a
 * 1024-byte part (16 stripes) is keyed with the secret from byte 8 j on. After each of the first three parts the
 * accumulators are scrambled. The fourth part has only 15 stripes that way; the last stripe is keyed from byte
 * 192 - 64 - 7 = 121 on. Then the accumulators are merged into 64 bits.
 */
#ifndef TT_BLOCK_HASH_H
#define TT_BLOCK_HASH_H
#include "cpu.h"

enum {
    TT_STRIPE = 64,
    TT_PART = 1024,
    TT_PARTS = 4,
    TT_SECRET_STEP = 8,
    TT_SECRET_SCRAMBLE = 128, /* 192 - 64 */
    TT_SECRET_LAST = 121,
    TT_SECRET_MERGE = 11,
    /* How far ahead of the stripe being hashed bytes are asked for: one page, because the processor's own prefetching
     * stops at the end of a page. */
    TT_AHEAD = 4096,
};

#define TT_PRIME32_1 UINT32_C(0x9E3779B1)

/* The algorithm's default secret, the values that the accumulators start from, and the end of the computation. */
extern const uint8_t tt_secret[192];
extern const uint64_t tt_accumulators[8];
uint64_t tt_merge(const uint64_t accumulators[8]);

uint64_t tt_block_hash_scalar(const uint8_t *block);
#if defined(TT_X86)
uint64_t tt_block_hash_ssse3(const uint8_t *block);
uint64_t tt_block_hash_avx2(const uint8_t *block);
uint64_t tt_block_hash_avx512(const uint8_t *block);
#elif defined(TT_NEON)
uint64_t tt_block_hash_neon(const uint8_t *block);
#endif
#endif
