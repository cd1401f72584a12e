/* A strict decoder of raw deflate streams (RFC 1951) that keeps what others forget: tokens, blocks, tables, padding.
 *
 * It accepts what zlib accepts: codes that are complete (those of literals and distances may have a single code of one
 * bit, or none), a code for the end of every block, symbols that exist, distances within the content so far. */
#ifndef TT_INFLATE_H
#define TT_INFLATE_H
#include <stdint.h>

#include "deflate.h"

enum { TT_FAST_BITS = 10 };

/* A code prepared for decoding: a table for short codes, the canonical order for the others. */
typedef struct {
    uint16_t fast[1 << TT_FAST_BITS]; /* symbol * 16 + bits, or 0 */
    uint16_t count[TT_CODE_BITS + 1]; /* codes of each length */
    uint16_t symbols[TT_FIXED_LITERALS];
} tt_decoder;

typedef struct {
    const uint8_t *in; /* the stream, and whatever follows it */
    uint64_t length, next, bits;
    unsigned held;     /* bits in `bits` that are not yet taken */
    uint64_t content;  /* bytes that the tokens so far stand for */
    int type, final;   /* of the block */
    unsigned padding;  /* bits that were skipped before the lengths of a stored block */
    uint32_t stored;   /* bytes in a stored block */
    const uint8_t *stored_bytes;
    tt_table_head head; /* of a dynamic block */
    tt_decoder literal, distance;
} tt_inflater;

enum { TT_TOKEN, TT_BLOCK_END, TT_MALFORMED };

void tt_inflate_begin(tt_inflater *s, const uint8_t *in, uint64_t length);

/* Begins at bit `bit` (0 to 7) of the first byte, behind `context` bytes of content. */
void tt_inflate_begin_at(tt_inflater *s, const uint8_t *in, uint64_t length, unsigned bit, uint64_t context);

/* How many bits of the stream, and of what came before it in the first byte, have been taken. */
uint64_t tt_inflate_bits(const tt_inflater *s);

/* Reads the head of a block; of a stored block all. Returns 0, or TT_MALFORMED. */
int tt_inflate_block(tt_inflater *s);

/* Reads a token of a block that is not stored. */
int tt_inflate_token(tt_inflater *s, tt_token *token);

/* The bits that fill up the last byte, and how many bytes the stream has: both after the final block. */
unsigned tt_inflate_padding(const tt_inflater *s);
uint64_t tt_inflate_consumed(const tt_inflater *s);
#endif
