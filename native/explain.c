/* The publisher's side of recompression: decoding a stream, and writing its record. */
#include <stddef.h>
#include <string.h>

#include "huffman.h"
#include "inflate.h"
#include "predict.h"
#include "recompress.h"
#include "record.h"

enum { GUESSED_LEAST = 1024 }; /* bytes in a stored block for which it is tried to predict its size */

/* How far tt_inflate is. */
typedef struct {
    tt_inflater stream;
    uint64_t written, begin, flushes, flush; /* bytes; where the block begins; flushes and the last of them */
    tt_token waiting; /* did not fit */
    int inside, waits, crossing;
} inflation;

typedef struct {
    tt_inflater stream;
    tt_predictor predictor, before;
    tt_counts counts;
    tt_table_head expected;
    tt_record_writer record;
    const uint64_t *flushes;
    uint64_t count, stop;
} explanation;

uint64_t tt_inflate_memory(void)
{
    return sizeof(inflation);
}

uint64_t tt_explain_memory(void)
{
    return sizeof(explanation);
}

void tt_inflate_start(void *work, const uint8_t *in, uint64_t length)
{
    inflation *s = work;
    tt_inflate_begin(&s->stream, in, length);
    s->written = s->begin = s->flushes = s->flush = 0;
    s->inside = s->waits = s->crossing = 0;
}

/* Writes the bytes of a token for which there is room. */
static void copy(inflation *s, uint8_t *out, tt_token token)
{
    uint8_t *to = out + s->written;
    unsigned size = tt_token_size(token);
    s->written += size;
    if (token.length == 0) {
        *to = (uint8_t)token.distance;
        return;
    }
    s->crossing |= s->flush > 0 && to - out - (ptrdiff_t)token.distance < (ptrdiff_t)s->flush;
    const uint8_t *from = to - token.distance;
    if (token.distance >= size) {
        memcpy(to, from, size);
        return;
    }
    for (unsigned i = 0; i < size; i++)
        to[i] = from[i];
}

/* Decodes the rest of a block that is not stored. */
static int inflate_tokens(inflation *s, uint8_t *out, uint64_t capacity)
{
    for (;;) {
        tt_token token = s->waiting;
        if (!s->waits) {
            int what = tt_inflate_token(&s->stream, &token);
            if (what != TT_TOKEN)
                return what == TT_BLOCK_END ? TT_DONE : TT_BAD;
        }
        s->waits = tt_token_size(token) > capacity - s->written;
        s->waiting = token;
        if (s->waits)
            return TT_ROOM;
        copy(s, out, token);
        if (s->stream.content > TT_CONTENT_MOST)
            return TT_BAD;
    }
}

/* Begins a block; a stored one ends here, too, if there is room for it. */
static int inflate_block(inflation *s, uint8_t *out, uint64_t capacity)
{
    if (!s->waits && tt_inflate_block(&s->stream) != 0)
        return TT_BAD;
    s->begin = s->written;
    s->waits = 0;
    if (s->stream.type != TT_STORED || s->stream.stored == 0)
        return TT_DONE;
    if (s->stream.stored > capacity - s->written) {
        s->waits = 1;
        return TT_ROOM;
    }
    memcpy(out + s->written, s->stream.stored_bytes, s->stream.stored);
    s->written += s->stream.stored;
    return s->stream.content > TT_CONTENT_MOST ? TT_BAD : TT_DONE;
}

/* Notes a flush where an empty block ends that is not the last one. */
static void note_flush(inflation *s, uint64_t *flushes, uint64_t most)
{
    if (s->written > s->begin || s->stream.final || s->stream.type == TT_DYNAMIC || s->written == s->flush)
        return;
    s->flush = s->written;
    if (s->flushes < most)
        flushes[s->flushes++] = s->flush;
}

int tt_inflate(void *work, uint8_t *out, uint64_t capacity, uint64_t *flushes, uint64_t most, uint64_t *sizes)
{
    inflation *s = work;
    for (;;) {
        int state = s->inside ? TT_DONE : inflate_block(s, out, capacity);
        s->inside = state == TT_DONE;
        if (s->inside && s->stream.type != TT_STORED)
            state = inflate_tokens(s, out, capacity);
        sizes[1] = s->written;
        if (state != TT_DONE)
            return state;
        s->inside = 0;
        note_flush(s, flushes, most);
        if (s->stream.final)
            break;
    }
    sizes[0] = tt_inflate_consumed(&s->stream);
    sizes[2] = s->flushes;
    sizes[3] = (uint64_t)s->crossing;
    return TT_DONE;
}

uint64_t tt_inflate_blocks(void *work, const uint8_t *in, uint64_t length, unsigned bit, uint8_t *out, uint64_t context,
                           uint64_t capacity, uint64_t *ends, uint64_t most, int *state)
{
    inflation *s = work;
    uint64_t count = 0;
    tt_inflate_start(s, in, length);
    tt_inflate_begin_at(&s->stream, in, length, bit, context);
    s->written = context;
    *state = TT_DONE;
    while (count < most) {
        *state = inflate_block(s, out, capacity);
        if (*state == TT_DONE && s->stream.type != TT_STORED)
            *state = inflate_tokens(s, out, capacity);
        if (*state != TT_DONE)
            break;
        ends[3 * count] = tt_inflate_bits(&s->stream);
        ends[3 * count + 1] = s->written;
        ends[3 * count + 2] = (uint64_t)s->stream.type | (s->stream.final ? 4u : 0u);
        count++;
        if (s->stream.final)
            break;
    }
    return count;
}

static uint32_t least_of(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* Begins a segment where the one before ended, and adds to the block's head where it ends, unless that is the end of
 * the content. */
static unsigned begin_segment(explanation *e, tt_record_writer *head)
{
    tt_predictor *p = &e->predictor;
    if (p->position != p->end)
        return 0;
    for (; e->count > 0 && *e->flushes <= p->position; e->count--)
        e->flushes++;
    tt_predict_segment(p, e->count > 0 ? least_of(*e->flushes, p->length) : (uint32_t)p->length);
    if (p->end == p->length)
        return 0;
    tt_add_number(head, p->end - p->position);
    return TT_SEGMENT;
}

/* Explains a stored block: whether it ends where the compressor's own tokens would have filled a block. */
static unsigned explain_stored(explanation *e, tt_record_writer *head)
{
    tt_predictor *p = &e->predictor;
    const uint32_t end = p->position + e->stream.stored;
    tt_block block = {p->position, 0, 0, 0};
    unsigned flags = TT_STORED;
    if (e->stream.stored >= GUESSED_LEAST) {
        e->before = *p;
        for (int ends = 0; !ends && p->position < end && p->position < p->end;) {
            tt_token token = tt_predict(p);
            ends = tt_block_add(&block, &p->by, p->position, token);
            tt_predict_accept(p, token);
            if (p->position == end && (ends || p->position == p->end))
                return flags;
        }
        *p = e->before;
    }
    tt_predict_skip(p, e->stream.stored);
    tt_add_number(head, e->stream.stored);
    return flags | TT_SIZE;
}

/* Compares the tokens of a block with the predicted ones. The number of tokens after which the compressor would have
 * ended it goes to *expected, or -1 if it would not. Returns how many it has, or -1 where the stream is not the one that was said. */
static int64_t explain_tokens(explanation *e, tt_record_writer *body, int64_t *expected)
{
    tt_predictor *p = &e->predictor;
    tt_block block = {p->position, 0, 0, 0};
    int64_t tokens = 0, right = 0;
    *expected = p->position == p->end ? 0 : -1;
    for (tt_token token;; tokens++) {
        int what = tt_inflate_token(&e->stream, &token);
        if (what == TT_BLOCK_END)
            break;
        if (what != TT_TOKEN || tt_token_size(token) > p->end - p->position)
            return -1;
        tt_token guess = tt_predict(p);
        if (!tt_same_token(guess, token)) {
            tt_add_number(body, (uint32_t)right + 1);
            tt_add_token(body, token);
        }
        right = tt_same_token(guess, token) ? right + 1 : 0;
        int full = tt_block_add(&block, &p->by, p->position, token);
        tt_count(&e->counts, token);
        tt_predict_accept(p, token);
        if (*expected < 0 && (full || p->position == p->end))
            *expected = tokens + 1;
        if (body->full || p->position >= e->stop)
            return 0;
    }
    return tokens;
}

/* Adds how the code lengths of a dynamic block are written, if that is not as expected from its tokens. */
static unsigned explain_head(explanation *e, int64_t tokens, tt_record_writer *head)
{
    if (tokens <= TT_PREDICTED_MOST) {
        tt_expected_head(&e->counts, &e->expected);
        if (tt_same_head(&e->expected, &e->stream.head))
            return 0;
    }
    tt_add_head(head, &e->stream.head);
    return TT_EXPLICIT;
}

/* Puts the head of a block, which is known only when its tokens are, before its body. */
static void insert(tt_record_writer *record, uint64_t at, const tt_record_writer *head)
{
    if (record->full || head->at > record->capacity - record->at) {
        record->full = 1;
        return;
    }
    memmove(record->bytes + at + head->at, record->bytes + at, record->at - at);
    memcpy(record->bytes + at, head->bytes, head->at);
    record->at += head->at;
}

/* What follows the first byte of a block's head: a segment, a size, a table's head. */
enum { HEAD_MOST = 1024 };

/* Explains a block whose head has been decoded. Returns 0 if the stream is not the one that was said. */
static int explain_block(explanation *e)
{
    uint8_t bytes[HEAD_MOST];
    tt_record_writer head = {bytes, sizeof bytes, 1, 0};
    const uint64_t at = e->record.at;
    unsigned flags = (unsigned)e->stream.type | (e->stream.final ? TT_FINAL : 0) | begin_segment(e, &head);
    if (e->stream.type == TT_STORED) {
        if (e->stream.stored > e->predictor.end - e->predictor.position)
            return 0;
        flags |= e->stream.stored == 0 ? TT_MARK : explain_stored(e, &head);
        if (e->stream.padding != 0) {
            flags |= TT_EXPLICIT;
            tt_add_byte(&head, e->stream.padding);
        }
    } else {
        memset(&e->counts, 0, sizeof e->counts);
        e->counts.literal[TT_END] = 1;
        int64_t expected, tokens = explain_tokens(e, &e->record, &expected);
        if (tokens < 0)
            return 0;
        if (e->record.full || e->predictor.position >= e->stop)
            return 1;
        if (tokens != expected) {
            flags |= TT_SIZE;
            tt_add_number(&head, (uint32_t)tokens);
        }
        flags |= e->stream.type == TT_DYNAMIC ? explain_head(e, tokens, &head) : 0;
        if (e->record.at > at) {
            flags |= TT_CORRECTIONS;
            tt_add_byte(&e->record, 0);
        }
    }
    if (e->stream.final && tt_inflate_padding(&e->stream) != 0) {
        flags |= TT_LAST_BITS;
        tt_add_byte(&head, tt_inflate_padding(&e->stream));
    }
    bytes[0] = (uint8_t)flags;
    insert(&e->record, at, &head);
    return 1;
}

/* Explains block after block: up to the final one, or `blocks` of them. */
static int explain_blocks(explanation *e, uint64_t blocks, uint64_t *sizes)
{
    sizes[1] = 0;
    do {
        sizes[1]++;
        if (tt_inflate_block(&e->stream) != 0 || !explain_block(e))
            return TT_BAD;
    } while (!e->stream.final && sizes[1] < blocks && !e->record.full && e->predictor.position < e->stop);
    sizes[0] = e->record.at;
    return e->record.full ? TT_ROOM : TT_DONE;
}

int tt_explain(void *work, const uint8_t *in, uint64_t length, const uint8_t *content, uint64_t content_length,
               const uint64_t *flushes, uint64_t count, const uint8_t *compressor, uint64_t stop, uint8_t *record,
               uint64_t capacity, uint64_t *sizes)
{
    explanation *e = work;
    tt_compressor by;
    if (!tt_compressor_read(&by, compressor) || content_length > TT_CONTENT_MOST)
        return TT_BAD;
    tt_inflate_begin(&e->stream, in, length);
    tt_predict_begin(&e->predictor, &by, content, content_length);
    e->record = (tt_record_writer){record, capacity, 0, 0};
    e->flushes = flushes;
    e->count = count;
    e->stop = stop > content_length ? content_length + 1 : stop;
    return explain_blocks(e, UINT64_MAX, sizes);
}

int tt_explain_slice(void *work, const uint8_t *in, uint64_t length, unsigned bit, uint64_t blocks,
                     const uint8_t *content, uint64_t content_length, uint64_t context, const uint64_t *flushes,
                     uint64_t count, const uint8_t *compressor, uint8_t *record, uint64_t capacity, uint64_t *sizes)
{
    explanation *e = work;
    tt_compressor by;
    if (!tt_compressor_read(&by, compressor) || content_length > TT_CONTENT_MOST || context > content_length ||
        bit > 7 || blocks == 0)
        return TT_BAD;
    tt_inflate_begin_at(&e->stream, in, length, bit, context);
    tt_predict_begin(&e->predictor, &by, content, content_length);
    tt_predict_slice(&e->predictor, (uint32_t)context);
    e->record = (tt_record_writer){record, capacity, 0, 0};
    e->flushes = flushes;
    e->count = count;
    e->stop = content_length + 1;
    int state = explain_blocks(e, blocks, sizes);
    const int whole = sizes[1] == blocks && e->predictor.position == content_length;
    return state == TT_DONE && !whole ? TT_BAD : state;
}
