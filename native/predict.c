#include "predict.h"

#include <string.h>

#include "cpu.h"

/* Levels 1 to 9 of zlib and gzip: search, good, lazy, nice, chain. */
static const uint16_t LEVELS[9][5] = {
    {TT_GREEDY, 4, 4, 8, 4},     {TT_GREEDY, 4, 5, 16, 8},      {TT_GREEDY, 4, 6, 32, 32},
    {TT_LAZY, 4, 4, 16, 16},     {TT_LAZY, 8, 16, 32, 32},      {TT_LAZY, 8, 16, 128, 128},
    {TT_LAZY, 8, 32, 128, 256},  {TT_LAZY, 32, 128, 258, 1024}, {TT_LAZY, 32, 258, 258, 4096},
};

enum { STRATEGY_FILTERED = 1, STRATEGY_RUNS = 2, STRATEGY_NO_MATCHES = 3 };
enum { EARLY_STEP = 4096 }; /* tokens after which a block may end early */
enum { PREFETCHED = 12 };   /* positions */
enum { DEEP = 128 };        /* chains of so many candidates and more are searched by quads */

int tt_compressor_read(tt_compressor *by, const uint8_t *bytes)
{
    unsigned level = bytes[0] & 15, strategy = bytes[0] >> 4 & 3, hash = bytes[1] & 15, window = bytes[1] >> 4;
    if (level < 1 || level > 9 || hash > 8 || window < 9 || window > 15 || bytes[2] < 7 || bytes[2] > 15)
        return 0;
    const uint16_t *row = LEVELS[level - 1];
    by->search = strategy >= STRATEGY_RUNS ? strategy : row[0];
    by->good = row[1];
    by->lazy = row[2];
    by->nice = row[3];
    by->chain = row[4];
    by->filtered = strategy == STRATEGY_FILTERED;
    by->gnu = bytes[0] >> 6 & 1;
    by->early = by->gnu && level > 2;
    by->independent = bytes[0] >> 7;
    by->hash_bits = hash + 8;
    by->farthest = (1u << window) - TT_LOOKAHEAD;
    by->block = (1u << bytes[2]) - 1;
    return 1;
}

/* GNU gzip moves its buffer on by half when it is full; what it holds when the input ends stays where it is, and near
 * its end no match is looked for. Returns where that begins in the content, if it comes to that. */
static uint32_t tail_of(uint64_t length)
{
    uint64_t half = TT_GNU_BUFFER / 2, moves = length <= TT_GNU_BUFFER ? 0 : (length - half - 1) / half;
    uint64_t held = length - moves * half;
    if (held <= TT_GNU_LAST || held >= TT_GNU_BUFFER - 1)
        return UINT32_MAX;
    return (uint32_t)(moves * half + TT_GNU_LAST + 1);
}

void tt_predict_begin(tt_predictor *p, const tt_compressor *by, const uint8_t *data, uint64_t length)
{
    p->by = *by;
    p->data = data;
    p->length = length;
    p->position = p->start = p->end = p->floor = p->next = p->ahead = 0;
    p->tail = by->gnu ? tail_of(length) : UINT32_MAX;
    p->carries = p->foresees = 0;
    p->shift = (by->hash_bits + 2) / 3;
    p->mask = (1u << by->hash_bits) - 1;
    memset(p->before, 0, sizeof p->before);
    memset(p->order, 0, sizeof p->order);
    memset(p->last, 0, sizeof p->last);
    memset(p->quads, 0, sizeof p->quads);
    memset(p->last_quad, 0, sizeof p->last_quad);
}

void tt_predict_slice(tt_predictor *p, uint32_t context)
{
    p->position = p->start = p->end = context;
    p->tail = UINT32_MAX;
}

static inline uint32_t *last_of(tt_predictor *p, uint32_t at)
{
    const uint8_t *data = p->data + at;
    const unsigned shift = p->shift;
    return &p->last[((uint32_t)data[0] << 2 * shift ^ (uint32_t)data[1] << shift ^ data[2]) & p->mask];
}

static inline uint32_t *last_quad_of(tt_predictor *p, uint32_t at)
{
    return &p->last_quad[tt_read32(p->data + at) * 0x9E3779B1u >> (32 - TT_QUADS)];
}

/* Enters positions into their chains; each has three bytes of content before its end. What the positions a little
 * ahead will need is asked for, which is a good part of the time otherwise. */
static void enter(tt_predictor *p, uint32_t first, uint32_t end)
{
    for (uint32_t at = first; at < end; at++) {
        uint32_t *last = last_of(p, at);
        if (at + PREFETCHED + TT_MIN_MATCH <= p->length)
            TT_PREFETCH(last_of(p, at + PREFETCHED), 0);
        uint32_t distance = at - *last;
        p->order[at % TT_WINDOW] = (uint16_t)(p->order[*last % TT_WINDOW] + 1);
        p->before[at % TT_WINDOW] = (uint16_t)(distance < TT_WINDOW ? distance : 0);
        *last = at;
    }
}

void tt_predict_segment(tt_predictor *p, uint32_t end)
{
    const uint32_t size = p->position - p->start;
    p->start = p->position;
    p->end = end;
    p->carries = p->foresees = 0;
    if (p->by.independent) {
        if (size > 0) /* else a slice begins, perhaps within a segment */
            p->floor = p->next = p->position;
    } else if (p->by.search == TT_GREEDY && p->length - p->position >= TT_MIN_MATCH) {
        /* The last two positions of a segment had too few bytes behind them; now they have more. */
        uint32_t last = p->position - (size < 2 ? size : 2);
        enter(p, last < p->next ? last : p->next, p->position);
        p->next = p->position;
    }
}

static unsigned common(const uint8_t *a, const uint8_t *b, unsigned most)
{
    unsigned n = 0;
    for (; n + 8 <= most; n += 8) {
        uint64_t differs = tt_read64(a + n) ^ tt_read64(b + n);
        if (differs != 0) {
#if defined(__GNUC__) || defined(__clang__)
            return n + (unsigned)__builtin_ctzll(differs) / 8;
#else
            break;
#endif
        }
    }
    while (n < most && a[n] == b[n])
        n++;
    return n;
}

/* A search for the longest match at a position in the chains that has more than `best` bytes; of equally long ones the
 * nearest. Candidates are the positions of its chain, nearest first, up to `chain` of them; the first that has `nice`
 * bytes ends the search. */
typedef struct {
    const uint8_t *here;
    uint32_t at, distance;     /* of the candidate */
    uint32_t nearest, beyond;  /* distance of the first candidate, and a distance that no other reaches */
    unsigned best, most, nice, chain;
    tt_token found;
} search;

/* Returns 0 if there is no candidate, or none can be better. */
static int begin_search(search *s, const tt_predictor *p, uint32_t at, unsigned best)
{
    const uint32_t ahead = p->end - at, behind = at - p->floor;
    s->here = p->data + at;
    s->at = at;
    s->nearest = s->distance = p->before[at % TT_WINDOW];
    s->beyond = behind < p->by.farthest ? behind : p->by.farthest;
    s->best = best;
    s->most = ahead < TT_MAX_MATCH ? (unsigned)ahead : TT_MAX_MATCH;
    s->nice = p->by.nice < s->most ? p->by.nice : s->most;
    s->chain = best >= p->by.good ? p->by.chain >> 2 : p->by.chain;
    s->found = (tt_token){0, 0};
    /* The first candidate may lie at the farthest distance, the others may not. */
    return best < s->most && s->nearest > 0 && s->nearest < behind && s->nearest <= p->by.farthest;
}

/* Compares the candidate; tells whether it is better. */
static inline int better(search *s)
{
    unsigned length = common(s->here - s->distance, s->here, s->most);
    if (length <= s->best)
        return 0;
    s->best = length;
    s->found = (tt_token){(uint16_t)length, (uint16_t)s->distance};
    return 1;
}

/* Whether the candidate may be better: by the last four bytes that it would have, or, if that is three bytes, by those,
 * which are read as four if there are so many. */
static inline int may_be_better(const search *s)
{
    const uint8_t *here = s->here, *there = here - s->distance;
    if (s->best >= TT_MIN_MATCH)
        return tt_read32(there + s->best - 3) == tt_read32(here + s->best - 3);
    return s->most == TT_MIN_MATCH || ((tt_read32(there) ^ tt_read32(here)) & 0xFFFFFF) == 0;
}

/* Tries one candidate after the other, until one has `enough` bytes; returns whether one has. */
static int walk(search *s, const tt_predictor *p, unsigned enough)
{
    for (unsigned left = s->chain;;) {
        if (may_be_better(s) && better(s) && s->best >= enough)
            return 1;
        unsigned step = p->before[(s->at - s->distance) % TT_WINDOW];
        s->distance += step;
        if (step == 0 || s->distance >= s->beyond || --left == 0)
            return 0;
    }
}

/* Enters all positions before `end` into the chains of quads. */
static void enter_quads(tt_predictor *p, uint32_t end)
{
    for (; p->ahead < end; p->ahead++) {
        uint32_t *last = last_quad_of(p, p->ahead);
        if (p->ahead + PREFETCHED + 4 <= p->length)
            TT_PREFETCH(last_quad_of(p, p->ahead + PREFETCHED), 0);
        uint32_t distance = p->ahead - *last;
        p->quads[p->ahead % (2 * TT_WINDOW)] = (uint16_t)(distance < TT_WINDOW ? distance : 0);
        *last = p->ahead;
    }
}

/* Which of the quads that a better match must have was seen last the longest ago, or never. */
static unsigned rarest_quad(const search *s, const tt_predictor *p)
{
    unsigned found = s->best - 3, farthest = p->quads[(s->at + found) % (2 * TT_WINDOW)];
    for (unsigned i = found; farthest > 0 && i-- > 0;) {
        unsigned step = p->quads[(s->at + i) % (2 * TT_WINDOW)];
        if (step > farthest || step == 0) {
            farthest = step;
            found = i;
        }
    }
    return found;
}

/* The number of a position at this distance in the chain, counted from the nearest: 1. */
static unsigned number_in_chain(const search *s, const tt_predictor *p, uint32_t distance)
{
    return (uint16_t)(p->order[s->at % TT_WINDOW] - p->order[(s->at - distance) % TT_WINDOW]);
}

enum { NONE, BETTER, TIRED };

/* Looks for the next better candidate beyond the distance `reached` by the places of one quad: a better match has all
 * of them. Only of those that begin right the number in the chain means something, and is needed. TIRED once *steps
 * have been made. */
static int next_by_quad(search *s, const tt_predictor *p, uint32_t reached, unsigned *steps)
{
    const uint32_t at = s->at + rarest_quad(s, p), begin = tt_read32(s->here);
    for (s->distance = 0; *steps > 0; --*steps) {
        unsigned step = p->quads[(at - s->distance) % (2 * TT_WINDOW)];
        s->distance += step;
        if (step == 0 || (s->distance >= s->beyond && s->distance != s->nearest))
            return NONE;
        if (s->distance <= reached || tt_read32(s->here - s->distance) != begin)
            continue;
        if (number_in_chain(s, p, s->distance) > s->chain)
            return NONE;
        if (may_be_better(s) && better(s))
            return BETTER;
    }
    return TIRED;
}

/* Goes on as `walk` does behind the candidate at the distance `reached`, or from the first if that is 0. */
static void walk_on(search *s, const tt_predictor *p, uint32_t reached)
{
    s->distance = s->nearest;
    if (reached > 0) {
        unsigned number = number_in_chain(s, p, reached), step = p->before[(s->at - reached) % TT_WINDOW];
        s->distance = reached + step;
        if (step == 0 || s->distance >= s->beyond || number >= s->chain)
            return;
        s->chain -= number;
    }
    walk(s, p, s->nice);
}

/* The same as `walk` to the end, but in long chains many times as fast: it finds all matches of four bytes and more by
 * the rarest quad. Where quads are no rarer than the chain is long it walks after all, so that it never takes more than
 * twice as many steps. */
static void search_by_quads(search *s, tt_predictor *p)
{
    const uint32_t last = (uint32_t)p->length - 3, reach = s->at + TT_MAX_MATCH;
    uint32_t reached = 0;
    unsigned steps = s->chain;
    if (s->best < TT_MIN_MATCH) {
        if (!walk(s, p, TT_MIN_MATCH))
            return;
        reached = s->distance;
    }
    enter_quads(p, last < reach ? last : reach);
    for (int found = BETTER; s->best < s->nice && found == BETTER; reached = s->distance) {
        found = next_by_quad(s, p, reached, &steps);
        if (found == TIRED)
            walk_on(s, p, reached);
    }
}

/* The match at `at` that the compressor knows of when it has one of `best` bytes at the position before (2: none). */
static tt_token found_at(tt_predictor *p, uint32_t at, unsigned best)
{
    tt_token none = {0, 0};
    if (p->end - at < TT_MIN_MATCH)
        return none;
    if (p->next <= at) {
        enter(p, p->next, at + 1);
        p->next = at + 1;
    }
    search s;
    if (at >= p->tail || !begin_search(&s, p, at, best))
        return none;
    if (p->by.search != TT_LAZY) {
        walk(&s, p, s.nice);
        return s.found;
    }
    if (s.chain >= DEEP)
        search_by_quads(&s, p);
    else
        walk(&s, p, s.nice);
    tt_token found = s.found;
    if (found.length == TT_MIN_MATCH && found.distance > TT_TOO_FAR)
        return none;
    return p->by.filtered && found.length < TT_FILTERED_LEAST ? none : found;
}

static tt_token run_at(const tt_predictor *p)
{
    const uint8_t *here = p->data + p->position;
    const uint32_t ahead = p->end - p->position;
    tt_token token = {0, 0};
    if (ahead < TT_MIN_MATCH || p->position == p->floor)
        return token;
    unsigned length = common(here - 1, here, ahead < TT_MAX_MATCH ? (unsigned)ahead : TT_MAX_MATCH);
    return length < TT_MIN_MATCH ? token : (tt_token){(uint16_t)length, 1};
}

static tt_token lazy_at(tt_predictor *p)
{
    tt_token found = p->carries ? p->carried : found_at(p, p->position, TT_MIN_MATCH - 1);
    if (found.length == 0 || found.length >= p->by.lazy || p->end - p->position < 2)
        return found;
    p->after = found_at(p, p->position + 1, found.length);
    p->foresees = p->after.length > 0;
    return p->foresees ? (tt_token){0, 0} : found;
}

tt_token tt_predict(tt_predictor *p)
{
    tt_token token = {0, 0};
    p->foresees = 0;
    if (p->by.search == TT_LAZY)
        token = lazy_at(p);
    else if (p->by.search == TT_GREEDY)
        token = found_at(p, p->position, TT_MIN_MATCH - 1);
    else if (p->by.search == TT_RUNS)
        token = run_at(p);
    if (token.length == 0)
        token.distance = p->data[p->position];
    return token;
}

void tt_predict_accept(tt_predictor *p, tt_token token)
{
    const uint32_t end = p->position + tt_token_size(token);
    p->carries = token.length == 0 && p->foresees;
    p->carried = p->after;
    p->foresees = 0;
    if (p->by.search == TT_GREEDY && token.length > 0 && p->next < end) {
        /* The inner positions of long matches stay out of the chains. */
        if (token.length <= p->by.lazy && p->end - end >= TT_MIN_MATCH)
            enter(p, p->next, end);
        p->next = end;
    }
    p->position = end;
}

void tt_predict_skip(tt_predictor *p, uint32_t size)
{
    p->position += size;
    p->carries = p->foresees = 0;
}

int tt_block_add(tt_block *block, const tt_compressor *by, uint32_t position, tt_token token)
{
    block->tokens++;
    if (token.length > 0) {
        block->matches++;
        block->bits += 5u + tt_code_distance(token.distance).bits;
    }
    if (by->early && block->tokens % EARLY_STEP == 0) {
        uint64_t out = (block->tokens * (uint64_t)8 + block->bits) >> 3;
        uint64_t in = position - block->start + (by->search == TT_LAZY);
        if (block->matches < block->tokens / 2 && out < in / 2)
            return 1;
    }
    return block->tokens == by->block;
}
