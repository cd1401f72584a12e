#include "inflate.h"

#include <string.h>

#include "cpu.h"

void tt_inflate_begin(tt_inflater *s, const uint8_t *in, uint64_t length)
{
    s->in = in;
    s->length = length;
    s->next = s->bits = s->content = 0;
    s->held = 0;
}

/* Holds at least 56 bits, or all that are left. */
static inline void refill(tt_inflater *s)
{
    if (s->length - s->next >= 8) {
        /* Bits above `held` are those of the stream already: the same bits are put there again. */
        s->bits |= tt_read64(s->in + s->next) << s->held;
        s->next += (63 - s->held) >> 3;
        s->held |= 56;
        return;
    }
    if (s->held < 64)
        s->bits &= ((uint64_t)1 << s->held) - 1;
    for (; s->held <= 56 && s->next < s->length; s->held += 8)
        s->bits |= (uint64_t)s->in[s->next++] << s->held;
}

static inline void drop(tt_inflater *s, unsigned count)
{
    s->bits >>= count;
    s->held -= count;
}

/* Takes up to 16 bits; returns -1 if there are not so many. */
static int take(tt_inflater *s, unsigned count)
{
    refill(s);
    if (s->held < count)
        return -1;
    int value = (int)(s->bits & ((1u << count) - 1));
    drop(s, count);
    return value;
}

static unsigned reversed(unsigned code, unsigned bits)
{
    unsigned result = 0;
    for (; bits > 0; bits--, code >>= 1)
        result = result << 1 | (code & 1);
    return result;
}

void tt_inflate_begin_at(tt_inflater *s, const uint8_t *in, uint64_t length, unsigned bit, uint64_t context)
{
    tt_inflate_begin(s, in, length);
    s->content = context;
    take(s, bit);
}

/* Sets the entries of all bit patterns that begin with a short code. */
static void enter(tt_decoder *d, unsigned code, unsigned bits, unsigned symbol)
{
    for (unsigned at = reversed(code, bits); at < 1u << TT_FAST_BITS; at += 1u << bits)
        d->fast[at] = (uint16_t)(symbol << 4 | bits);
}

enum { WRONG, PARTIAL, COMPLETE };

/* Prepares a code; WRONG if it is neither complete nor has at most one code, of one bit. */
static int prepare(tt_decoder *d, const uint8_t *lengths, unsigned symbols)
{
    uint16_t place[TT_CODE_BITS + 2] = {0};
    unsigned code[TT_CODE_BITS + 2] = {0};
    int left = 1, longest = 0;
    memset(d->count, 0, sizeof d->count);
    memset(d->fast, 0, sizeof d->fast);
    for (unsigned i = 0; i < symbols; i++)
        d->count[lengths[i]]++;
    d->count[0] = 0;
    for (int bits = 1; bits <= TT_CODE_BITS; bits++) {
        left = 2 * left - d->count[bits];
        if (left < 0)
            return WRONG;
        longest = d->count[bits] > 0 ? bits : longest;
        place[bits + 1] = (uint16_t)(place[bits] + d->count[bits]);
        code[bits + 1] = (code[bits] + d->count[bits]) << 1;
    }
    for (unsigned i = 0; i < symbols; i++) {
        unsigned bits = lengths[i];
        if (bits == 0)
            continue;
        d->symbols[place[bits]++] = (uint16_t)i;
        if (bits <= TT_FAST_BITS)
            enter(d, code[bits], bits, i);
        code[bits]++;
    }
    return left == 0 ? COMPLETE : longest <= 1 ? PARTIAL : WRONG;
}

/* Decodes a symbol of a code with more bits than the table has; the bits at hand may be too few. Returns -1. */
static int decode_long(tt_inflater *s, const tt_decoder *d)
{
    int code = 0, first = 0, index = 0;
    for (unsigned bits = 1; bits <= TT_CODE_BITS && bits <= s->held; bits++) {
        code |= (int)(s->bits >> (bits - 1) & 1);
        if (code - first < d->count[bits]) {
            drop(s, bits);
            return d->symbols[index + code - first];
        }
        index += d->count[bits];
        first = (first + d->count[bits]) << 1;
        code <<= 1;
    }
    return -1;
}

/* Decodes a symbol from the bits at hand, or returns -1. */
static inline int decode(tt_inflater *s, const tt_decoder *d)
{
    unsigned entry = d->fast[s->bits & ((1u << TT_FAST_BITS) - 1)];
    if (entry == 0 || (entry & 15) > s->held)
        return decode_long(s, d);
    drop(s, entry & 15);
    return (int)(entry >> 4);
}

static void fixed_block(tt_inflater *s)
{
    tt_code_lengths fixed;
    uint8_t five[TT_DISTANCES + 2];
    memset(fixed.literal, 8, 144);
    memset(fixed.literal + 144, 9, 112);
    memset(fixed.literal + 256, 7, 24);
    memset(fixed.literal + 280, 8, 8);
    memset(five, 5, sizeof five);
    prepare(&s->literal, fixed.literal, TT_FIXED_LITERALS);
    prepare(&s->distance, five, TT_DISTANCES + 2);
}

/* Reads the numbers of code lengths and the code that they are written with. */
static int table_head(tt_inflater *s)
{
    tt_table_head *h = &s->head;
    int literals = take(s, 5), distances = take(s, 5), lengths = take(s, 4);
    if (lengths < 0 || literals + 257 > TT_SYMBOLS || distances + 1 > TT_DISTANCES)
        return TT_MALFORMED;
    h->literals = (uint16_t)(literals + 257);
    h->distances = (uint16_t)(distances + 1);
    h->lengths = (uint16_t)(lengths + 4);
    memset(h->code, 0, sizeof h->code);
    for (unsigned i = 0; i < h->lengths; i++) {
        int bits = take(s, 3);
        if (bits < 0)
            return TT_MALFORMED;
        h->code[TT_LENGTH_ORDER[i]] = (uint8_t)bits;
    }
    return prepare(&s->literal, h->code, TT_LENGTHS) == COMPLETE ? 0 : TT_MALFORMED;
}

/* Reads the code lengths of a dynamic block and prepares its codes. */
static int dynamic_block(tt_inflater *s)
{
    static const uint8_t bits[3] = {2, 3, 7}, least[3] = {3, 3, 11};
    tt_table_head *h = &s->head;
    uint8_t lengths[TT_SYMBOLS + TT_DISTANCES];
    if (table_head(s) != 0)
        return TT_MALFORMED;
    unsigned total = (unsigned)h->literals + h->distances, done = 0;
    for (h->count = 0; done < total; h->count++) {
        refill(s);
        int symbol = decode(s, &s->literal);
        if (symbol < 0)
            return TT_MALFORMED;
        int extra = symbol < 16 ? 0 : take(s, bits[symbol - 16]);
        unsigned repeated = symbol < 16 ? 1 : least[symbol - 16] + (unsigned)extra;
        if (extra < 0 || repeated > total - done || (symbol == 16 && done == 0))
            return TT_MALFORMED;
        memset(lengths + done, symbol < 16 ? symbol : symbol == 16 ? lengths[done - 1] : 0, repeated);
        h->symbols[h->count] = (uint8_t)symbol;
        h->extra[h->count] = (uint8_t)extra;
        done += repeated;
    }
    if (lengths[TT_END] == 0)
        return TT_MALFORMED;
    int literal = prepare(&s->literal, lengths, h->literals);
    int distance = prepare(&s->distance, lengths + h->literals, h->distances);
    return literal == WRONG || distance == WRONG ? TT_MALFORMED : 0;
}

static int stored_block(tt_inflater *s)
{
    unsigned odd = s->held % 8;
    s->padding = (unsigned)(s->bits & ((1u << odd) - 1));
    drop(s, odd);
    int length = take(s, 16), inverse = take(s, 16);
    if (inverse < 0 || (length ^ inverse) != 0xFFFF)
        return TT_MALFORMED;
    uint64_t at = s->next - s->held / 8;
    if ((uint64_t)length > s->length - at)
        return TT_MALFORMED;
    s->stored = (uint32_t)length;
    s->stored_bytes = s->in + at;
    s->content += (uint32_t)length;
    s->next = at + (uint32_t)length;
    s->bits = 0;
    s->held = 0;
    return 0;
}

int tt_inflate_block(tt_inflater *s)
{
    int head = take(s, 3);
    if (head < 0)
        return TT_MALFORMED;
    s->final = head & 1;
    s->type = head >> 1;
    if (s->type == TT_STORED)
        return stored_block(s);
    if (s->type == TT_FIXED)
        fixed_block(s);
    return s->type == TT_FIXED ? 0 : s->type == TT_DYNAMIC ? dynamic_block(s) : TT_MALFORMED;
}

/* Reads the rest of a match: the extra bits of its length, and its distance. At least 41 bits, or all, are at hand. */
static int match(tt_inflater *s, unsigned symbol, tt_token *token)
{
    unsigned x = symbol - 257, extra = x < 8 || x == 28 ? 0 : x / 4 - 1;
    unsigned length = x < 8 ? x : x == 28 ? 255 : (4 + x % 4) << extra;
    length += (unsigned)(s->bits & ((1u << extra) - 1));
    if (s->held < extra)
        return TT_MALFORMED;
    drop(s, extra);
    /* Code 284 with all bits set is 258 as well. */
    token->length = (uint16_t)(length + TT_MIN_MATCH + (x == 27 && length == 255));
    int code = decode(s, &s->distance);
    if (code < 0 || code >= TT_DISTANCES)
        return TT_MALFORMED;
    extra = code < 4 ? 0 : (unsigned)code / 2 - 1;
    if (s->held < extra)
        return TT_MALFORMED;
    unsigned distance = code < 4 ? (unsigned)code : (2 + (unsigned)code % 2) << extra;
    distance += (unsigned)(s->bits & ((1u << extra) - 1)) + 1;
    drop(s, extra);
    if (distance > s->content)
        return TT_MALFORMED;
    token->distance = (uint16_t)distance;
    s->content += tt_token_size(*token);
    return TT_TOKEN;
}

int tt_inflate_token(tt_inflater *s, tt_token *token)
{
    refill(s);
    int symbol = decode(s, &s->literal);
    if (symbol < 0 || symbol >= TT_SYMBOLS)
        return TT_MALFORMED;
    if (symbol > TT_END)
        return match(s, (unsigned)symbol, token);
    if (symbol == TT_END)
        return TT_BLOCK_END;
    token->length = 0;
    token->distance = (uint16_t)symbol;
    s->content++;
    return TT_TOKEN;
}

unsigned tt_inflate_padding(const tt_inflater *s)
{
    return (unsigned)(s->bits & ((1u << s->held % 8) - 1));
}

uint64_t tt_inflate_bits(const tt_inflater *s)
{
    return s->next * 8 - s->held;
}

uint64_t tt_inflate_consumed(const tt_inflater *s)
{
    return s->next - s->held / 8;
}
