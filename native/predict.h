/* Predicts the tokens of compressors that search matches by hash chains with lazy evaluation, as zlib and gzip do.
 *
 * The prediction is part of the format: section "Recompression" of FORMAT.md specifies it. It follows the tokens that
 * the compressor really chose, so that a wrong guess costs one correction and spoils nothing behind it. */
#ifndef TT_PREDICT_H
#define TT_PREDICT_H
#include <stdint.h>

#include "deflate.h"

enum { TT_GREEDY = 0, TT_LAZY = 1, TT_RUNS = 2, TT_NO_MATCHES = 3 };

enum {
    TT_LOOKAHEAD = TT_MIN_MATCH + TT_MAX_MATCH + 1, /* a match lies less far back than the window by so much */
    TT_TOO_FAR = 4096,                              /* lazy: a match of 3 bytes from further back is not taken */
    TT_FILTERED_LEAST = 6,                          /* filtered: shorter matches are not taken */
    TT_GNU_LAST = 65274,                            /* gnu: last place in the buffer where a match may begin, */
    TT_GNU_BUFFER = 65536,                          /* of its bytes */
    TT_HASH_BITS = 16,                              /* the most */
    TT_QUADS = 15,                                  /* bits of the hash of four bytes */
};

/* What a record says of the compressor. */
typedef struct {
    uint32_t search;                  /* TT_GREEDY and so on */
    uint32_t good, lazy, nice, chain; /* of its level */
    uint32_t filtered, independent, gnu; /* 0 or 1 */
    uint32_t early;                   /* 0 or 1: a block may end before it is full */
    uint32_t hash_bits;               /* 8 to 16 */
    uint32_t farthest;                /* largest distance */
    uint32_t block;                   /* tokens that fill a block */
} tt_compressor;

typedef struct {
    tt_compressor by;
    const uint8_t *data;  /* the content from its start */
    uint64_t length;
    uint32_t position;    /* where the next token begins */
    uint32_t start, end;  /* of the segment: matches end in it */
    uint32_t floor;       /* candidates lie behind it */
    uint32_t tail;        /* from here on no match is looked for */
    uint32_t next;        /* first position that is not in the chains */
    uint32_t ahead;       /* first position that is not in those of quads */
    tt_token carried;     /* found already at `position`, if `carries` */
    tt_token after;       /* found at `position` + 1 by the prediction of a literal, if `foresees` */
    int carries, foresees;
    unsigned shift;
    uint32_t mask;
    uint16_t before[TT_WINDOW];       /* by position mod 2^15: distance to the one before it in its chain, or 0 */
    uint16_t order[TT_WINDOW];        /* by position: how many came before it in its chain, modulo 2^16 */
    uint32_t last[1 << TT_HASH_BITS]; /* by hash: the last position, or 0 */
    /* Chains of positions whose next four bytes (a quad) have one hash; they reach ahead of the position. */
    uint16_t quads[2 * TT_WINDOW];
    uint32_t last_quad[1 << TT_QUADS];
} tt_predictor;

/* What a block holds so far, for the rule that ends it. */
typedef struct {
    uint32_t start, tokens, matches;
    uint64_t bits; /* distances: 5 and the extra bits of each */
} tt_block;

/* Reads the three bytes of a record; returns 0 if they are not as FORMAT.md says. */
int tt_compressor_read(tt_compressor *by, const uint8_t *bytes);

void tt_predict_begin(tt_predictor *p, const tt_compressor *by, const uint8_t *data, uint64_t length);

/* What follows is a slice: tokens begin behind `context` bytes of the content, and how it ends is not known. */
void tt_predict_slice(tt_predictor *p, uint32_t context);

/* A segment begins at the position and ends at `end`. */
void tt_predict_segment(tt_predictor *p, uint32_t end);

/* The token that the compressor is expected to choose; the position lies before the segment's end. */
tt_token tt_predict(tt_predictor *p);

/* What it did choose: a token that ends in the segment. */
void tt_predict_accept(tt_predictor *p, tt_token token);

/* `size` bytes of the segment whose tokens nobody knows. */
void tt_predict_skip(tt_predictor *p, uint32_t size);

/* Counts a token that begins at `position`; tells whether a compressor ends the block behind it. */
int tt_block_add(tt_block *block, const tt_compressor *by, uint32_t position, tt_token token);
#endif
