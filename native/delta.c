#include "delta.h"

#include <string.h>

/* The prediction of values. A word that names an address relative to itself changes by how far its own place has moved
 * less how far what it names has moved. The place's own move is known, and what is near the named address moved alike:
 * two tables remember it for what is named, in steps of 2^FINE and of 2^COARSE bytes. */
enum { FINE = 5, COARSE = 11, TABLE_BITS = 16, MARK_NONE = 2 };
_Static_assert(TT_DELTA_TABLES == 2 << TABLE_BITS, "two tables");

static uint32_t load_word(const uint8_t *p, unsigned width)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < width; i++)
        v |= (uint32_t)p[i] << (8 * i);
    return v;
}

static void store_word(uint8_t *p, uint32_t v, unsigned width)
{
    for (unsigned i = 0; i < width; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* What both tables know of the word `old` at base position `from`: `slot` points into each. */
typedef struct {
    uint32_t *slot[MARK_NONE];
    uint32_t moved;
} prediction;

static prediction predict(uint32_t *tables, uint32_t old, uint64_t from, uint64_t at)
{
    uint32_t named = old + (uint32_t)from;
    prediction p;
    p.slot[0] = tables + ((named >> FINE) * 0x9E3779B1u >> (32 - TABLE_BITS));
    p.slot[1] = tables + (1 << TABLE_BITS) + ((named >> COARSE) * 0x9E3779B1u >> (32 - TABLE_BITS));
    p.moved = (uint32_t)(at - from);
    return p;
}

static void learn(const prediction *p, uint32_t difference)
{
    *p->slot[0] = *p->slot[1] = difference + p->moved;
}

/* ---- writing ---- */

static void put(tt_columns *columns, int column, uint64_t v)
{
    uint8_t *data = columns->data[column];
    uint64_t n = columns->size[column];
    for (; v > 127; v >>= 7)
        data[n++] = (uint8_t)(v | 128);
    data[n++] = (uint8_t)v;
    columns->size[column] = n;
}

static uint64_t zigzag(int64_t v)
{
    return (uint64_t)v << 1 ^ (uint64_t)(v >> 63);
}

static int64_t signed_word(uint32_t v, unsigned width)
{
    return (int32_t)(v << (32 - 8 * width)) >> (32 - 8 * width);
}

/* One changed word; returns its width. */
static unsigned put_word(const uint8_t *old, const uint8_t *new, uint64_t left, uint64_t from, uint64_t at,
                         uint32_t *tables, tt_columns *columns)
{
    unsigned width = left < 4 ? (unsigned)left : 4, mark = MARK_NONE;
    uint32_t before = load_word(old, width), difference = load_word(new, width) - before;
    if (tables != NULL && width == 4) {
        prediction p = predict(tables, before, from, at);
        for (mark = 0; mark < MARK_NONE && *p.slot[mark] - p.moved != difference;)
            mark++;
        learn(&p, difference);
        columns->data[TT_MARKS][columns->size[TT_MARKS]++] = (uint8_t)mark;
    }
    if (mark == MARK_NONE)
        put(columns, TT_VALUES, zigzag(signed_word(difference, width)));
    return width;
}

void tt_delta_write(const uint8_t *base, const uint8_t *target, const tt_piece *pieces, uint64_t count,
                    uint32_t *tables, tt_columns *columns)
{
    uint64_t at = 0, end = 0, quiet = 0; /* quiet: copied bytes since the last changed word */
    memset(columns->size, 0, sizeof columns->size);
    if (tables != NULL)
        memset(tables, 0, TT_DELTA_TABLES * sizeof *tables);
    for (uint64_t k = 0; k < count; k++) {
        uint64_t from = pieces[k].from, copied = pieces[k].copied, literal = pieces[k].literal;
        put(columns, TT_COPIES, copied);
        put(columns, TT_LITERALS, literal);
        put(columns, TT_MOVES, zigzag((int64_t)(from - end)));
        for (uint64_t i = 0; i < copied;) {
            if (copied - i >= 8 && memcmp(base + from + i, target + at + i, 8) == 0) {
                i += 8;
                quiet += 8;
            } else if (base[from + i] == target[at + i]) {
                i++;
                quiet++;
            } else {
                put(columns, TT_GAPS, quiet);
                quiet = 0;
                i += put_word(base + from + i, target + at + i, copied - i, from + i, at + i, tables, columns);
            }
        }
        memcpy(columns->data[TT_BYTES] + columns->size[TT_BYTES], target + at + copied, literal);
        columns->size[TT_BYTES] += literal;
        at += copied + literal;
        end = from + copied;
    }
}

/* ---- reading ---- */

typedef struct {
    const uint8_t *at, *end;
} reader;

/* Reads a number below 2^63; returns 0 if there is none. */
static int get(reader *r, uint64_t *v)
{
    uint64_t sum = 0;
    for (unsigned shift = 0; shift < 63 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        sum |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            *v = sum;
            return 1;
        }
    }
    return 0;
}

/* Changes one word of the target, whose bytes are the base's from `from` on; returns 0 or the wrong column plus 1. */
static int change(uint8_t *target, unsigned width, uint64_t from, uint64_t at, uint32_t *tables, reader *columns)
{
    uint32_t before = load_word(target, width), difference;
    unsigned mark = MARK_NONE;
    prediction p = {{NULL, NULL}, 0};
    if (tables != NULL && width == 4) {
        reader *marks = &columns[TT_MARKS];
        if (marks->at == marks->end || (mark = *marks->at++) > MARK_NONE)
            return TT_MARKS + 1;
        p = predict(tables, before, from, at);
    }
    if (mark == MARK_NONE) {
        uint64_t v;
        if (!get(&columns[TT_VALUES], &v))
            return TT_VALUES + 1;
        difference = (uint32_t)(v >> 1 ^ (0 - (v & 1)));
    } else
        difference = *p.slot[mark] - p.moved;
    if (p.slot[0] != NULL)
        learn(&p, difference);
    store_word(target, before + difference, width);
    return 0;
}

int tt_delta_apply(const uint8_t *base, uint64_t base_length, const tt_columns *stored, uint32_t *tables,
                   uint8_t *target, uint64_t length)
{
    static const uint64_t NEVER = UINT64_MAX;
    reader columns[TT_COLUMNS];
    for (int k = 0; k < TT_COLUMNS; k++)
        columns[k] = (reader){stored->data[k], stored->data[k] + stored->size[k]};
    if (tables != NULL)
        memset(tables, 0, TT_DELTA_TABLES * sizeof *tables);
    uint64_t at = 0, end = 0, quiet = NEVER; /* quiet: copied bytes before the next changed word */
    if (columns[TT_GAPS].at < columns[TT_GAPS].end && !get(&columns[TT_GAPS], &quiet))
        return TT_GAPS + 1;
    while (columns[TT_COPIES].at < columns[TT_COPIES].end) {
        uint64_t copied, literal, move;
        /* at <= length, so each of the two is compared with what is left of the target. */
        if (!get(&columns[TT_COPIES], &copied) || copied > length - at)
            return TT_COPIES + 1;
        if (!get(&columns[TT_LITERALS], &literal) || literal > length - at - copied)
            return TT_LITERALS + 1;
        /* Numbers are below 2^63, so |move| <= 2^62, and end <= base_length < 2^62: no sum leaves 64 bits. What would
         * lie before the base is above 2^63 as unsigned, and refused with what lies behind it. */
        if (!get(&columns[TT_MOVES], &move))
            return TT_MOVES + 1;
        uint64_t from = end + (move >> 1 ^ (0 - (move & 1)));
        if (from > base_length || copied > base_length - from)
            return TT_MOVES + 1;
        if (literal > (uint64_t)(columns[TT_BYTES].end - columns[TT_BYTES].at))
            return TT_BYTES + 1;
        memcpy(target + at, base + from, copied);
        uint64_t i = 0;
        /* i <= copied here and after every word, whose width is at most copied - i > 0. */
        while (quiet < copied - i) {
            i += quiet;
            unsigned width = copied - i < 4 ? (unsigned)(copied - i) : 4;
            int wrong = change(target + at + i, width, from + i, at + i, tables, columns);
            if (wrong != 0)
                return wrong;
            i += width;
            quiet = NEVER;
            if (columns[TT_GAPS].at < columns[TT_GAPS].end && !get(&columns[TT_GAPS], &quiet))
                return TT_GAPS + 1;
        }
        if (quiet != NEVER)
            quiet -= copied - i;
        memcpy(target + at + copied, columns[TT_BYTES].at, literal);
        columns[TT_BYTES].at += literal;
        at += copied + literal;
        end = from + copied;
    }
    if (at != length)
        return TT_COPIES + 1;
    for (int k = 0; k < TT_COLUMNS; k++)
        if (columns[k].at != columns[k].end)
            return k + 1;
    return quiet == NEVER ? 0 : TT_GAPS + 1;
}
