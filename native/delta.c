#include "delta.h"

#include <string.h>

/* Sites. A program names places by their distance from where it names them, in words of four bytes at any offset. Such
 * a word changes by how far the named place has moved less how far its own place has, and neighbouring places move
 * alike. So of every changed word it is kept how far what it names would have moved, for 2^FINE and for 2^COARSE bytes
 * around it; and how often the two bytes before it - of an instruction, perhaps - stood before a word that changed as
 * foreseen. Where both speak for it, a word of the base is a site: it is expected to change so.
 *
 * Writer and reader come to the same sites, for they see the same base, the same places and the same changed words. */
enum {
    FINE = 6,
    COARSE = 14,
    FINE_BITS = 16,   /* 2^16 entries for fine, 2^14 for coarse, of a tag and a distance each */
    COARSE_BITS = 14,
    TRUST = 2,        /* a context counts from here on */
    MOST_TRUST = 15,
    VALUE = 2,        /* mark: not foreseen, the difference is in the values */
};

typedef struct {
    uint32_t *fine, *coarse; /* tag and distance of each entry, side by side: one cache miss */
    uint8_t *trust; /* [65536], by the two bytes before a word */
} memory;

_Static_assert(TT_DELTA_TABLES == (2 << FINE_BITS) + (2 << COARSE_BITS) + 65536 / 4, "all tables");

/* The tables, in `room` of TT_DELTA_TABLES numbers, or none without it. */
static memory blank(uint32_t *room)
{
    memory m = {NULL, NULL, NULL};
    if (room == NULL)
        return m;
    memset(room, 0, TT_DELTA_TABLES * sizeof *room);
    m.fine = room;
    m.coarse = m.fine + (2 << FINE_BITS);
    m.trust = (uint8_t *)(m.coarse + (2 << COARSE_BITS));
    return m;
}

static uint32_t load_word(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t load_part(const uint8_t *p, unsigned width)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < width; i++)
        v |= (uint32_t)p[i] << (8 * i);
    return v;
}

static void store_part(uint8_t *p, uint32_t v, unsigned width)
{
    for (unsigned i = 0; i < width; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t slot(uint32_t key, unsigned bits)
{
    return key * 0x9E3779B1u >> (32 - bits);
}

/* Tags are a key plus 1: 0 is no entry, and no key is so large that it wraps. */
static uint32_t *fine_entry(const memory *m, uint32_t named)
{
    return m->fine + 2 * slot(named >> FINE, FINE_BITS);
}

static uint32_t *coarse_entry(const memory *m, uint32_t named)
{
    return m->coarse + 2 * slot(named >> COARSE, COARSE_BITS);
}

static int find_fine(const memory *m, uint32_t named, uint32_t *moved)
{
    const uint32_t *entry = fine_entry(m, named);
    *moved = entry[1];
    return entry[0] == (named >> FINE) + 1;
}

static int find_coarse(const memory *m, uint32_t named, uint32_t *moved)
{
    const uint32_t *entry = coarse_entry(m, named);
    *moved = entry[1];
    return entry[0] == (named >> COARSE) + 1;
}

static void keep(const memory *m, uint32_t named, uint32_t moved)
{
    uint32_t *entry = fine_entry(m, named);
    entry[0] = (named >> FINE) + 1;
    entry[1] = moved;
    entry = coarse_entry(m, named);
    entry[0] = (named >> COARSE) + 1;
    entry[1] = moved;
}

static uint8_t *trust_of(const memory *m, const uint8_t *base, uint64_t from)
{
    return m->trust + (base[from - 2] | base[from - 1] << 8);
}

/* A word of four bytes that changes by `difference`: it is the base's at `from`, the target's at `at`. */
static void learn(const memory *m, const uint8_t *base, uint64_t from, uint64_t at, uint32_t difference)
{
    keep(m, load_word(base + from) + (uint32_t)from, difference + (uint32_t)(at - from));
    if (from >= 2) {
        uint8_t *trust = trust_of(m, base, from);
        *trust += *trust < MOST_TRUST;
    }
}

/* The same for a site that did not change as foreseen. */
static void unlearn(const memory *m, const uint8_t *base, uint64_t from)
{
    uint32_t named = load_word(base + from) + (uint32_t)from;
    *fine_entry(m, named) = 0;
    *trust_of(m, base, from) /= 2;
}

/* Looks for a site among the base's bytes at `from`, `from` + 1, ... `from` + `last`, of which `left` are copied to the
 * target's `at`. Returns how many bytes on it is, and by what difference it should change; or last + 1 if there is
 * none. A site has its four bytes in the copy, and in the base two before it. */
static uint64_t find_site(const memory *m, const uint8_t *base, uint64_t from, uint64_t at, uint64_t last,
                          uint64_t left, uint32_t *difference)
{
    if (m->trust == NULL || left < 4)
        return last + 1;
    uint64_t end = last < left - 3 ? last + 1 : left - 3;
    for (uint64_t i = from < 2 ? 2 - from : 0; i < end; i++) {
        if (*trust_of(m, base, from + i) < TRUST)
            continue;
        uint32_t moved, named = load_word(base + from + i) + (uint32_t)(from + i);
        if (!find_fine(m, named, &moved) && !find_coarse(m, named, &moved))
            continue;
        *difference = moved - (uint32_t)(at - from);
        if (*difference != 0)
            return i;
    }
    return last + 1;
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

/* Writes the changed word at `from` and `at`, of which `left` bytes are copied; returns its width. */
static unsigned put_word(const uint8_t *base, const uint8_t *target, uint64_t from, uint64_t at, uint64_t left,
                         const memory *m, tt_columns *columns)
{
    unsigned width = left < 4 ? (unsigned)left : 4;
    uint32_t before = load_part(base + from, width), difference = load_part(target + at, width) - before, moved;
    int mark = VALUE;
    if (m->trust != NULL && width == 4) {
        uint32_t named = before + (uint32_t)from, wanted = difference + (uint32_t)(at - from);
        if (find_fine(m, named, &moved) && moved == wanted)
            mark = 0;
        else if (find_coarse(m, named, &moved) && moved == wanted)
            mark = 1;
        learn(m, base, from, at, difference);
        columns->data[TT_MARKS][columns->size[TT_MARKS]++] = (uint8_t)mark;
    }
    if (mark == VALUE)
        put(columns, TT_VALUES, zigzag((int32_t)(difference << (32 - 8 * width)) >> (32 - 8 * width)));
    return width;
}

/* What goes on from one copy to the next: quiet bytes since the last changed word, sites since the last false one. */
typedef struct {
    uint64_t quiet, sites;
} counts;

static void write_copy(const uint8_t *base, const uint8_t *target, uint64_t from, uint64_t at, uint64_t copied,
                       const memory *m, counts *since, tt_columns *columns)
{
    for (uint64_t i = 0; i < copied;) {
        uint32_t difference;
        if (find_site(m, base, from + i, at + i, 0, copied - i, &difference) == 0) {
            if (load_word(target + at + i) - load_word(base + from + i) == difference) {
                learn(m, base, from + i, at + i, difference);
                since->sites++;
                i += 4;
                continue;
            }
            unlearn(m, base, from + i);
            put(columns, TT_SITES, since->sites);
            since->sites = 0;
        }
        if (base[from + i] == target[at + i]) {
            since->quiet++;
            i++;
        } else {
            put(columns, TT_GAPS, since->quiet);
            since->quiet = 0;
            i += put_word(base, target, from + i, at + i, copied - i, m, columns);
        }
    }
}

void tt_delta_write(const uint8_t *base, const uint8_t *target, const tt_piece *pieces, uint64_t count,
                    uint32_t *tables, tt_columns *columns)
{
    memory m = blank(tables);
    counts since = {0, 0};
    uint64_t at = 0, end = 0;
    memset(columns->size, 0, sizeof columns->size);
    for (uint64_t k = 0; k < count; k++) {
        uint64_t from = pieces[k].from, copied = pieces[k].copied, literal = pieces[k].literal;
        put(columns, TT_COPIES, copied);
        put(columns, TT_LITERALS, literal);
        put(columns, TT_MOVES, zigzag((int64_t)(from - end)));
        write_copy(base, target, from, at, copied, &m, &since, columns);
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

/* Reads how many come before the next exception. After the last number there is none any more: UINT64_MAX, and as all
 * that is counted off is less than 2^62, what remains of that stays above any number. */
static int get_count(reader *r, uint64_t *v)
{
    *v = UINT64_MAX;
    return r->at == r->end || get(r, v);
}

typedef struct {
    reader columns[TT_COLUMNS];
    memory m;
    uint64_t quiet, sites; /* bytes before the next changed word, sites before the next false one */
} decoder;

/* Makes the changed word of the target at `at`, a copy of the base's at `from`. Returns 0 or the wrong column plus 1. */
static int change(decoder *d, const uint8_t *base, uint8_t *target, uint64_t from, uint64_t at, unsigned width)
{
    uint32_t before = load_part(base + from, width), difference, moved;
    unsigned mark = VALUE;
    int foreseen = d->m.trust != NULL && width == 4;
    if (foreseen) {
        reader *marks = &d->columns[TT_MARKS];
        if (marks->at == marks->end || (mark = *marks->at++) > VALUE)
            return TT_MARKS + 1;
    }
    if (mark == VALUE) {
        uint64_t v;
        if (!get(&d->columns[TT_VALUES], &v))
            return TT_VALUES + 1;
        difference = (uint32_t)(v >> 1 ^ (0 - (v & 1)));
    } else {
        uint32_t named = before + (uint32_t)from;
        if (!(mark == 0 ? find_fine(&d->m, named, &moved) : find_coarse(&d->m, named, &moved)))
            return TT_MARKS + 1;
        difference = moved - (uint32_t)(at - from);
    }
    if (foreseen)
        learn(&d->m, base, from, at, difference);
    store_part(target + at, before + difference, width);
    return 0;
}

/* Makes a copy, which lies in both buffers. i <= copied throughout: a site has four bytes left, a changed word takes
 * no more than are left, and other steps end at `next`. Returns 0 or the wrong column plus 1. */
static int read_copy(decoder *d, const uint8_t *base, uint8_t *target, uint64_t from, uint64_t at, uint64_t copied)
{
    memcpy(target + at, base + from, copied);
    for (uint64_t i = 0;;) {
        uint64_t left = copied - i, next = d->quiet < left ? d->quiet : left;
        uint32_t difference;
        uint64_t n = find_site(&d->m, base, from + i, at + i, next, left, &difference);
        int site = n <= next;
        n = site ? n : next;
        i += n;
        d->quiet -= n;
        if (i == copied)
            return 0;
        if (site && d->sites-- > 0) {
            learn(&d->m, base, from + i, at + i, difference);
            store_part(target + at + i, load_word(base + from + i) + difference, 4);
            i += 4;
            continue;
        }
        if (site) {
            unlearn(&d->m, base, from + i);
            if (!get_count(&d->columns[TT_SITES], &d->sites))
                return TT_SITES + 1;
            if (d->quiet > 0) {
                d->quiet--;
                i++;
                continue;
            }
        }
        unsigned width = copied - i < 4 ? (unsigned)(copied - i) : 4;
        int wrong = change(d, base, target, from + i, at + i, width);
        if (wrong != 0)
            return wrong;
        i += width;
        if (!get_count(&d->columns[TT_GAPS], &d->quiet))
            return TT_GAPS + 1;
    }
}

/* All columns must end with the target, and no changed word or false site be left over. */
static int ends_well(const decoder *d)
{
    for (int k = 0; k < TT_COLUMNS; k++)
        if (d->columns[k].at != d->columns[k].end)
            return k + 1;
    if (d->quiet < (uint64_t)1 << 63)
        return TT_GAPS + 1;
    return d->sites < (uint64_t)1 << 63 ? TT_SITES + 1 : 0;
}

int tt_delta_apply(const uint8_t *base, uint64_t base_length, const tt_columns *stored, uint32_t *tables,
                   uint8_t *target, uint64_t length)
{
    decoder d;
    reader *columns = d.columns;
    for (int k = 0; k < TT_COLUMNS; k++)
        columns[k] = (reader){stored->data[k], stored->data[k] + stored->size[k]};
    d.m = blank(tables);
    if (!get_count(&columns[TT_GAPS], &d.quiet))
        return TT_GAPS + 1;
    if (!get_count(&columns[TT_SITES], &d.sites))
        return TT_SITES + 1;
    uint64_t at = 0, end = 0;
    while (columns[TT_COPIES].at < columns[TT_COPIES].end) {
        uint64_t copied, literal, move;
        /* at <= length, so each of the two is compared with what is left of the target. */
        if (!get(&columns[TT_COPIES], &copied) || copied > length - at)
            return TT_COPIES + 1;
        if (!get(&columns[TT_LITERALS], &literal) || literal > length - at - copied)
            return TT_LITERALS + 1;
        if (literal > (uint64_t)(columns[TT_BYTES].end - columns[TT_BYTES].at))
            return TT_BYTES + 1;
        /* Numbers are below 2^63, so a move is at most 2^62 either way, and end <= base_length < 2^62. What would lie
         * before the base is above 2^63 as an unsigned number, and refused like what lies behind it. */
        if (!get(&columns[TT_MOVES], &move))
            return TT_MOVES + 1;
        uint64_t from = end + (move >> 1 ^ (0 - (move & 1)));
        if (from > base_length || copied > base_length - from)
            return TT_MOVES + 1;
        int wrong = read_copy(&d, base, target, from, at, copied);
        if (wrong != 0)
            return wrong;
        memcpy(target + at + copied, columns[TT_BYTES].at, literal);
        columns[TT_BYTES].at += literal;
        at += copied + literal;
        end = from + copied;
    }
    return at != length ? TT_COPIES + 1 : ends_well(&d);
}
