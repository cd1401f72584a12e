/* Recompression: what a deflate stream is beside its content, as a short record, and the stream again from both.
 *
 * A record names a compressor by its parameters; where the tokens, the ends of blocks or the codes are not those that
 * it would have chosen, the record says so. Any well-formed stream has a record. Section "Recompression" of FORMAT.md
 * specifies every byte of it.
 *
 * All of these read and write the caller's buffers only and allocate nothing; `work` is memory for one stream, aligned
 * to 8 bytes, whatever it holds when they begin. Content is limited to TT_CONTENT_MOST bytes. Time: at each position
 * at most 2 * `chain` candidates are looked at and 258 bytes of each compared; at worst the compressors themselves need
 * half of that. */
#ifndef TT_RECOMPRESS_H
#define TT_RECOMPRESS_H
#include <stdint.h>

/* cffi: begin */
enum { TT_DONE = 0, TT_ROOM = 1, TT_BAD = 2 };
enum {
    TT_CONTENT_MOST = 0x40000000,  /* 1 GiB */
    TT_REBUILD_ROOM = 0x40000,     /* what tt_rebuild needs to go on: a stored block, or a full buffer of tokens */
};

/* Bytes that `work` must have for each of the functions. */
uint64_t tt_inflate_memory(void);
uint64_t tt_explain_memory(void);
uint64_t tt_rebuild_memory(void);

/* Begins to decode the raw deflate stream at in[0..length), which need not end there. */
void tt_inflate_start(void *work, const uint8_t *in, uint64_t length);

/* Decodes it. `out` holds the content from its start. TT_ROOM: it has more than `capacity` bytes; another call goes
 * on, with room for more and what was written. Where compressors flushed - an empty stored or fixed block - goes to
 * `flushes` as offsets in the content, rising, at most `most`. `sizes`: bytes of the stream, bytes of content,
 * flushes, and 1 if a match reaches back over a flush. */
int tt_inflate(void *work, uint8_t *out, uint64_t capacity, uint64_t *flushes, uint64_t most, uint64_t *sizes);

/* Decodes whole blocks of a raw deflate stream, from bit `bit` of in[0..length) on, behind out[0..context), which is
 * content that they may refer to; at most `most` blocks, and up to the final one. For each block `ends` gets the bit
 * behind it, the end of its content in `out`, and its type plus 4 if it is final. Returns how many blocks were decoded;
 * *state says what ended it: TT_DONE, TT_ROOM (`capacity`), or TT_BAD: the next block is malformed, or not all there. */
uint64_t tt_inflate_blocks(void *work, const uint8_t *in, uint64_t length, unsigned bit, uint8_t *out, uint64_t context,
                           uint64_t capacity, uint64_t *ends, uint64_t most, int *state);

/* Writes the record of a stream that tt_inflate has accepted, with that content and those flushes, for a compressor
 * given by three bytes. TT_ROOM: it does not fit. It stops behind `stop` bytes of content; what it has written by then
 * is merely long or short. `sizes`: bytes of the record, and blocks: where all is as predicted both are equal. */
int tt_explain(void *work, const uint8_t *in, uint64_t length, const uint8_t *content, uint64_t content_length,
               const uint64_t *flushes, uint64_t count, const uint8_t *compressor, uint64_t stop, uint8_t *record,
               uint64_t capacity, uint64_t *sizes);

/* The same for a slice: `blocks` whole blocks from bit `bit` of in[0..length) on. The first `context` bytes of the
 * content are what lies before theirs. */
int tt_explain_slice(void *work, const uint8_t *in, uint64_t length, unsigned bit, uint64_t blocks,
                     const uint8_t *content, uint64_t content_length, uint64_t context, const uint64_t *flushes,
                     uint64_t count, const uint8_t *compressor, uint8_t *record, uint64_t capacity, uint64_t *sizes);

/* Begins to rebuild a stream from the whole content and the record. TT_BAD: there is no such compressor. */
int tt_rebuild_start(void *work, const uint8_t *content, uint64_t content_length, const uint8_t *compressor,
                     const uint8_t *record, uint64_t record_length);

/* Begins to rebuild a slice. Its first byte has zeros in the `bit` low bits; what does not fill up a byte at its end is
 * left out, unless its last block is the final one. */
int tt_rebuild_slice_start(void *work, const uint8_t *content, uint64_t content_length, uint64_t context, unsigned bit,
                           const uint8_t *compressor, const uint8_t *record, uint64_t record_length);

/* Writes what comes next of the stream, and its size. TT_ROOM: there is more, and another call, with at least
 * TT_REBUILD_ROOM bytes, goes on. TT_BAD: the record breaks a rule, at *size bytes from its start. A record that
 * breaks none may still be wrong: the caller compares a digest. */
int tt_rebuild(void *work, uint8_t *out, uint64_t capacity, uint64_t *size);
/* cffi: end */
#endif
