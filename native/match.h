/* Rolling match: where the blocks of a table occur in a buffer, at any offset; for local data that is not aligned.
 *
 * A window of `size` bytes b has the sums, as in rsync but without folding them to 16 bits,
 *
 *     low  = b[0] + b[1] + ... + b[size-1]                       mod 2^32
 *     high = size * b[0] + (size-1) * b[1] + ... + 1 * b[size-1] mod 2^32
 *
 * which roll on by one byte in two additions, and from them the key (high * 2^32 + low) * 0x9E3779B97F4A7C15 mod 2^64.
 * The factor is odd, so that different sums have different keys; it spreads them over the upper bits. Keys prove
 * nothing: the caller compares a strong digest. */
#ifndef TT_MATCH_H
#define TT_MATCH_H
#include <stdint.h>

/* cffi: begin */
/* Keys of blocks, prepared for look-up. `keys` is in rising order and may hold equal ones. */
typedef struct {
    uint64_t size;          /* bytes in a block: 16 to 2^24, so that `low` never wraps */
    uint64_t count;         /* 0 to 2^25 */
    uint32_t bits;          /* 11 to 31; the filter is right for any, and good where 2^bits >= 64 * count */
    const uint64_t *keys;   /* [count] */
    const uint64_t *filter; /* [2^bits / 64]: bit k is set if a key has k as its upper `bits` bits */
    const uint32_t *starts; /* [2^(bits - 5) + 1]: how many keys are below j * 2^(69 - bits) */
} tt_blocks;

/* Fills the filter and the starts of such a table from its keys. */
void tt_match_prepare(const uint64_t *keys, uint64_t count, uint32_t bits, uint64_t *filter, uint32_t *starts);

/* Writes the keys of the `count` blocks of `size` bytes that lie one after the other at `data`. */
void tt_match_keys(const uint8_t *data, uint64_t count, uint64_t size, uint64_t *keys);

/* Looks at the window at every offset from *position on that lies in data[0..length). For each whose key is in the
 * table it writes the offset and the row of the first such key; returns how many, at most `capacity`. *position is
 * then the first offset that was not looked at: length - size + 1 at the end of the data; where the capacity ran out
 * the next call goes on from there. Every call adds up one window and then rolls, one table look-up to the byte at
 * most; of equal keys it reads one. */
uint64_t tt_match(const uint8_t *data, uint64_t length, const tt_blocks *blocks, uint64_t *position, uint64_t *offsets,
                  uint32_t *rows, uint64_t capacity);
/* cffi: end */
#endif
