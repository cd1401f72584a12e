/* Hints of 4 KiB blocks: the first half of chunker 1, whose second half is cut.h.
 *
 * A block's hint is its xxh3-64 (seed 0, default secret; https://github.com/Cyan4973/xxHash, "XXH3 algorithm
 * overview"). Hints decide where chunks end and are then forgotten: they are stored nowhere and prove nothing.
 */
#ifndef TT_HINTS_H
#define TT_HINTS_H
#include <stdint.h>

/* cffi: begin */
enum { TT_BLOCK = 4096 };
enum { TT_ZERO_BLOCK = 1, TT_ZERO_TAIL = 2 }; /* bits of flags */

/* For block i of `data` (the last one may be short; it counts as padded with zeros to 4096 bytes):
 *   mixed[i] = the upper half of (h xor h>>31) * 0x9E3779B97F4A7C15 mod 2^64, h being the block's xxh3-64;
 *   flags[i] = TT_ZERO_BLOCK if all its bytes are zero, TT_ZERO_TAIL if not, but its last 16 are; else 0.
 * Both arrays hold ceil(length / 4096) elements. Reads `length` bytes of `data`, at any alignment, and no more. */
void tt_hints(const uint8_t *data, uint64_t length, uint32_t *mixed, uint8_t *flags);
/* cffi: end */
#endif
