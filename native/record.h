/* Blocks of a record of recompression: the bytes of FORMAT.md, section "Recompression". */
#ifndef TT_RECORD_H
#define TT_RECORD_H
#include <stdint.h>

#include "deflate.h"

enum {
    TT_TYPE = 3,         /* mask: a deflate type, or */
    TT_MARK = 3,         /* an empty stored block */
    TT_FINAL = 4,
    TT_SEGMENT = 8,      /* a segment begins that ends before the content does: its size follows */
    TT_SIZE = 16,        /* tokens in the block, or bytes of a stored one, follow */
    TT_EXPLICIT = 32,    /* follows: how code lengths are written; of a stored block its padding */
    TT_LAST_BITS = 64,   /* the bits that fill up the last byte follow */
    TT_CORRECTIONS = 128,
    TT_PREDICTED_MOST = 32768, /* tokens in a block whose codes are made from them */
};

/* A record that is read, or written; `bad` once something did not fit. */
typedef struct {
    const uint8_t *bytes;
    uint64_t length, at;
    int bad;
} tt_record_reader;

typedef struct {
    uint8_t *bytes;
    uint64_t capacity, at;
    int full;
} tt_record_writer;

static inline unsigned tt_get_byte(tt_record_reader *r)
{
    if (r->at < r->length)
        return r->bytes[r->at++];
    r->bad = 1;
    return 0;
}

/* A number below 2^32 in groups of seven bits, lowest first, all but the last with bit 7 set. */
static inline uint32_t tt_get_number(tt_record_reader *r)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        unsigned byte = tt_get_byte(r);
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            r->bad |= value >> 32 != 0 || (byte == 0 && shift > 0);
            return (uint32_t)value;
        }
    }
    r->bad = 1;
    return 0;
}

static inline void tt_add_byte(tt_record_writer *w, unsigned value)
{
    if (w->at < w->capacity)
        w->bytes[w->at++] = (uint8_t)value;
    else
        w->full = 1;
}

static inline void tt_add_number(tt_record_writer *w, uint32_t value)
{
    for (; value >= 128; value >>= 7)
        tt_add_byte(w, (value & 127) | 128);
    tt_add_byte(w, value);
}

/* A correction: 0 for a literal, or the length less 2 and the distance less 1. */
static inline void tt_add_token(tt_record_writer *w, tt_token token)
{
    tt_add_number(w, token.length == 0 ? 0 : token.length - 2u);
    if (token.length > 0) {
        tt_add_byte(w, (token.distance - 1u) & 255);
        tt_add_byte(w, (token.distance - 1u) >> 8);
    }
}

/* `literal`: the byte that a literal would be. */
static inline tt_token tt_get_token(tt_record_reader *r, uint8_t literal)
{
    uint32_t length = tt_get_number(r);
    if (length == 0)
        return (tt_token){0, literal};
    unsigned low = tt_get_byte(r), distance = (low | tt_get_byte(r) << 8) + 1;
    r->bad |= length > TT_ODD_MATCH - 2 || distance > TT_WINDOW;
    return r->bad ? (tt_token){0, literal} : (tt_token){(uint16_t)(length + 2), (uint16_t)distance};
}

static inline void tt_add_head(tt_record_writer *w, const tt_table_head *head)
{
    tt_add_byte(w, head->literals - 257u);
    tt_add_byte(w, head->distances - 1u);
    tt_add_byte(w, head->lengths - 4u);
    for (unsigned i = 0; i < head->lengths; i++)
        tt_add_byte(w, head->code[TT_LENGTH_ORDER[i]]);
    for (unsigned i = 0; i < head->count; i++) {
        tt_add_byte(w, head->symbols[i]);
        if (head->symbols[i] >= 16)
            tt_add_byte(w, head->extra[i]);
    }
}

/* Whether its symbols make sense is seen when codes are made of them; here only that the arrays hold them. */
static inline void tt_get_head(tt_record_reader *r, tt_table_head *head)
{
    static const uint8_t least[3] = {3, 3, 11};
    head->literals = (uint16_t)(tt_get_byte(r) + 257);
    head->distances = (uint16_t)(tt_get_byte(r) + 1);
    head->lengths = (uint16_t)(tt_get_byte(r) + 4);
    head->count = 0;
    r->bad |= head->literals > TT_SYMBOLS || head->distances > TT_DISTANCES || head->lengths > TT_LENGTHS;
    for (unsigned i = 0; i < TT_LENGTHS; i++)
        head->code[i] = 0;
    for (unsigned i = 0; i < head->lengths && !r->bad; i++) {
        unsigned bits = tt_get_byte(r);
        r->bad |= bits > TT_LENGTH_BITS;
        head->code[TT_LENGTH_ORDER[i]] = (uint8_t)bits;
    }
    for (unsigned done = 0; done < (unsigned)head->literals + head->distances && !r->bad; head->count++) {
        unsigned symbol = tt_get_byte(r), extra = symbol < 16 ? 0 : tt_get_byte(r);
        r->bad |= symbol >= TT_LENGTHS;
        head->symbols[head->count] = (uint8_t)symbol;
        head->extra[head->count] = (uint8_t)extra;
        done += symbol < 16 || r->bad ? 1 : least[symbol - 16] + extra;
    }
}
#endif
