#include "huffman.h"

#include <string.h>

static const uint8_t REPEAT_BITS[3] = {2, 3, 7}, REPEAT_LEAST[3] = {3, 3, 11};

enum { NODES = 2 * TT_SYMBOLS };

/* A Huffman tree in the making: leaves are numbered by symbol, inner nodes from `symbols` on. */
typedef struct {
    uint32_t weight[NODES];
    uint16_t parent[NODES], heap[TT_SYMBOLS + 1], removed[NODES];
    uint8_t depth[NODES], bits[NODES];
    unsigned size, removals;
} tree;

/* Equal weights: the lower tree first, of equally high ones the one that is not below the other in the heap. */
static int precedes(const tree *t, unsigned a, unsigned b)
{
    return t->weight[a] < t->weight[b] || (t->weight[a] == t->weight[b] && t->depth[a] <= t->depth[b]);
}

/* Moves a node down from place `at` until none of its children precedes it. */
static void sink(tree *t, unsigned at)
{
    unsigned node = t->heap[at];
    for (unsigned child = 2 * at; child <= t->size; child = 2 * at) {
        if (child < t->size && precedes(t, t->heap[child + 1], t->heap[child]))
            child++;
        if (precedes(t, node, t->heap[child]))
            break;
        t->heap[at] = t->heap[child];
        at = child;
    }
    t->heap[at] = (uint16_t)node;
}

/* Puts the symbols that occur into the heap; with fewer than two of them, others are added. */
static void plant(tree *t, const uint32_t *counts, unsigned symbols)
{
    int highest = -1;
    t->size = t->removals = 0;
    for (unsigned i = 0; i < symbols; i++) {
        t->weight[i] = counts[i];
        t->depth[i] = 0;
        if (counts[i] > 0) {
            t->heap[++t->size] = (uint16_t)i;
            highest = (int)i;
        }
    }
    while (t->size < 2) {
        unsigned added = highest < 2 ? (unsigned)++highest : 0;
        t->heap[++t->size] = (uint16_t)added;
        t->weight[added] = 1;
    }
}

/* Joins the two least nodes until one is left; returns it. */
static unsigned grow(tree *t, unsigned symbols)
{
    unsigned node = symbols;
    for (unsigned at = t->size / 2; at >= 1; at--)
        sink(t, at);
    for (; t->size >= 2; node++) {
        unsigned first = t->heap[1];
        t->heap[1] = t->heap[t->size--];
        sink(t, 1);
        unsigned second = t->heap[1];
        t->removed[t->removals++] = (uint16_t)first;
        t->removed[t->removals++] = (uint16_t)second;
        t->weight[node] = t->weight[first] + t->weight[second];
        t->depth[node] = (uint8_t)((t->depth[first] >= t->depth[second] ? t->depth[first] : t->depth[second]) + 1);
        t->parent[first] = t->parent[second] = (uint16_t)node;
        t->heap[1] = (uint16_t)node;
        sink(t, 1);
    }
    return node - 1;
}

/* Shortens codes above `most` bits: each pair of them goes below the longest leaf that is short enough. */
static void shorten(uint16_t *count, unsigned most, int above)
{
    for (; above > 0; above -= 2) {
        unsigned bits = most - 1;
        while (count[bits] == 0)
            bits--;
        count[bits]--;
        count[bits + 1] = (uint16_t)(count[bits + 1] + 2);
        count[most]--;
    }
}

void tt_code_lengths_of(const uint32_t *counts, unsigned symbols, unsigned most, uint8_t *lengths)
{
    tree t;
    uint16_t count[TT_CODE_BITS + 1] = {0};
    int above = 0;
    plant(&t, counts, symbols);
    t.bits[grow(&t, symbols)] = 0;
    memset(lengths, 0, symbols);
    /* From the root down: a node leaves the heap before its parent comes into being. */
    for (unsigned i = t.removals; i-- > 0;) {
        unsigned node = t.removed[i], bits = t.bits[t.parent[node]] + 1u;
        above += bits > most;
        t.bits[node] = (uint8_t)(bits > most ? most : bits);
        if (node < symbols) {
            lengths[node] = t.bits[node];
            count[t.bits[node]]++;
        }
    }
    if (above == 0)
        return;
    shorten(count, most, above);
    /* The longest codes to the leaves that were removed first. */
    unsigned bits = most;
    for (unsigned i = 0; i < t.removals; i++) {
        if (t.removed[i] >= symbols)
            continue;
        while (count[bits] == 0)
            bits--;
        lengths[t.removed[i]] = (uint8_t)bits;
        count[bits]--;
    }
}

void tt_count(tt_counts *counts, tt_token token)
{
    if (token.length == 0) {
        counts->literal[token.distance]++;
        return;
    }
    counts->literal[tt_code_length(token.length).symbol]++;
    counts->distance[tt_code_distance(token.distance).symbol]++;
}

static void repeat(tt_table_head *head, unsigned symbol, unsigned extra)
{
    head->symbols[head->count] = (uint8_t)symbol;
    head->extra[head->count++] = (uint8_t)extra;
}

/* Adds a run of equal lengths that follows one of `before`. The longest run that may be given at once is 138 zeros, 6
 * lengths equal to the one before, else 7: one length and 6 that repeat it. */
static void add_run(tt_table_head *head, unsigned length, unsigned size, unsigned before)
{
    while (size > 0) {
        unsigned most = length == 0 ? 138 : length == before ? 6 : 7, least = length == before || length == 0 ? 3 : 4;
        unsigned now = size < most ? size : most;
        size -= now;
        if (now < least) {
            for (; now > 0; now--)
                repeat(head, length, 0);
        } else if (length == 0) {
            repeat(head, now <= 10 ? 17 : 18, now <= 10 ? now - 3 : now - 11);
        } else {
            if (length != before)
                repeat(head, length, 0);
            repeat(head, 16, now - (length != before) - 3);
        }
        before = length;
    }
}

static void add_lengths(tt_table_head *head, const uint8_t *lengths, unsigned count)
{
    unsigned before = 255;
    for (unsigned at = 0, size; at < count; at += size) {
        for (size = 1; at + size < count && lengths[at + size] == lengths[at]; size++)
            ;
        add_run(head, lengths[at], size, before);
        before = lengths[at];
    }
}

static unsigned used(const uint8_t *lengths, unsigned count)
{
    while (lengths[count - 1] == 0)
        count--;
    return count;
}

void tt_expected_head(const tt_counts *counts, tt_table_head *head)
{
    tt_code_lengths lengths;
    uint32_t occurs[TT_LENGTHS] = {0};
    tt_code_lengths_of(counts->literal, TT_SYMBOLS, TT_CODE_BITS, lengths.literal);
    tt_code_lengths_of(counts->distance, TT_DISTANCES, TT_CODE_BITS, lengths.distance);
    head->literals = (uint16_t)used(lengths.literal, TT_SYMBOLS);
    head->distances = (uint16_t)used(lengths.distance, TT_DISTANCES);
    head->count = 0;
    add_lengths(head, lengths.literal, head->literals);
    add_lengths(head, lengths.distance, head->distances);
    for (unsigned i = 0; i < head->count; i++)
        occurs[head->symbols[i]]++;
    tt_code_lengths_of(occurs, TT_LENGTHS, TT_LENGTH_BITS, head->code);
    for (head->lengths = TT_LENGTHS; head->lengths > 4 && head->code[TT_LENGTH_ORDER[head->lengths - 1]] == 0;)
        head->lengths--;
}

int tt_same_head(const tt_table_head *a, const tt_table_head *b)
{
    return a->literals == b->literals && a->distances == b->distances && a->lengths == b->lengths &&
           a->count == b->count && memcmp(a->code, b->code, sizeof a->code) == 0 &&
           memcmp(a->symbols, b->symbols, a->count) == 0 && memcmp(a->extra, b->extra, a->count) == 0;
}

/* Canonical codes (RFC 1951, section 3.2.2), bits reversed. */
static void assign(const uint8_t *lengths, unsigned symbols, uint16_t *codes)
{
    unsigned count[TT_CODE_BITS + 1] = {0}, next[TT_CODE_BITS + 1] = {0};
    for (unsigned i = 0; i < symbols; i++)
        count[lengths[i]]++;
    count[0] = 0;
    for (unsigned bits = 1; bits <= TT_CODE_BITS; bits++)
        next[bits] = (next[bits - 1] + count[bits - 1]) << 1;
    for (unsigned i = 0; i < symbols; i++) {
        unsigned code = next[lengths[i]]++, result = 0;
        for (unsigned bit = 0; bit < lengths[i]; bit++, code >>= 1)
            result = result << 1 | (code & 1);
        codes[i] = (uint16_t)result;
    }
}

int tt_codes_of(const tt_table_head *head, tt_codes *codes)
{
    uint8_t lengths[TT_SYMBOLS + TT_DISTANCES];
    unsigned total = (unsigned)head->literals + head->distances, done = 0;
    if (head->literals < 257 || head->literals > TT_SYMBOLS || head->distances < 1 ||
        head->distances > TT_DISTANCES || head->lengths < 4 || head->lengths > TT_LENGTHS)
        return 0;
    for (unsigned i = 0; i < head->count; i++) {
        unsigned symbol = head->symbols[i];
        if (symbol >= TT_LENGTHS || (symbol == 16 && done == 0))
            return 0;
        unsigned repeated = symbol < 16 ? 1u : REPEAT_LEAST[symbol - 16] + (unsigned)head->extra[i];
        if (repeated > total - done || (symbol >= 16 && head->extra[i] >> REPEAT_BITS[symbol - 16] != 0))
            return 0;
        memset(lengths + done, symbol < 16 ? (int)symbol : symbol == 16 ? lengths[done - 1] : 0, repeated);
        done += repeated;
    }
    if (done != total)
        return 0;
    memset(&codes->bits, 0, sizeof codes->bits);
    memcpy(codes->bits.literal, lengths, head->literals);
    memcpy(codes->bits.distance, lengths + head->literals, head->distances);
    assign(codes->bits.literal, TT_FIXED_LITERALS, codes->literal);
    assign(codes->bits.distance, TT_DISTANCES, codes->distance);
    return 1;
}

void tt_fixed_codes(tt_codes *codes)
{
    memset(codes->bits.literal, 8, 144);
    memset(codes->bits.literal + 144, 9, 112);
    memset(codes->bits.literal + 256, 7, 24);
    memset(codes->bits.literal + 280, 8, 8);
    memset(codes->bits.distance, 5, TT_DISTANCES);
    assign(codes->bits.literal, TT_FIXED_LITERALS, codes->literal);
    assign(codes->bits.distance, TT_DISTANCES, codes->distance);
}

void tt_put_head(tt_bit_writer *w, const tt_table_head *head)
{
    uint16_t code[TT_LENGTHS];
    assign(head->code, TT_LENGTHS, code);
    tt_put(w, head->literals - 257u, 5);
    tt_put(w, head->distances - 1u, 5);
    tt_put(w, head->lengths - 4u, 4);
    for (unsigned i = 0; i < head->lengths; i++)
        tt_put(w, head->code[TT_LENGTH_ORDER[i]], 3);
    for (unsigned i = 0; i < head->count; i++) {
        unsigned symbol = head->symbols[i];
        tt_put(w, code[symbol], head->code[symbol]);
        if (symbol >= 16)
            tt_put(w, head->extra[i], REPEAT_BITS[symbol - 16]);
    }
}

void tt_put_token(tt_bit_writer *w, const tt_codes *codes, tt_token token)
{
    if (token.length == 0) {
        tt_put(w, codes->literal[token.distance], codes->bits.literal[token.distance]);
        return;
    }
    tt_coded length = tt_code_length(token.length), distance = tt_code_distance(token.distance);
    unsigned bits = codes->bits.literal[length.symbol];
    tt_put(w, codes->literal[length.symbol] | (uint32_t)length.value << bits, bits + length.bits);
    bits = codes->bits.distance[distance.symbol];
    tt_put(w, codes->distance[distance.symbol] | (uint32_t)distance.value << bits, bits + distance.bits);
}
