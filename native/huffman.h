/* The codes that zlib and gzip make from the frequencies of a block's symbols, and writing with them.
 *
 * Section "Recompression" of FORMAT.md specifies them to the last tie. */
#ifndef TT_HUFFMAN_H
#define TT_HUFFMAN_H
#include <stdint.h>

#include "deflate.h"

/* Frequencies of a block's symbols. */
typedef struct {
    uint32_t literal[TT_SYMBOLS];
    uint32_t distance[TT_DISTANCES];
} tt_counts;

/* Codes as they are written, first bit lowest. */
typedef struct {
    uint16_t literal[TT_FIXED_LITERALS], distance[TT_DISTANCES];
    tt_code_lengths bits;
} tt_codes;

/* Bits on their way to bytes. */
typedef struct {
    uint8_t *out;
    uint64_t bits;
    unsigned held;
} tt_bit_writer;

/* Adds up to 32 bits. The whole bytes leave at once, so that at most 7 bits stay. */
static inline void tt_put(tt_bit_writer *w, uint32_t value, unsigned bits)
{
    w->bits |= (uint64_t)value << w->held;
    for (w->held += bits; w->held >= 8; w->held -= 8, w->bits >>= 8)
        *w->out++ = (uint8_t)w->bits;
}

void tt_count(tt_counts *counts, tt_token token);

/* The lengths of the codes for these frequencies, none above `most` bits. */
void tt_code_lengths_of(const uint32_t *counts, unsigned symbols, unsigned most, uint8_t *lengths);

/* How a dynamic block with these symbols is expected to write its code lengths. */
void tt_expected_head(const tt_counts *counts, tt_table_head *head);

int tt_same_head(const tt_table_head *a, const tt_table_head *b);

/* The codes that a head describes; returns 0 if its numbers, symbols or repetitions do not fit. */
int tt_codes_of(const tt_table_head *head, tt_codes *codes);

void tt_fixed_codes(tt_codes *codes);

void tt_put_head(tt_bit_writer *w, const tt_table_head *head);
void tt_put_token(tt_bit_writer *w, const tt_codes *codes, tt_token token);
#endif
