/* Anchors: places of a buffer that are chosen by the bytes that lie there, so that two buffers which share a stretch of
 * some hundred bytes share most of its anchors, wherever it lies in them.
 *
 * They tell a publisher which old content resembles new content, as sampled fingerprints do (U. Manber, "Finding similar
 * files in a large file system", 1994). They are stored nowhere and prove nothing. */
#ifndef TT_ANCHORS_H
#define TT_ANCHORS_H
#include <stdint.h>

/* cffi: begin */
enum { TT_ANCHOR_BYTES = 24 }; /* what an anchor depends on: so many bytes from its place on */
enum { TT_ANCHOR_MEMORY = 8 }; /* how many keys back one is not repeated: as many as a pattern of eight bytes can have */

/* Writes the anchors of `data` in order, at most `capacity` of them, and returns how many: `keys` of the bytes there,
 * and `places`, offsets in bytes. One place in 2^bits is chosen in the mean, 1 to 16, but none whose key is among the
 * TT_ANCHOR_MEMORY before it: of a pattern that repeats, only the first. length < 2^32. */
uint64_t tt_anchors(const uint8_t *data, uint64_t length, uint32_t bits, uint32_t *keys, uint32_t *places,
                    uint64_t capacity);
/* cffi: end */
#endif
