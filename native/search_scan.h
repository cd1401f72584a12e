/* The inner part of chunker 2: finding the groups of positions that have candidates (search.h says what those are).
 * One function for each instruction set, all with the same contract and the same results. */
#ifndef TT_SEARCH_SCAN_H
#define TT_SEARCH_SCAN_H
#include <stdint.h>

#include "cpu.h"

enum {
    TT_GROUP = 256, /* positions that a scan looks at before it asks whether there was a candidate */
    TT_WORDS = TT_GROUP / 64,

    /* How far back the steps reach. */
    TT_STEP_U = 5,
    TT_STEP_V = 10,
    TT_STEP_W = 32,
    TT_STEP_X = 64,
    TT_TAP = 11,

    /* A scan starts with empty history TT_WARM bytes early. Then t is right from data[-128] on, u from -123, v from
     * -113, w from -81 and x from -17 on: early enough for the first candidate, which asks for x at -11. */
    TT_WARM = 128,
    TT_REACH = TT_WARM + 3, /* a takes three more bytes */
};
_Static_assert(TT_WARM >= TT_STEP_U + TT_STEP_V + TT_STEP_W + TT_STEP_X + TT_TAP, "history is right in time");

/* Looks for candidates in `groups` groups of TT_GROUP bytes from `data` on; data[-TT_REACH .. groups*TT_GROUP) must be
 * readable, at any alignment (multiples of 64 are fastest). Returns how many groups lie before the first one that has
 * candidates and sets bit i%64 of marks[i/64] for each candidate i in that group; returns `groups`, with all marks
 * zero, if there is none. */
typedef uint64_t tt_scan(const uint8_t *data, uint64_t groups, int level, uint64_t marks[TT_WORDS]);

tt_scan tt_scan_scalar;
#if defined(TT_X86) || defined(TT_NEON)
tt_scan tt_scan_128;
#endif
#if defined(TT_X86)
tt_scan tt_scan_avx2, tt_scan_avx512, tt_scan_vbmi; /* the last where the processor has AVX-512 VBMI too */
#define TT_TARGET_VBMI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,bmi,bmi2,popcnt")))
#endif

/* The byte map T(a) = LOW[a mod 16] xor HIGH[a div 16]. The best of 128 draws on data of many shapes
 * (benchmarks/screen_chunker2.py, seed 75); every cut depends on them, so they never change. */
static const uint8_t TT_LOW[16] = {0x09, 0x3B, 0x16, 0x73, 0x4E, 0x4F, 0xA0, 0x91,
                                   0xC3, 0x67, 0x89, 0xB7, 0xCD, 0x37, 0x97, 0xCD};
static const uint8_t TT_HIGH[16] = {0x6D, 0x35, 0x41, 0x93, 0xDE, 0x60, 0x9C, 0x48,
                                    0x1C, 0xBD, 0xC0, 0x09, 0xA4, 0xD7, 0xA4, 0x35};

/* Candidates of 64 positions: those marked, of which the 11th before is marked too. `before` holds the marks of the 64
 * positions before. The sum is an or of disjoint bits; gcc would make a double shift of that, slow on some processors. */
static inline uint64_t tt_candidates(uint64_t marked, uint64_t before)
{
    return marked & ((marked << TT_TAP) + (before >> (64 - TT_TAP)));
}
#endif
