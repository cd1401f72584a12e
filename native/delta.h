/* Copy/add deltas: a target as copies from a base, the differences of what was copied, and literal bytes.
 *
 * A program that was built again differs from its predecessor in scattered addresses. So a copy need not be equal: it
 * is taken over with its differences, which are mostly none and otherwise few and alike. Finding them follows what
 * bsdiff introduced (C. Percival, "Naive differences of executable code", 2003: extension of exact matches by a score),
 * over a hash table instead of a suffix array; a place is judged by the differences that it would leave.
 *
 * The columns of a delta are defined in trimtransfer/FORMAT.md, "Delta". Nothing here allocates, keeps state, or reads
 * or writes beyond the buffers that are passed. */
#ifndef TT_DELTA_H
#define TT_DELTA_H
#include <stdint.h>

/* cffi: begin */
/* `copied` bytes like those of the base from `from` on, then `literal` bytes of the target's own. */
typedef struct {
    uint64_t from, copied, literal;
} tt_piece;

enum { TT_COPIES, TT_LITERALS, TT_MOVES, TT_GAPS, TT_SITES, TT_MARKS, TT_VALUES, TT_BYTES, TT_COLUMNS };

/* The columns of a delta; `size` is in bytes. */
typedef struct {
    uint8_t *data[8];
    uint64_t size[8];
} tt_columns;

/* Numbers of 32 bits that tt_delta_write and tt_delta_apply need as scratch where sites are used. */
enum { TT_DELTA_TABLES = 180224 };

/* How many numbers of 32 bits tt_delta_find needs as scratch: at most 0.875 * base_length + 2048, so 3.5 bytes for each
 * byte of the base. */
uint64_t tt_delta_scratch(uint64_t base_length);

/* The most pieces that tt_delta_find can write for a target of this length. */
uint64_t tt_delta_capacity(uint64_t length);

/* Divides the target into pieces, which cover it in order; returns how many. Every copy lies in the base.
 * `price`: the bits that a piece
 * is estimated to take, 1 to 2^16. base_length < 2^32 - 1, length < 2^62; `scratch` and `pieces` have the sizes above. Time is proportional to the
 * lengths, whatever the bytes: the factor is bounded by DEPTH, REACH, BACK and NEAR (delta_find.c). */
uint64_t tt_delta_find(const uint8_t *base, uint64_t base_length, const uint8_t *target, uint64_t length,
                       uint32_t price, uint32_t *scratch, tt_piece *pieces);

/* Writes the columns of these pieces, which are as tt_delta_find left them. With `tables` (not null) sites are
 * used. With c the bytes that are copied in all, data[TT_COPIES], [TT_LITERALS] and [TT_MOVES] have room for
 * 10 * count bytes, [TT_GAPS], [TT_SITES] and [TT_MARKS] for c, [TT_VALUES] for 2 * c, [TT_BYTES] for the target's
 * length less c; the sizes are set. (A changed word of w bytes after a gap of g takes at most w + g bytes for the gap,
 * 1 for the mark and 2 * w for the value; a false site has a byte of its own, and others before it take four each.) */
void tt_delta_write(const uint8_t *base, const uint8_t *target, const tt_piece *pieces, uint64_t count,
                    uint32_t *tables, tt_columns *columns);

/* Makes the target from its columns, which may hold anything. Returns 0, or the number of the column that is wrong
 * plus 1: what `target` holds is then of no worth. base_length, length < 2^62. */
int tt_delta_apply(const uint8_t *base, uint64_t base_length, const tt_columns *columns, uint32_t *tables,
                   uint8_t *target, uint64_t length);
/* cffi: end */
#endif
