/* The client's side of recompression: the stream again from content and record. */
#include <string.h>

#include "huffman.h"
#include "predict.h"
#include "recompress.h"
#include "record.h"

enum { AT_BLOCK, IN_BLOCK, AT_OUTPUT, AT_END };

typedef struct {
    tt_predictor predictor;
    tt_record_reader record;
    int where, slice;
    /* The block. */
    unsigned flags, padding, last_bits;
    uint32_t size;          /* TT_SIZE: tokens, or bytes of a stored block */
    uint32_t right;         /* tokens before the next correction, */
    int corrections, ended; /* if there are any left */
    int begun;              /* its head has been written */
    tt_block block;
    tt_counts counts;
    tt_table_head head;
    tt_codes codes;
    uint32_t held; /* tokens that are not yet written */
    tt_token tokens[TT_PREDICTED_MOST];
    tt_bit_writer out;
} rebuilding;

uint64_t tt_rebuild_memory(void)
{
    return sizeof(rebuilding);
}

int tt_rebuild_start(void *work, const uint8_t *content, uint64_t content_length, const uint8_t *compressor,
                     const uint8_t *record, uint64_t record_length)
{
    rebuilding *s = work;
    tt_compressor by;
    if (!tt_compressor_read(&by, compressor) || content_length > TT_CONTENT_MOST)
        return TT_BAD;
    tt_predict_begin(&s->predictor, &by, content, content_length);
    s->record = (tt_record_reader){record, record_length, 0, 0};
    s->where = AT_BLOCK;
    s->slice = 0;
    s->out.bits = 0;
    s->out.held = 0;
    return TT_DONE;
}

int tt_rebuild_slice_start(void *work, const uint8_t *content, uint64_t content_length, uint64_t context, unsigned bit,
                           const uint8_t *compressor, const uint8_t *record, uint64_t record_length)
{
    rebuilding *s = work;
    if (context > content_length || bit > 7 ||
        tt_rebuild_start(work, content, content_length, compressor, record, record_length) != TT_DONE)
        return TT_BAD;
    tt_predict_slice(&s->predictor, (uint32_t)context);
    s->slice = 1;
    s->out.held = bit;
    return TT_DONE;
}

/* Tokens before the next correction, or the end of them. */
static void next_correction(rebuilding *s)
{
    uint32_t number = tt_get_number(&s->record);
    s->corrections = number > 0;
    s->right = number - 1;
}

static void begin_segment(rebuilding *s)
{
    tt_predictor *p = &s->predictor;
    const int begins = p->position == p->end;
    uint32_t left = (uint32_t)p->length - p->position, size = left;
    if (s->flags & TT_SEGMENT) {
        size = tt_get_number(&s->record);
        s->record.bad |= !begins || size == 0 || size >= left;
    }
    if (begins && !s->record.bad)
        tt_predict_segment(p, p->position + size);
}

/* Reads the head of a block, all before its corrections. */
static void begin_block(rebuilding *s)
{
    tt_record_reader *r = &s->record;
    s->flags = tt_get_byte(r);
    const unsigned type = s->flags & TT_TYPE;
    begin_segment(s);
    s->size = s->flags & TT_SIZE ? tt_get_number(r) : 0;
    s->padding = 0;
    if (s->flags & TT_EXPLICIT) {
        if (type == TT_DYNAMIC)
            tt_get_head(r, &s->head);
        else
            s->padding = tt_get_byte(r);
        r->bad |= type == TT_FIXED;
    }
    s->last_bits = s->flags & TT_LAST_BITS ? tt_get_byte(r) : 0;
    r->bad |= (s->flags & TT_LAST_BITS) != 0 && (s->flags & TT_FINAL) == 0;
    s->corrections = 0;
    if (s->flags & TT_CORRECTIONS) {
        r->bad |= type == TT_STORED || type == TT_MARK;
        next_correction(s);
    }
    if (type == TT_DYNAMIC && s->flags & TT_EXPLICIT && !r->bad)
        r->bad |= !tt_codes_of(&s->head, &s->codes);
    if (type == TT_FIXED)
        tt_fixed_codes(&s->codes);
    s->block = (tt_block){s->predictor.position, 0, 0, 0};
    s->begun = s->ended = 0;
    s->held = 0;
    memset(&s->counts, 0, sizeof s->counts);
    s->counts.literal[TT_END] = 1;
}

/* Chooses the next token. */
static tt_token next_token(rebuilding *s)
{
    tt_predictor *p = &s->predictor;
    tt_token token = tt_predict(p);
    if (!s->corrections || s->right-- > 0)
        return token;
    token = tt_get_token(&s->record, p->data[p->position]);
    if (tt_token_size(token) > p->end - p->position || (token.length > 0 && token.distance > p->position))
        s->record.bad = 1;
    next_correction(s);
    return token;
}

/* Chooses tokens until the block ends or no more can be held. Those of a stored block only say where it ends. */
static void choose(rebuilding *s)
{
    tt_predictor *p = &s->predictor;
    const int stored = (s->flags & TT_TYPE) == TT_STORED, sized = (s->flags & TT_SIZE) != 0;
    s->ended = sized ? s->block.tokens == s->size : p->position == p->end;
    while (!s->ended && (stored || s->held < TT_PREDICTED_MOST) && !s->record.bad) {
        if (p->position == p->end) {
            s->record.bad = 1;
            return;
        }
        tt_token token = next_token(s);
        if (s->record.bad)
            return;
        int full = tt_block_add(&s->block, &p->by, p->position, token);
        tt_predict_accept(p, token);
        s->ended = sized ? s->block.tokens == s->size : full || p->position == p->end;
        if (!stored) {
            tt_count(&s->counts, token);
            s->tokens[s->held++] = token;
        }
    }
}

/* Works out what a block holds, or as much of it as is written at once. */
static void compose(rebuilding *s)
{
    const unsigned type = s->flags & TT_TYPE;
    if (type == TT_MARK) {
        s->ended = 1;
        s->record.bad |= (s->flags & TT_SIZE) != 0;
    } else if (type == TT_STORED && s->flags & TT_SIZE) {
        s->ended = 1;
        if (s->size > s->predictor.end - s->predictor.position)
            s->record.bad = 1;
        else
            tt_predict_skip(&s->predictor, s->size);
    } else {
        choose(s);
    }
    if (s->ended && s->corrections)
        s->record.bad = 1;
    if (type == TT_DYNAMIC && !(s->flags & TT_EXPLICIT)) {
        s->record.bad |= !s->ended;
        if (!s->record.bad) {
            tt_expected_head(&s->counts, &s->head);
            s->record.bad |= !tt_codes_of(&s->head, &s->codes);
        }
    }
}

static void write_stored(rebuilding *s)
{
    tt_bit_writer *w = &s->out;
    const uint32_t size = s->predictor.position - s->block.start;
    if (size > TT_STORED_MOST || s->padding >> ((8 - w->held) % 8) != 0) {
        s->record.bad = 1;
        return;
    }
    tt_put(w, s->padding, (8 - w->held) % 8);
    tt_put(w, size | (size ^ 0xFFFFu) << 16, 32);
    memcpy(w->out, s->predictor.data + s->block.start, size);
    w->out += size;
}

/* Writes what is composed: at most 3 + 17 + 19 * 3 + 316 * 14 bits of a head, 48 bits for each token, and the end; or
 * a stored block. That is less than TT_REBUILD_ROOM. */
static void write(rebuilding *s)
{
    tt_bit_writer *w = &s->out;
    const unsigned type = s->flags & TT_TYPE;
    if (!s->begun) {
        tt_put(w, (s->flags & TT_FINAL ? 1u : 0u) | (type == TT_MARK ? TT_STORED : type) << 1, 3);
        if (type == TT_DYNAMIC)
            tt_put_head(w, &s->head);
        s->begun = 1;
    }
    if (type == TT_STORED || type == TT_MARK) {
        write_stored(s);
        return;
    }
    for (uint32_t i = 0; i < s->held; i++)
        tt_put_token(w, &s->codes, s->tokens[i]);
    s->held = 0;
    if (s->ended)
        tt_put(w, s->codes.literal[TT_END], s->codes.bits.literal[TT_END]);
}

/* Ends the stream behind the final block. */
static void finish(rebuilding *s)
{
    tt_bit_writer *w = &s->out;
    const unsigned left = (8 - w->held) % 8;
    s->record.bad |= s->last_bits >> left != 0 || s->predictor.position != s->predictor.length ||
                     s->record.at != s->record.length;
    tt_put(w, s->last_bits & ((1u << left) - 1), left);
    s->where = AT_END;
}

/* Ends a slice behind a block that is not the final one. */
static void finish_slice(rebuilding *s)
{
    s->record.bad |= s->predictor.position != s->predictor.length;
    s->where = AT_END;
}

/* One step; returns 0 if it needs room. */
static int step(rebuilding *s, uint64_t room)
{
    switch (s->where) {
    case AT_BLOCK:
        begin_block(s);
        s->where = IN_BLOCK;
        break;
    case IN_BLOCK:
        compose(s);
        s->where = AT_OUTPUT;
        break;
    default:
        if (room < TT_REBUILD_ROOM)
            return 0;
        write(s);
        s->where = s->ended ? AT_BLOCK : IN_BLOCK;
        if (s->ended && s->flags & TT_FINAL)
            finish(s);
        else if (s->ended && s->slice && s->record.at == s->record.length)
            finish_slice(s);
    }
    return 1;
}

int tt_rebuild(void *work, uint8_t *out, uint64_t capacity, uint64_t *size)
{
    rebuilding *s = work;
    int state = TT_DONE;
    s->out.out = out;
    while (s->where != AT_END && !s->record.bad && state == TT_DONE)
        state = step(s, capacity - (uint64_t)(s->out.out - out)) ? TT_DONE : TT_ROOM;
    *size = (uint64_t)(s->out.out - out);
    if (s->record.bad) {
        *size = s->record.at;
        return TT_BAD;
    }
    return state;
}
