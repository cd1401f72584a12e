/* The loop that every vector scan of chunker 2 ends in. Included by the file of each instruction set, after it defined
 *
 *     TARGET, SCAN             attributes and name of the function
 *     constants, load_constants(level)
 *     history                  what the steps ask for of earlier positions; {0} is right before the warm-up
 *     step(p, &constants, &history)    marks of the 64 positions from p on
 */

/* How far ahead of the step memory is asked for: into the first cache, and into the second, which makes the faster
 * steps another 3 to 5 per cent faster. Measured: 1 to 3 KiB and 4 to 6 KiB do equally well. */
enum { AHEAD = 2048, FAR_AHEAD = 6144 };

TARGET uint64_t SCAN(const uint8_t *data, uint64_t groups, int level, uint64_t marks[TT_WORDS])
{
    const constants c = load_constants(level);
    history h = {0};
    step(data - TT_WARM, &c, &h);
    uint64_t before = step(data - TT_WARM + 64, &c, &h);
    for (uint64_t done = 0; done < groups; done++, data += TT_GROUP) {
        uint64_t any = 0;
#pragma GCC unroll 4
        for (int k = 0; k < TT_WORDS; k++) {
            TT_PREFETCH(data + 64 * k, AHEAD);
            __builtin_prefetch((const void *)((uintptr_t)(data + 64 * k) + FAR_AHEAD), 0, 2);
            uint64_t marked = step(data + 64 * k, &c, &h);
            marks[k] = tt_candidates(marked, before);
            any |= marks[k];
            before = marked;
        }
        if (any)
            return done;
    }
    return groups; /* the last group's marks are zero */
}
