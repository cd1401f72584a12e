/* Chunker 2: the rule that turns candidates into cuts, and the scan in plain C. */
#include "search.h"

#include <string.h>

#include "search_scan.h"

static const uint64_t HASH_STEP = 0x9FB21C651E98DF25u, HASH_END = 0xD6E8FEB86659FD93u;
enum {
    HASHED = 32,     /* bytes that the hash takes */
    LINE = 64,       /* cache line: scans begin at multiples of it where they can */
    AHEAD = 2048,    /* bytes asked for before a scan begins; the scans themselves ask for what follows */
};

/* The hash of the HASHED bytes that end before `end`. */
static uint64_t hash_before(const uint8_t *end)
{
    uint64_t h = 0;
    for (int k = -HASHED; k < 0; k += 8) {
        h = (h ^ tt_read64(end + k)) * HASH_STEP;
        h ^= h >> 32;
    }
    h *= HASH_END;
    return h ^ (h >> 32);
}

static unsigned lowest_bit(uint64_t word)
{
#if defined(__GNUC__) || defined(__clang__)
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned k = 0;
    while (!(word >> k & 1))
        k++;
    return k;
#endif
}

/* ---- scan in plain C: the steps one after the other over small arrays, which compilers turn into vector code ---- */

/* TT_LOW[a mod 16] xor TT_HIGH[a div 16] for every a. */
static void fill_map(uint8_t map[256])
{
    for (unsigned a = 0; a < 256; a++)
        map[a] = TT_LOW[a & 15] ^ TT_HIGH[a >> 4];
}

/* Values of TT_GROUP positions, each array with the earlier values in front that the next step asks for. */
typedef struct {
    uint8_t a[TT_GROUP];
    uint8_t t[TT_STEP_U + TT_GROUP];
    uint8_t u[TT_STEP_V + TT_GROUP];
    uint8_t v[TT_STEP_W + TT_GROUP];
    uint8_t w[TT_STEP_X + TT_GROUP];
    uint8_t marked[TT_TAP + TT_GROUP]; /* 1 where x > level */
} group;

/* t[i] = map[a[i]] for `count` bytes, a multiple of 8. Eight at a time in a register: left to itself the compiler puts
 * vectors together from single bytes here, which takes half as long again. */
static void map_bytes(uint8_t *restrict t, const uint8_t *restrict a, int count, const uint8_t *restrict map)
{
    for (int i = 0; i < count; i += 8) {
        uint64_t from, to = 0;
        memcpy(&from, a + i, sizeof from);
        for (int k = 0; k < 64; k += 8)
            to |= (uint64_t)map[from >> k & 255] << k;
        memcpy(t + i, &to, sizeof to);
    }
}

/* Computes the values of the `count` positions from `data` on; those before them are in front of the arrays. */
static void grow(group *restrict g, const uint8_t *restrict map, const uint8_t *restrict data, int count, int level)
{
    for (int i = 0; i < count; i++)
        g->a[i] = (uint8_t)((data[i] - data[i - 1]) ^ (data[i - 2] + data[i - 3]));
    map_bytes(g->t + TT_STEP_U, g->a, count, map);
    for (int i = 0; i < count; i++)
        g->u[TT_STEP_V + i] = (uint8_t)(g->t[TT_STEP_U + i] - g->t[i]);
    for (int i = 0; i < count; i++)
        g->v[TT_STEP_W + i] = g->u[TT_STEP_V + i] ^ g->u[i];
    for (int i = 0; i < count; i++)
        g->w[TT_STEP_X + i] = (uint8_t)(g->v[TT_STEP_W + i] + g->v[i]);
    for (int i = 0; i < count; i++)
        g->marked[TT_TAP + i] = (int8_t)(g->w[TT_STEP_X + i] ^ g->w[i]) > (int8_t)level;
}

/* Moves the last values of a group of `count` positions to the front. Source and target may overlap if count is
 * smaller than a step; TT_WARM and TT_GROUP are not. */
static void carry(group *g, int count)
{
    memcpy(g->t, g->t + count, TT_STEP_U);
    memcpy(g->u, g->u + count, TT_STEP_V);
    memcpy(g->v, g->v + count, TT_STEP_W);
    memcpy(g->w, g->w + count, TT_STEP_X);
    memcpy(g->marked, g->marked + count, TT_TAP);
}

/* Sets the bits of the group's candidates; returns whether there is any. */
static int pack(const group *g, uint64_t marks[TT_WORDS])
{
    uint8_t candidate[TT_GROUP], any = 0;
    for (int i = 0; i < TT_GROUP; i++) {
        candidate[i] = g->marked[TT_TAP + i] & g->marked[i];
        any |= candidate[i];
    }
    memset(marks, 0, TT_WORDS * sizeof marks[0]);
    if (any)
        for (int i = 0; i < TT_GROUP; i++)
            marks[i / 64] |= (uint64_t)candidate[i] << (i % 64);
    return any;
}

uint64_t tt_scan_scalar(const uint8_t *data, uint64_t groups, int level, uint64_t marks[TT_WORDS])
{
    uint8_t map[256];
    group g;
    fill_map(map);
    memset(&g, 0, sizeof g);
    grow(&g, map, data - TT_WARM, TT_WARM, level);
    carry(&g, TT_WARM);
    for (uint64_t done = 0; done < groups; done++, data += TT_GROUP) {
        grow(&g, map, data, TT_GROUP, level);
        if (pack(&g, marks))
            return done;
        carry(&g, TT_GROUP);
    }
    memset(marks, 0, TT_WORDS * sizeof marks[0]);
    return groups;
}

static tt_scan *scan_for(int path)
{
    switch (path) {
#if defined(TT_X86)
    case TT_AVX512:
        return __builtin_cpu_supports("avx512vbmi") ? tt_scan_vbmi : tt_scan_avx512;
    case TT_AVX2:
        return tt_scan_avx2;
#endif
#if defined(TT_X86) || defined(TT_NEON)
    case TT_128:
        return tt_scan_128;
#endif
    }
    return tt_scan_scalar;
}

/* ---- the rule ---- */

/* One chunk while its end is searched. Lengths count from its start. */
typedef struct {
    const uint8_t *start;
    uint64_t limit;    /* the chunk's length is at most this: max, or all that is left */
    uint64_t best;     /* length of the candidate with the smallest hash so far; 0: none */
    uint64_t smallest; /* that hash */
} chunk;

/* Looks at the candidates of one group, whose first position is the last byte of a chunk of length `first`. Returns the
 * chunk's length if one of them decides it, else 0. */
static uint64_t decide(chunk *c, uint64_t first, const uint64_t marks[TT_WORDS], const tt_rule *rule)
{
    for (unsigned k = 0; k < TT_WORDS; k++)
        for (uint64_t word = marks[k]; word; word &= word - 1) {
            uint64_t n = first + 64 * k + lowest_bit(word);
            if (n < rule->min)
                continue;
            if (n > c->limit)
                return 0;
            uint64_t h = hash_before(c->start + n);
            if (h <= (n < rule->norm ? rule->strict : rule->loose))
                return n;
            if (!c->best || h < c->smallest) {
                c->smallest = h;
                c->best = n;
            }
        }
    return 0;
}

/* Scans one group that begins `at` bytes into the chunk and reaches past the data, in a copy filled up with zeros. What
 * the zeros mark lies past the limit, where decide() stops. */
static void scan_end(const chunk *c, uint64_t at, uint64_t left, tt_scan *scan, int level, uint64_t marks[TT_WORDS])
{
    uint8_t copy[TT_REACH + TT_GROUP] = {0};
    memcpy(copy, c->start + at - TT_REACH, (size_t)(left - at + TT_REACH));
    scan(copy + TT_REACH, 1, level, marks);
}

/* The length of the chunk that starts at `start`, with `left` bytes there; left >= max unless the data ends there. */
static uint64_t next_length(const uint8_t *start, uint64_t left, tt_scan *scan, const tt_rule *rule)
{
    if (left <= rule->min)
        return left;
    chunk c = {start, left < rule->max ? left : rule->max, 0, 0};
    /* The first position that counts is min - 1 >= 255. From there back to a multiple of LINE: at least 192, which is
     * more than TT_REACH, so no scan reads before the chunk. */
    uint64_t at = rule->min - 1;
    at -= (uintptr_t)(start + at) % LINE;
    for (unsigned ahead = 0; ahead < AHEAD; ahead += LINE)
        TT_PREFETCH(start + at, ahead);
    while (at < c.limit) {
        uint64_t marks[TT_WORDS];
        uint64_t groups = (c.limit - at + TT_GROUP - 1) / TT_GROUP, whole = (left - at) / TT_GROUP;
        if (groups > whole)
            groups = whole;
        if (groups) {
            uint64_t without = scan(start + at, groups, (int)rule->level, marks);
            at += TT_GROUP * without;
            if (without == groups)
                continue;
        } else {
            scan_end(&c, at, left, scan, (int)rule->level, marks);
        }
        uint64_t decided = decide(&c, at + 1, marks, rule);
        if (decided)
            return decided;
        at += TT_GROUP;
    }
    return left >= rule->max && c.best ? c.best : c.limit;
}

uint64_t tt_search(const uint8_t *data, uint64_t length, int final, const tt_rule *rule, uint64_t *cuts,
                   uint64_t capacity)
{
    tt_scan *scan = scan_for(tt_path());
    uint64_t cut = 0, count = 0;
    while (count < capacity && cut < length && (final || length - cut >= rule->max)) {
        cut += next_length(data + cut, length - cut, scan, rule);
        cuts[count++] = cut;
    }
    return count;
}
