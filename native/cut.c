#include "cut.h"

#include "hints.h"

/* Chunks end at one block in 48 until they have 18 blocks, at one in 12 from then on. The thresholds are rounded down
 * and part of the format: they decide which chunks two images share.
 *
 * Chosen with benchmarks/screen_chunker1.py on four pairs of file-system images. Longer chunks (96 and 24 from 36 on)
 * fetch 1 % less only because they make longer frames, which frames can have without them, and a write to a random
 * block makes 1.6 times as many bytes new; shorter ones (32, 8, 12) and a maximum of 32 blocks fetch 0.2 to 0.6 % more.
 * Without the ends of files updates cost 6 % more, rebuilt images 9 %, trees of small files half as much again or twice
 * as much. 8 to 128 zeros as the sign of an end are the same within 0.3 %; zero runs of 1 to 16 blocks differ in
 * nothing. A limit to the chunks of a region (above 8,192 no cuts before the fourth block) makes the tables of a
 * process's memory smaller, 1.3 instead of 3.6 % of its compressed content, but a region of icons it reaches shares
 * nothing with one that it does not: 42 of 571 MiB of new chunks in a rebuilt desktop. */
#define RARE UINT32_C(89478485)      /* 2^32 / 48 */
#define FREQUENT UINT32_C(357913941) /* 2^32 / 12 */
enum { FREQUENT_FROM = 18, LEAST_ZERO_RUN = 4 };

static uint64_t end_of_zeros(const uint8_t *flags, uint64_t at, uint64_t blocks)
{
    while (at < blocks && flags[at] & TT_ZERO_BLOCK)
        at++;
    return at;
}

/* Whether the chunk ends after its n-th block. */
static int chunk_ends(uint64_t n, uint32_t mixed, uint8_t flags)
{
    uint32_t threshold = n < FREQUENT_FROM ? RARE : FREQUENT;
    return (n == TT_MAX_BLOCKS) | ((flags & TT_ZERO_TAIL) != 0) | (mixed < threshold);
}

uint64_t tt_cut(const uint32_t *mixed, const uint8_t *flags, uint64_t blocks, uint32_t *runs)
{
    uint64_t records = 0;
    uint64_t start = 0;  /* of the chunk that is open; it is empty while start == at */
    uint64_t judged = 0; /* zero runs are judged as a whole: blocks before this one are past that */
    for (uint64_t at = 0; at < blocks;) {
        if (flags[at] & TT_ZERO_BLOCK && at >= judged) {
            /* The block before is not zero, or there is none: a maximal run begins here. */
            judged = end_of_zeros(flags, at, blocks);
            if (judged - at >= LEAST_ZERO_RUN || start == at || judged == blocks) {
                if (start < at)
                    runs[records++] = (uint32_t)(at - start);
                runs[records++] = (uint32_t)(judged - at) | TT_ZERO_RECORD;
                start = at = judged;
                continue;
            }
        }
        if (chunk_ends(at - start + 1, mixed[at], flags[at])) {
            runs[records++] = (uint32_t)(at - start + 1);
            start = at + 1;
        }
        at++;
    }
    if (start < blocks)
        runs[records++] = (uint32_t)(blocks - start);
    return records;
}
