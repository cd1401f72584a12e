#include <string.h>

#include "delta.h"

/* A gram is GRAM bytes at any position of the target. Those at every STEP-th position of the base are kept in a hash
 * table with chains, lower positions first; a filter keeps most lookups of what the base lacks from touching it. To
 * keep all of the base's grams instead saves 0.3 % of the bytes, for twice the memory and a third more time. */
enum {
    STEP = 2,
    GRAM = 12,
    FILTER = 4,   /* 2^FILTER filter bits to a head */
    DEPTH = 8,    /* equal grams tried in a lookup */
    STEPS = 24,   /* chain links followed in a lookup */
    REACH = 1024, /* bytes compared for one candidate */
    SKIP = 16,    /* bytes passed over at most after a place was refused */
    BACK = 4096,  /* a copy begins at most this far before where it was found */
    FOREIGN = 32, /* differing bytes more than equal ones that make part of a copy literal */
    WINDOW = 256, /* bytes over which two places are compared */
    NEAR = 64,    /* neighbouring places tried to either side ... */
    STRIDE = 8,   /* ... this many bytes apart: what table entries are multiples of */
};
/* Estimated bits: of a changed word, of one whose difference was there lately, and of a byte outside the base. What a
 * piece takes is the caller's choice: kernel modules, libraries and interpreters are smallest with 72 (a third more or
 * less changes them by 2 %), text with 200, because its literals compress better. */
enum { CHANGED = 16, REPEATED = 3, OUTSIDE = 5 };

static const uint32_t NONE = 0xFFFFFFFFu;

typedef struct {
    const uint8_t *base, *target;
    uint64_t base_length, length;
    uint32_t *heads, *next, *filter;
    unsigned bits;
    uint64_t price; /* estimated bits of a piece */
} finder;

/* A place in the base for the target's bytes from `at` on, of which `equal` are known to be the same. */
typedef struct {
    uint64_t at, from, equal;
} place;

static uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The hash of the gram at p; only its upper bits are used. */
static uint64_t hash_of(const uint8_t *p)
{
    uint64_t h = (load64(p) ^ (uint64_t)load32(p + 8) * 0xD6E8FEB86659FD93u) * 0x9E3779B97F4A7C15u;
    return (h ^ h >> 32) * 0x9FB21C651E98DF25u;
}

/* Heads: 2^bits, more than a quarter and at most half of the grams that are kept, or 2^10. */
static unsigned bits_for(uint64_t base_length)
{
    unsigned bits = 10;
    while ((uint64_t)4 << bits <= base_length / STEP)
        bits++;
    return bits;
}

uint64_t tt_delta_scratch(uint64_t base_length)
{
    uint64_t heads = (uint64_t)1 << bits_for(base_length);
    return heads + (heads << FILTER) / 32 + base_length / STEP + 1;
}

/* All pieces but the last are written when a place is found, after which the search goes on at least a gram further, or
 * for FOREIGN bytes of their own. */
uint64_t tt_delta_capacity(uint64_t length)
{
    return length / GRAM + length / FOREIGN + 2;
}

static int same_gram(const uint8_t *a, const uint8_t *b)
{
    return load64(a) == load64(b) && load32(a + 8) == load32(b + 8);
}

/* Within a run of equal grams only the first and the last are kept: the others lead to nothing more. */
static int inside_run(const uint8_t *base, uint64_t i, uint64_t last)
{
    return i >= STEP && i + STEP <= last && same_gram(base + i, base + i + STEP) && same_gram(base + i, base + i - STEP);
}

static void index_base(finder *f)
{
    memset(f->heads, 0xFF, sizeof *f->heads << f->bits);
    memset(f->filter, 0, sizeof *f->filter << (f->bits + FILTER - 5));
    if (f->base_length < GRAM)
        return;
    uint64_t last = f->base_length - GRAM;
    for (uint64_t k = last / STEP + 1; k-- > 0;) {
        uint64_t i = k * STEP;
        if (inside_run(f->base, i, last))
            continue;
        uint64_t h = hash_of(f->base + i), bit = h >> (64 - f->bits - FILTER);
        f->filter[bit / 32] |= (uint32_t)1 << (bit % 32);
        f->next[k] = f->heads[h >> (64 - f->bits)];
        f->heads[h >> (64 - f->bits)] = (uint32_t)k;
    }
}

static uint64_t equal_forward(const uint8_t *a, const uint8_t *b, uint64_t most)
{
    uint64_t n = 0;
    for (; most - n >= 8; n += 8) {
        uint64_t x = load64(a + n) ^ load64(b + n);
        if (x != 0) {
            while (a[n] == b[n])
                n++;
            return n;
        }
    }
    while (n < most && a[n] == b[n])
        n++;
    return n;
}

static uint64_t equal_backward(const uint8_t *a, const uint8_t *b, uint64_t most)
{
    uint64_t n = 0;
    while (n < most && *(a - 1 - n) == *(b - 1 - n))
        n++;
    return n;
}

/* Estimated bits of target[at..at+length), length <= REACH, as a copy from `from` (which may lie outside the base: it
 * is compared as unsigned). Ends early once there are `enough`. */
static uint64_t cost(const finder *f, uint64_t from, uint64_t at, uint64_t length, uint64_t enough)
{
    uint32_t recent[4] = {0, 0, 0, 0};
    unsigned turn = 0;
    uint64_t within = from < f->base_length ? least(length, f->base_length - from) : 0;
    uint64_t bits = (length - within) * OUTSIDE, n = 0;
    const uint8_t *a = f->target + at, *b = f->base + (within > 0 ? from : 0);
    while (bits < enough) {
        n += equal_forward(a + n, b + n, within - n);
        if (within - n < 4)
            return bits + (n < within ? CHANGED : 0);
        uint32_t d = load32(a + n) - load32(b + n);
        if (d == recent[0] || d == recent[1] || d == recent[2] || d == recent[3])
            bits += REPEATED;
        else {
            bits += CHANGED;
            recent[turn++ % 4] = d;
        }
        n += 4;
    }
    return bits;
}

/* Whether the target's bytes from `at` on are cheaper as a copy from `other` than as one from `from`, by more than a
 * piece, over some number of bytes; `equal` bytes are known to be equal at `other`. */
static int cheaper(const finder *f, uint64_t at, uint64_t from, uint64_t other, uint64_t equal)
{
    uint64_t left = f->length - at, most = least(left, equal > WINDOW ? REACH : WINDOW);
    if (cost(f, from, at, most, f->price + 1) <= f->price)
        return 0;
    for (uint64_t n = WINDOW / 8; n / 2 < most; n *= 2) {
        uint64_t present = cost(f, from, at, least(n, most), (uint64_t)-1);
        if (present > f->price && cost(f, other, at, least(n, most), present - f->price) < present - f->price)
            return 1;
    }
    return 0;
}

/* The place with the most equal bytes for the gram at `at`, of which some may lie before it, down to `last`. */
static int look_up(const finder *f, uint64_t at, uint64_t last, place *best)
{
    const uint8_t *here = f->target + at;
    uint64_t h = hash_of(here), bit = h >> (64 - f->bits - FILTER), most = 0;
    if (!(f->filter[bit / 32] >> (bit % 32) & 1))
        return 0;
    uint32_t c = f->heads[h >> (64 - f->bits)];
    for (int step = 0, tried = 0; step < STEPS && tried < DEPTH && c != NONE; step++, c = f->next[c]) {
        const uint64_t start = (uint64_t)c * STEP;
        const uint8_t *there = f->base + start;
        if (!same_gram(there, here))
            continue;
        uint64_t n = equal_forward(here, there, least(REACH, least(f->length - at, f->base_length - start)));
        uint64_t back = equal_backward(here, there, least(WINDOW, least(at - last, start)));
        if (n + back > most) {
            most = n + back;
            *best = (place){at - back, start - back, most};
        }
        tried++;
    }
    return most > 0;
}

/* The cheapest of the neighbours of `from` for the bytes from `at` on, if it is worth a piece. Where entries were put
 * into a table the right place is near, but too little is equal there, and that often, for a lookup to find it. */
static int look_near(const finder *f, uint64_t at, uint64_t from, place *best)
{
    if (f->length - at < WINDOW)
        return 0;
    uint64_t unlike = WINDOW / 4 * CHANGED * 3 / 4; /* three of four words changed: so is what is near */
    uint64_t present = cost(f, from, at, WINDOW, unlike);
    if (present <= f->price || present >= unlike)
        return 0;
    uint64_t wanted = present - f->price, none = wanted;
    for (uint64_t k = 1; k <= NEAR; k++)
        for (int side = 0; side < 2; side++) {
            uint64_t other = side ? from - k * STRIDE : from + k * STRIDE; /* below 0 it wraps: outside the base */
            if (other >= f->base_length || f->base_length - other < WINDOW)
                continue;
            uint64_t bits = cost(f, other, at, WINDOW, wanted);
            if (bits < wanted) {
                wanted = bits;
                *best = (place){at, other, 0};
            }
        }
    return wanted < none;
}

/* Finds the next place that is worth a new piece, from `at` on; the present piece has target position `last` at base
 * position `from`. *near: where the neighbours are looked at next. */
static int next_place(const finder *f, uint64_t at, uint64_t last, uint64_t from, uint64_t *near, place *best)
{
    while (f->length >= GRAM && at <= f->length - GRAM) {
        uint64_t here = from + (at - last);
        if (here < f->base_length) {
            uint64_t n = equal_forward(f->target + at, f->base + here, least(f->length - at, f->base_length - here));
            at += n;
            if (n >= GRAM)
                continue;
            here += n;
            if (at > f->length - GRAM)
                return 0;
        }
        uint64_t step = 1;
        if (look_up(f, at, last, best) && best->from - best->at != here - at) {
            if (cheaper(f, best->at, from + (best->at - last), best->from, best->equal))
                return 1;
            /* The next lookups would find this place again. */
            step = least(SKIP, best->at + best->equal - at - GRAM + 1);
        }
        if (at >= *near) {
            *near = at + WINDOW;
            if (look_near(f, at, here, best))
                return 1;
        }
        at += step;
    }
    return 0;
}

/* How far a copy pays from here on, at most `most` bytes: until its equal bytes exceed the others by the most. */
static uint64_t extent_forward(const finder *f, uint64_t at, uint64_t from, uint64_t most)
{
    uint64_t length = 0;
    int64_t score = 0, best = 0;
    most = from < f->base_length ? least(most, f->base_length - from) : 0;
    for (uint64_t i = 0; i < most; i++) {
        score += f->target[at + i] == f->base[from + i] ? 1 : -1;
        if (score > best) {
            best = score;
            length = i + 1;
        }
    }
    return length;
}

/* The same to the left, at most BACK bytes. */
static uint64_t extent_backward(const finder *f, uint64_t at, uint64_t from, uint64_t most)
{
    uint64_t length = 0;
    int64_t score = 0, best = 0;
    most = least(BACK, least(most, from));
    for (uint64_t i = 1; i <= most; i++) {
        score += f->target[at - i] == f->base[from - i] ? 1 : -1;
        if (score > best) {
            best = score;
            length = i;
        }
    }
    return length;
}

/* How much of `overlap` bytes from target position `at` on should be copied from `left`, the rest being from `right`:
 * so that the most bytes are equal. */
static uint64_t split(const finder *f, uint64_t at, uint64_t left, uint64_t right, uint64_t overlap)
{
    uint64_t length = 0;
    int64_t score = 0, best = 0;
    for (uint64_t i = 0; i < overlap; i++) {
        score += f->target[at + i] == f->base[left + i];
        score -= f->target[at + i] == f->base[right + i];
        if (score > best) {
            best = score;
            length = i + 1;
        }
    }
    return length;
}

/* Writes a copy and the literal bytes after it. Stretches within the copy that hardly resemble the base become literal
 * bytes of pieces of their own: where differing bytes exceed equal ones by FOREIGN. Returns the new count. */
static uint64_t put_copy(const finder *f, uint64_t at, uint64_t from, uint64_t copied, uint64_t literal,
                         tt_piece *pieces, uint64_t count)
{
    uint64_t done = 0, start = 0, end = 0;
    int64_t score = 0, best = 0;
    /* A stretch is closed where the score has fallen by FOREIGN, or to nothing; what lies behind its end is gone through
     * once more, and no second time: a rise there is less than the fall before it. */
    for (uint64_t i = 0; i < copied; i++) {
        int differs = f->target[at + i] != f->base[from + i];
        if (score == 0) {
            if (!differs)
                continue;
            start = i;
            best = 0;
        }
        score += differs ? 1 : -2;
        if (score > best) {
            best = score;
            end = i + 1;
        }
        if (score < 0 || best - score >= FOREIGN || i + 1 == copied) {
            if (best >= FOREIGN) {
                pieces[count++] = (tt_piece){from + done, start - done, end - start};
                done = end;
                i = end - 1;
            }
            score = best = 0;
        }
    }
    pieces[count++] = (tt_piece){from + done, copied - done, literal};
    return count;
}

uint64_t tt_delta_find(const uint8_t *base, uint64_t base_length, const uint8_t *target, uint64_t length,
                       uint32_t price, uint32_t *scratch, tt_piece *pieces)
{
    unsigned bits = bits_for(base_length);
    uint64_t heads = (uint64_t)1 << bits, count = 0, at = 0, last = 0, from = 0, near = 0;
    uint32_t *filter = scratch + heads, *next = filter + (heads << FILTER) / 32;
    finder f = {base, target, base_length, length, scratch, next, filter, bits, price};
    index_base(&f);
    for (place found = {0, 0, 0}; next_place(&f, at, last, from, &near, &found);) {
        uint64_t gap = found.at - last;
        uint64_t ahead = extent_forward(&f, last, from, gap);
        uint64_t back = extent_backward(&f, found.at, found.from, gap);
        if (ahead + back > gap) {
            uint64_t overlap = ahead + back - gap, start = gap - back;
            uint64_t kept = split(&f, last + start, from + start, found.from - back, overlap);
            ahead = start + kept;
            back -= kept;
        }
        count = put_copy(&f, last, from, ahead, gap - ahead - back, pieces, count);
        last = found.at - back;
        from = found.from - back;
        at = found.at + (found.equal > GRAM ? found.equal : GRAM);
    }
    uint64_t ahead = extent_forward(&f, last, from, length - last);
    return put_copy(&f, last, from, ahead, length - last - ahead, pieces, count);
}
