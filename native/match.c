#include "match.h"

static const uint64_t SPREAD = 0x9E3779B97F4A7C15u;
enum { PER_START = 5 }; /* filter bits to a start: 2^5 */

/* low <= 255 * 2^24 < 2^32; high wraps, which the sums that roll do alike. */
typedef struct {
    uint32_t low, high;
} sums;

static uint64_t key_of(sums s)
{
    return ((uint64_t)s.high << 32 | s.low) * SPREAD;
}

static sums sums_of(const uint8_t *window, uint64_t size)
{
    sums s = {0, 0};
    for (uint64_t i = 0; i < size; i++) {
        s.low += window[i];
        s.high += (uint32_t)(size - i) * window[i];
    }
    return s;
}

void tt_match_keys(const uint8_t *data, uint64_t count, uint64_t size, uint64_t *keys)
{
    for (uint64_t i = 0; i < count; i++)
        keys[i] = key_of(sums_of(data + i * size, size));
}

void tt_match_prepare(const uint64_t *keys, uint64_t count, uint32_t bits, uint64_t *filter, uint32_t *starts)
{
    for (uint64_t i = 0; i < (uint64_t)1 << (bits - 6); i++)
        filter[i] = 0;
    uint64_t below = 0, ends = (uint64_t)1 << (bits - PER_START);
    for (uint64_t j = 0; j <= ends; j++) {
        while (below < count && keys[below] >> (64 - bits + PER_START) < j)
            below++;
        starts[j] = (uint32_t)below;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t k = keys[i] >> (64 - bits);
        filter[k / 64] |= (uint64_t)1 << (k % 64);
    }
}

/* The row of the first key that equals `key`, or count. Within a start's keys by halves: a hostile table may have put
 * all of them there. */
static uint64_t find(const tt_blocks *blocks, uint64_t key)
{
    uint64_t j = key >> (64 - blocks->bits + PER_START);
    uint64_t low = blocks->starts[j], high = blocks->starts[j + 1];
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (blocks->keys[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low < blocks->count && blocks->keys[low] == key ? low : blocks->count;
}

/* Moves the window that begins at `data` on by one byte. It loses its first byte, which counts once in low and size
 * times in high. Then every byte counts once more in high than before, and the new one once: that is low as it has
 * become. */
static sums rolled(sums s, const uint8_t *data, uint64_t size)
{
    uint32_t gone = data[0], come = data[size];
    s.low += come - gone;
    s.high += s.low - (uint32_t)size * gone;
    return s;
}

/* Moves the window that begins at offset `at` on until its key passes the filter, or to offset `last`; returns where
 * it is then. The window before `last` is the last one that may roll on: it takes in the last byte of the data. */
static uint64_t roll(const uint8_t *data, uint64_t at, uint64_t last, const tt_blocks *blocks, sums *window)
{
    const uint64_t size = blocks->size, *filter = blocks->filter;
    const unsigned shift = 64 - blocks->bits;
    sums s = *window;
    for (; at < last; at++) {
        uint64_t k = key_of(s) >> shift;
        if (filter[k / 64] >> (k % 64) & 1)
            break;
        s = rolled(s, data + at, size);
    }
    *window = s;
    return at;
}

uint64_t tt_match(const uint8_t *data, uint64_t length, const tt_blocks *blocks, uint64_t *position, uint64_t *offsets,
                  uint32_t *rows, uint64_t capacity)
{
    uint64_t at = *position, found = 0;
    if (length < blocks->size || at > length - blocks->size)
        return 0;
    const uint64_t last = length - blocks->size;
    sums s = sums_of(data + at, blocks->size);
    while (at <= last) {
        at = roll(data, at, last, blocks, &s);
        uint64_t row = find(blocks, key_of(s));
        if (row < blocks->count) {
            if (found == capacity)
                break;
            offsets[found] = at;
            rows[found++] = (uint32_t)row;
        }
        if (at < last)
            s = rolled(s, data + at, blocks->size);
        at++;
    }
    *position = at;
    return found;
}
