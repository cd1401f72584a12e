/* Words and numbers of the deflate format (RFC 1951) that the files of this folder share.
 *
 * A token is what a compressor chose: a literal byte, or a match of `length` bytes that lie `distance` bytes back. The
 * length 258 has two codes; the length 259 stands for the one that no compressor uses (284 with all extra bits set). */
#ifndef TT_DEFLATE_H
#define TT_DEFLATE_H
#include <stdint.h>

enum {
    TT_MIN_MATCH = 3,
    TT_MAX_MATCH = 258,
    TT_ODD_MATCH = 259,     /* 258 bytes, written as code 284 with extra bits 31 */
    TT_WINDOW = 32768,      /* a match lies at most so far back */
    TT_SYMBOLS = 286,      /* symbols of literals, the block's end and lengths */
    TT_DISTANCES = 30,
    TT_LENGTHS = 19,        /* symbols that code lengths are written with */
    TT_END = 256,           /* symbol that ends a block */
    TT_CODE_BITS = 15,      /* longest code of a literal or distance */
    TT_LENGTH_BITS = 7,     /* longest code of a code length */
    TT_FIXED_LITERALS = 288,
    TT_STORED_MOST = 65535, /* bytes in a stored block */
};

enum { TT_STORED = 0, TT_FIXED = 1, TT_DYNAMIC = 2 };

typedef struct {
    uint16_t length;   /* 0: a literal, whose byte is in `distance`; else 3 to 259 */
    uint16_t distance; /* 1 to 32768 */
} tt_token;

/* How a dynamic block writes its code lengths: the lengths of the code for them, then symbols and their extra bits. */
typedef struct {
    uint16_t literals;          /* 257 to 286 lengths that are written */
    uint16_t distances;         /* 1 to 30 */
    uint16_t lengths;           /* 4 to 19 */
    uint16_t count;             /* symbols below: 1 to literals + distances */
    uint8_t code[TT_LENGTHS];   /* length of the code of each symbol: 0 to 7, by symbol */
    uint8_t symbols[TT_SYMBOLS + TT_DISTANCES];
    uint8_t extra[TT_SYMBOLS + TT_DISTANCES];
} tt_table_head;

/* Lengths of the codes of a block. */
typedef struct {
    uint8_t literal[TT_FIXED_LITERALS];
    uint8_t distance[TT_DISTANCES];
} tt_code_lengths;

/* Symbols in the order in which the lengths of their codes are written. */
static const uint8_t TT_LENGTH_ORDER[TT_LENGTHS] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

/* Position of the highest bit set; `value` is not 0. */
static inline unsigned tt_high_bit(uint32_t value)
{
#if defined(__GNUC__) || defined(__clang__)
    return 31u - (unsigned)__builtin_clz(value);
#else
    unsigned bit = 0;
    while (value >>= 1)
        bit++;
    return bit;
#endif
}

/* A symbol, and the extra bits behind it. */
typedef struct {
    uint16_t symbol, bits, value;
} tt_coded;

static inline tt_coded tt_code_length(unsigned length)
{
    uint32_t x = length - TT_MIN_MATCH;
    if (length == TT_MAX_MATCH)
        return (tt_coded){285, 0, 0};
    if (length == TT_ODD_MATCH)
        x = TT_MAX_MATCH - TT_MIN_MATCH;
    if (x < 8)
        return (tt_coded){(uint16_t)(257 + x), 0, 0};
    unsigned extra = tt_high_bit(x) - 2;
    return (tt_coded){(uint16_t)(257 + 4 * extra + (x >> extra)), (uint16_t)extra, (uint16_t)(x & ((1u << extra) - 1))};
}

static inline tt_coded tt_code_distance(unsigned distance)
{
    uint32_t x = distance - 1;
    if (x < 4)
        return (tt_coded){(uint16_t)x, 0, 0};
    unsigned extra = tt_high_bit(x) - 1;
    return (tt_coded){(uint16_t)(2 * extra + (x >> extra)), (uint16_t)extra, (uint16_t)(x & ((1u << extra) - 1))};
}

/* Bytes of content that a token stands for. */
static inline unsigned tt_token_size(tt_token token)
{
    return token.length == 0 ? 1 : token.length == TT_ODD_MATCH ? TT_MAX_MATCH : token.length;
}

static inline int tt_same_token(tt_token a, tt_token b)
{
    return a.length == b.length && a.distance == b.distance;
}
#endif
