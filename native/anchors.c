#include "anchors.h"

#include <string.h>

/* Odd constants with their bits well spread (fractions of the golden ratio and of roots of 2 and 3): a product's upper
 * bits depend on all bits of the other factor. */
static const uint64_t CHOOSE = 0x9E3779B97F4A7C15u, SECOND = 0xB504F333F9DE6485u, THIRD = 0xBB67AE8584CAA73Bu;

static inline uint64_t load64(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* The key of the 24 bytes whose first eight are `first`. */
static inline uint32_t key_of(uint64_t first, const uint8_t *data)
{
    uint64_t mixed = first * CHOOSE ^ load64(data + 8) * SECOND;
    mixed ^= mixed >> 29;
    mixed = (mixed + load64(data + 16)) * THIRD;
    return (uint32_t)(mixed >> 32);
}

/* Whether `key` is among the last `TT_ANCHOR_MEMORY` of `count` keys: a pattern that repeats is not worth saying again. */
static inline int told_lately(const uint32_t *keys, uint64_t count, uint32_t key)
{
    uint64_t first = count > TT_ANCHOR_MEMORY ? count - TT_ANCHOR_MEMORY : 0;
    for (uint64_t at = first; at < count; at++)
        if (keys[at] == key)
            return 1;
    return 0;
}

uint64_t tt_anchors(const uint8_t *data, uint64_t length, uint32_t bits, uint32_t *keys, uint32_t *places,
                    uint64_t capacity)
{
    uint64_t count = 0;
    for (uint64_t at = 0; at + TT_ANCHOR_BYTES <= length && count < capacity; at++) {
        uint64_t first = load64(data + at);
        /* The sum keeps zeros from being chosen: their product would be zero. */
        if ((first + SECOND) * CHOOSE >> (64 - bits))
            continue;
        uint32_t key = key_of(first, data + at);
        if (told_lately(keys, count, key))
            continue;
        keys[count] = key;
        places[count++] = (uint32_t)at;
    }
    return count;
}
