/* The cut rule for disk images: the second half of chunker 1, over the hints and flags of one region's blocks. */
#ifndef TT_CUT_H
#define TT_CUT_H
#include <stdint.h>

/* cffi: begin */
#define TT_ZERO_RECORD 0x80000000
#define TT_MAX_BLOCKS 64

/* Divides a region of `blocks` blocks (fewer than 2^31) into records, in order and without gaps, and returns their
 * number, at most `blocks`: runs[i] = number of blocks, with TT_ZERO_RECORD set if they are a zero record, else they
 * are a chunk. `mixed` and `flags` are what tt_hints made of the region; `runs` has room for `blocks` elements.
 *
 * A maximal run of zero blocks is a zero record if it has 4 blocks or more, or directly follows a cut, or touches the
 * region's start or end; it ends the chunk before it. All other blocks belong to chunks; a chunk ends after the block
 * that, as its n-th,
 *   (1) makes n = TT_MAX_BLOCKS, or
 *   (2) is not zero but ends in 16 zero bytes (here a file ends, nearly always), or
 *   (3) has mixed < 2^32 / 48 while n < 18, or mixed < 2^32 / 12 from n = 18 on. */
uint64_t tt_cut(const uint32_t *mixed, const uint8_t *flags, uint64_t blocks, uint32_t *runs);
/* cffi: end */
#endif
