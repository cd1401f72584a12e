/* Chunker 2: cut-point search at any byte, for files that are not disk images.
 *
 * Specification. All arithmetic on bytes is modulo 256; z[-k] is the value of z k positions earlier. Every position i
 * of a buffer b has a byte x that depends on the 115 bytes b[i-114..i] alone, wherever they lie:
 *
 *     a = (b - b[-1]) xor (b[-2] + b[-3])
 *     t = LOW[a mod 16] xor HIGH[a div 16]                      (tables in search_scan.h)
 *     u = t - t[-5]       v = u xor u[-10]       w = v + v[-32]       x = w xor w[-64]
 *
 * Position i is a candidate if x > level and x[-11] > level, both taken as signed bytes; so a candidate depends on the
 * 126 bytes up to and including b[i]. On bytes without pattern its probability is ((127 - level) / 256)^2. Data that
 * repeats with a period that divides 10 or 64 (constant data too) has none, because v or x cancels to 0 there.
 *
 * A chunk starts where the one before it ends. Its length is the smallest n from `min` on for which its last byte is a
 * candidate and
 *
 *     hash(its last 32 bytes) <= strict     while n < norm,
 *     hash(its last 32 bytes) <= loose      from n = norm on.
 *
 * If there is no such n up to `max`, the length is that of the candidate with the smallest hash seen (of equal ones the
 * first), so that cuts follow the content here too; without any candidate it is `max`. The end of the data ends the
 * last chunk; then it is never longer than `max`, and shorter than `min` only if nothing more was left.
 *
 * hash: the four little-endian 64-bit words q of the 32 bytes in order, all arithmetic modulo 2^64:
 *
 *     h = 0; for each q: h = (h xor q) * 0x9FB21C651E98DF25; h = h xor (h >> 32)
 *     h = h * 0xD6E8FEB86659FD93; h = h xor (h >> 32)
 *
 * A chunk's length is a function of its own bytes and of whether the data ends there: since min >= 256 no candidate
 * that counts depends on a byte before the chunk. So cuts do not depend on how a stream was split into buffers, and
 * after an edit they are the old ones again from the first common cut on. */
#ifndef TT_SEARCH_H
#define TT_SEARCH_H
#include <stdint.h>

/* cffi: begin */
typedef struct {
    uint64_t min, norm, max;  /* chunk lengths in bytes: 256 <= min <= norm <= max <= 2^40 */
    uint64_t strict, loose;   /* largest hash that cuts, before and from norm on */
    uint32_t level;           /* 0..126: see above */
} tt_rule;

/* Cuts `data`, which begins at the start of a chunk, and writes the end of each chunk, counted from `data`, to `cuts`.
 * Returns how many, at most `capacity`. The next call starts at the last cut.
 *
 * With `final` the data ends after `length` bytes: the last cut is `length` unless `capacity` ran out first. Otherwise
 * more is to follow, and the search stops where fewer than `max` bytes are left, for no more can be decided then.
 *
 * Reads only data[0..length), writes only cuts[0..capacity), keeps nothing, allocates nothing. Time is proportional to
 * the bytes cut, whatever they hold: each byte is searched once, at most one hash is computed per byte. */
uint64_t tt_search(const uint8_t *data, uint64_t length, int final, const tt_rule *rule, uint64_t *cuts,
                   uint64_t capacity);
/* cffi: end */
#endif
