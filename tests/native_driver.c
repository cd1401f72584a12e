/* Runs the compiled functions outside Python: `native_driver FILE...`, built with sanitizers by test_sanitizers.py.
 *
 * Every function listed in `checks` is run over each file on every path that the machine has, at several alignments.
 * Input and output buffers are heap blocks of exactly the size that the function may touch, so that a sanitizer sees
 * any access beyond. What the functions return must be the same every time; it is printed once: FILE, function,
 * numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "anchors.h"
#include "cpu.h"
#include "cut.h"
#include "delta.h"
#include "hints.h"
#include "match.h"
#include "predict.h"
#include "recompress.h"
#include "record.h"
#include "search.h"
#include "search_scan.h"

/* Prints the results of one function over `data`. */
typedef void check(const uint8_t *data, uint64_t length, FILE *out);

static void *room(uint64_t size)
{
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL)
        exit(3);
    return memory;
}

static void check_disk(const uint8_t *data, uint64_t length, FILE *out)
{
    uint64_t blocks = (length + TT_BLOCK - 1) / TT_BLOCK;
    uint32_t *mixed = room(blocks * sizeof *mixed), *runs = room(blocks * sizeof *runs);
    uint8_t *flags = room(blocks);
    tt_hints(data, length, mixed, flags);
    for (uint64_t i = 0; i < blocks; i++)
        fprintf(out, " %u:%d", (unsigned)mixed[i], flags[i]);
    uint64_t records = tt_cut(mixed, flags, blocks, runs);
    for (uint64_t i = 0; i < records; i++)
        fprintf(out, " %s%u", runs[i] & TT_ZERO_RECORD ? "-" : "", (unsigned)(runs[i] & ~TT_ZERO_RECORD));
    free(mixed);
    free(runs);
    free(flags);
}

/* Chunker 2 with chunks of 1 KiB in the mean: the cuts when the data ends there, and when more is to follow. */
static void check_bytes(const uint8_t *data, uint64_t length, FILE *out)
{
    static const tt_rule rule = {256, 842, 4096, (1ull << 60) - 1, ~0ull, 111};
    uint64_t capacity = length / rule.min + 1, *cuts = room(capacity * sizeof *cuts);
    for (int final = 1; final >= 0; final--) {
        uint64_t count = tt_search(data, length, final, &rule, cuts, capacity);
        for (uint64_t i = 0; i < count; i++)
            fprintf(out, " %llu", (unsigned long long)cuts[i]);
        fprintf(out, " /");
    }
    free(cuts);
}

/* The candidates that a scan finds in all of the data that it may look at. */
static void print_scan(tt_scan *scan, const uint8_t *data, uint64_t length, FILE *out)
{
    uint64_t groups = length < TT_REACH ? 0 : (length - TT_REACH) / TT_GROUP, marks[TT_WORDS];
    for (uint64_t at = 0; at < groups; at++) {
        at += scan(data + TT_REACH + at * TT_GROUP, groups - at, 111, marks);
        if (at == groups)
            break;
        for (unsigned i = 0; i < TT_GROUP; i++)
            if (marks[i / 64] >> i % 64 & 1)
                fprintf(out, " %llu", (unsigned long long)(TT_REACH + at * TT_GROUP + i));
    }
}

/* Printed twice: with AVX-512 there are two scans, and which of them the search takes depends on the processor. */
static void check_scan(const uint8_t *data, uint64_t length, FILE *out)
{
    tt_scan *scan = tt_scan_scalar, *other = NULL;
#if defined(TT_X86) || defined(TT_NEON)
    if (tt_path() == TT_128)
        scan = tt_scan_128;
#endif
#if defined(TT_X86)
    if (tt_path() == TT_AVX2)
        scan = tt_scan_avx2;
    if (tt_path() == TT_AVX512) {
        scan = tt_scan_avx512;
        other = __builtin_cpu_supports("avx512vbmi") ? tt_scan_vbmi : NULL;
    }
#endif
    print_scan(scan, data, length, out);
    fprintf(out, " /");
    print_scan(other != NULL ? other : scan, data, length, out);
}

/* A copy in a block of its own, without a byte to spare. */
static void *copy_of(const void *data, uint64_t size)
{
    void *copied = room(size);
    memcpy(copied, data, size);
    return copied;
}

/* Decodes a raw deflate stream with room for so much at first; NULL if it is malformed. */
static uint8_t *inflated(const uint8_t *in, uint64_t length, uint64_t capacity, uint64_t *sizes)
{
    void *work = room(tt_inflate_memory());
    uint64_t *flushes = room(4 * sizeof *flushes);
    uint8_t *out = room(capacity);
    int state;
    tt_inflate_start(work, in, length);
    while ((state = tt_inflate(work, out, capacity, flushes, 4, sizes)) == TT_ROOM) {
        uint8_t *more = room(capacity = 2 * capacity + 100);
        memcpy(more, out, sizes[1]);
        free(out);
        out = more;
    }
    free(work);
    free(flushes);
    if (state == TT_DONE)
        return out;
    free(out);
    return NULL;
}

/* What zlib would say of data that is no stream, but for chance; and of the sizes if it is one. */
static void check_inflate(const uint8_t *data, uint64_t length, FILE *out)
{
    uint64_t sizes[4] = {0};
    uint8_t *content = inflated(data, length, 10, sizes);
    if (content != NULL)
        fprintf(out, " %llu %llu", (unsigned long long)sizes[0], (unsigned long long)sizes[1]);
    free(content);
}

/* Rebuilds a stream and, if `expected`, explains it again and compares the records. Returns what tt_rebuild did. */
static int check_record(const uint8_t *content, uint64_t size, const uint8_t *by, const uint8_t *record, uint64_t length,
                        int expected)
{
    void *work = room(tt_rebuild_memory());
    uint64_t capacity = 2 * (uint64_t)TT_REBUILD_ROOM + 2 * size, written = 0, sizes[4];
    uint8_t *stream = room(capacity);
    int state = tt_rebuild_start(work, content, size, by, record, length);
    if (state == TT_DONE)
        state = tt_rebuild(work, stream, capacity, &written);
    free(work);
    if (expected) {
        uint8_t *exact = copy_of(stream, written), *again = inflated(exact, written, size, sizes);
        if (state != TT_DONE || again == NULL || sizes[1] != size || memcmp(again, content, size) != 0)
            exit(4);
        void *explanation = room(tt_explain_memory());
        uint8_t *second = room(length);
        if (tt_explain(explanation, exact, written, content, size, NULL, 0, by, ~(uint64_t)0, second, length, sizes) !=
                TT_DONE || sizes[0] != length || memcmp(second, record, length) != 0)
            exit(5);
        if (tt_explain(explanation, exact, written, content, size, NULL, 0, by, size / 2, second, length / 2, sizes) ==
            TT_BAD)
            exit(6);
        free(explanation);
        free(exact);
        free(again);
        free(second);
    }
    free(stream);
    return state;
}

/* Rebuilds a slice whose record is hostile, or must give the bytes at `in` but for the bits that are not its own. */
static void check_slice(const uint8_t *in, uint64_t bytes, unsigned bit, int final, const uint8_t *content,
                        uint64_t size, uint64_t context, const uint8_t *by, const uint8_t *record, uint64_t length)
{
    void *work = room(tt_rebuild_memory());
    uint64_t capacity = 2 * (uint64_t)TT_REBUILD_ROOM + 8 * size, written = 0;
    uint8_t *made = room(capacity);
    int state = tt_rebuild_slice_start(work, content, size, context, bit, by, record, length);
    if (state == TT_DONE)
        state = tt_rebuild(work, made, capacity, &written);
    const uint64_t own = bytes - !final;
    if (in != NULL && (state != TT_DONE || written < own || (own > 1 && memcmp(made + 1, in + 1, own - 1) != 0)))
        exit(7);
    free(work);
    free(made);
}

/* Explains the blocks of a stream from `first` to `end`, of which `ends` tells, and rebuilds them. */
static void check_blocks(const uint8_t *data, const uint8_t *content, const uint64_t *ends, uint64_t first,
                         uint64_t end, const uint8_t *by)
{
    const uint64_t begin = first > 0 ? ends[3 * first - 3] : 0, origin = first > 0 ? ends[3 * first - 2] : 0;
    const uint64_t context = origin < TT_WINDOW ? origin : TT_WINDOW, bytes = (ends[3 * end - 3] + 7) / 8 - begin / 8;
    const uint64_t size = ends[3 * end - 2] - origin + context, capacity = 16 * bytes + 4096;
    uint8_t *in = copy_of(data + begin / 8, bytes), *part = copy_of(content + origin - context, size);
    uint8_t *record = room(capacity);
    void *work = room(tt_explain_memory());
    uint64_t sizes[2];
    if (tt_explain_slice(work, in, bytes, begin % 8, end - first, part, size, context, NULL, 0, by, record, capacity,
                         sizes) == TT_DONE) {
        uint8_t *exact = copy_of(record, sizes[0]);
        check_slice(in, bytes, begin % 8, (int)(ends[3 * end - 1] & 4), part, size, context, by, exact, sizes[0]);
        for (uint64_t at = 0; at < sizes[0] && at < 60; at += 7) {
            exact[at] ^= (uint8_t)(1 << at % 8);
            check_slice(NULL, 0, begin % 8, 0, part, size, context, by, exact, sizes[0]);
        }
        free(exact);
    }
    free(work);
    free(record);
    free(part);
    free(in);
}

/* The blocks of a stream, decoded some at a time, explained and rebuilt as slices; and any data as blocks from each bit
 * of its first byte on, behind some context. */
static void check_slices(const uint8_t *data, uint64_t length, FILE *out)
{
    static const uint8_t compressors[][3] = {{0x06, 0xF7, 14}, {0x82, 0xF7, 14}, {0x49, 0xF7, 15}};
    enum { MOST = 400 };
    uint64_t sizes[4] = {0}, *ends = room(3 * MOST * sizeof *ends);
    int state;
    uint8_t *content = inflated(data, length, 10, sizes);
    void *work = room(tt_inflate_memory());
    if (content != NULL) {
        uint8_t *again = room(sizes[1]);
        uint64_t count = tt_inflate_blocks(work, data, length, 0, again, 0, sizes[1], ends, MOST, &state);
        if (count == 0 || (count < MOST && (state != TT_DONE || memcmp(again, content, sizes[1]) != 0)))
            exit(8);
        if (count < MOST)
            fprintf(out, " %llu %llu", (unsigned long long)((ends[3 * count - 3] + 7) / 8),
                    (unsigned long long)ends[3 * count - 2]);
        else
            fprintf(out, " %llu %llu", (unsigned long long)sizes[0], (unsigned long long)sizes[1]);
        uint8_t *by = copy_of(compressors[length % 3], 3);
        check_blocks(data, content, ends, 0, count, by);
        check_blocks(data, content, ends, count / 2, count, by);
        check_blocks(data, content, ends, count / 3, count / 3 + 1, by);
        free(by);
        free(again);
    }
    for (unsigned bit = 0; bit < 8 && length > 0; bit++) {
        const uint64_t context = length < 3000 ? length : 3000, capacity = context + 5000;
        uint8_t *any = room(capacity), *part = copy_of(data, length / 2 + 1);
        memcpy(any, data, context);
        tt_inflate_blocks(work, part, length / 2 + 1, bit, any, context, capacity, ends, MOST, &state);
        free(any);
        free(part);
    }
    free(work);
    free(ends);
    free(content);
}

/* The tokens that compressors of three kinds are predicted to choose for 2,500 bytes, as a sum; and the streams that are
 * made of them, in a fixed and in a dynamic block. Then the data as a record, which is hostile. */
static void check_recompress(const uint8_t *data, uint64_t length, FILE *out)
{
    static const uint8_t compressors[][3] = {
        {0x01, 0xF7, 14}, {0x43, 0xF7, 15}, {0x04, 0x97, 14}, {0x06, 0xF7, 14}, {0x49, 0xF7, 15}, {0x09, 0xF0, 7},
        {0x19, 0xF8, 15}, {0x26, 0xF7, 14}, {0x36, 0xF7, 14},
    };
    enum { MOST = 2500 };
    const uint64_t size = length < MOST ? length : MOST, start = length / 3 < length - size ? length / 3 : length - size;
    uint8_t *content = copy_of(data + start, size);
    for (size_t i = length % 3; i < sizeof compressors / sizeof *compressors; i += 3) {
        uint8_t *by = copy_of(compressors[i], 3);
        tt_predictor *p = room(sizeof *p);
        tt_compressor read;
        uint32_t sum = 0, tokens = 0;
        tt_compressor_read(&read, by);
        tt_predict_begin(p, &read, content, size);
        for (tt_predict_segment(p, (uint32_t)size); p->position < size; tokens++) {
            tt_token token = tt_predict(p);
            tt_predict_accept(p, token);
            sum = sum * 31 + token.length * 32771u + token.distance;
        }
        free(p);
        fprintf(out, " %u:%u", (unsigned)tokens, (unsigned)sum);
        for (int type = TT_FIXED; type <= TT_DYNAMIC; type++) {
            uint8_t head[8] = {(uint8_t)(type | TT_FINAL)};
            tt_record_writer record = {head, sizeof head, 1, 0};
            if (tokens >= read.block) {
                head[0] |= TT_SIZE;
                tt_add_number(&record, tokens);
            }
            uint8_t *exact = copy_of(head, record.at);
            if (tokens != read.block)
                check_record(content, size, by, exact, record.at, 1);
            free(exact);
        }
        uint64_t hostile = size < 600 ? size : 600;
        for (uint64_t at = 0; at < hostile; at += 1 + hostile / 2) {
            uint8_t *record = copy_of(content + at, hostile - at);
            check_record(content, size, by, record, hostile - at, 0);
            free(record);
        }
        free(by);
    }
    free(content);
}

static int compare_keys(const void *a, const void *b)
{
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return first < second ? -1 : first > second;
}

/* The data's own blocks of 48 bytes, looked for in its first 20,000 bytes, seven places at a time. */
static void check_match(const uint8_t *data, uint64_t length, FILE *out)
{
    enum { SIZE = 48, BITS = 12, ROOM = 7 };
    uint64_t count = length / SIZE, *keys = room(count * sizeof *keys);
    tt_match_keys(data, count, SIZE, keys);
    qsort(keys, count, sizeof *keys, compare_keys);
    uint64_t *filter = room(sizeof *filter << (BITS - 6));
    uint32_t *starts = room(sizeof *starts * ((1 << (BITS - 5)) + 1));
    tt_match_prepare(keys, count, BITS, filter, starts);
    const tt_blocks blocks = {SIZE, count, BITS, keys, filter, starts};
    uint64_t *offsets = room(ROOM * sizeof *offsets);
    uint32_t *rows = room(ROOM * sizeof *rows);
    uint8_t *part = room(length < 20000 ? length : 20000);
    memcpy(part, data, length < 20000 ? length : 20000);
    for (uint64_t position = 0, found = ROOM; found == ROOM;) {
        found = tt_match(part, length < 20000 ? length : 20000, &blocks, &position, offsets, rows, ROOM);
        for (uint64_t i = 0; i < found; i++)
            fprintf(out, " %llu:%u", (unsigned long long)offsets[i], (unsigned)rows[i]);
    }
    free(keys);
    free(filter);
    free(starts);
    free(offsets);
    free(rows);
    free(part);
}

/* A copy of a column in a block of its exact size, with one byte changed if `flip` is not 0. */
static uint8_t *exact(const uint8_t *data, uint64_t size, uint64_t at, uint8_t flip)
{
    uint8_t *copy = room(size);
    memcpy(copy, data, size);
    if (size > 0)
        copy[at % size] ^= flip;
    return copy;
}

/* Writes the columns, reads them again, and then with single bytes changed. */
static void check_columns(const uint8_t *base, uint64_t base_length, const uint8_t *target, uint64_t length,
                          const tt_piece *pieces, uint64_t count, uint32_t *tables, FILE *out)
{
    uint64_t copied = 0;
    for (uint64_t i = 0; i < count; i++)
        copied += pieces[i].copied;
    const uint64_t rooms[TT_COLUMNS] = {10 * count, 10 * count, 10 * count, copied, copied, copied, 2 * copied,
                                        length - copied};
    tt_columns made, stored;
    for (int k = 0; k < TT_COLUMNS; k++)
        made.data[k] = room(rooms[k]);
    tt_delta_write(base, target, pieces, count, tables, &made);
    uint8_t *result = room(length);
    for (unsigned turn = 0; turn <= 16; turn++) {
        for (unsigned k = 0; k < TT_COLUMNS; k++) {
            stored.size[k] = made.size[k];
            uint8_t flip = turn > 0 && turn % TT_COLUMNS == k ? (uint8_t)(1 << turn / 3) : 0;
            stored.data[k] = exact(made.data[k], made.size[k], turn * 2654435761u, flip);
        }
        int wrong = tt_delta_apply(base, base_length, &stored, tables, result, length);
        if (turn == 0)
            fprintf(out, " %s", wrong == 0 && memcmp(result, target, length) == 0 ? "same" : "different");
        for (int k = 0; k < TT_COLUMNS; k++)
            free(stored.data[k]);
    }
    for (int k = 0; k < TT_COLUMNS; k++)
        free(made.data[k]);
    free(result);
}

/* The last two thirds of the data, words here and there changed, as a delta of the first two thirds. */
static void check_delta(const uint8_t *data, uint64_t length, FILE *out)
{
    uint64_t size = length - length / 3;
    uint8_t *base = exact(data, size, 0, 0), *target = exact(data + length / 3, size, 0, 0);
    for (uint64_t at = 40; at + 4 <= size; at += 61 + at % 7)
        target[at + at % 3] += 0x40;
    uint32_t *scratch = room(tt_delta_scratch(size) * sizeof *scratch);
    tt_piece *pieces = room(tt_delta_capacity(size) * sizeof *pieces);
    uint64_t count = tt_delta_find(base, size, target, size, 72, scratch, pieces);
    uint32_t *tables = room(TT_DELTA_TABLES * sizeof *tables);
    check_columns(base, size, target, size, pieces, count, NULL, out);
    check_columns(base, size, target, size, pieces, count, tables, out);
    free(base);
    free(target);
    free(scratch);
    free(pieces);
    free(tables);
}

/* The anchors of the first bytes, many for their length, as many as there is room for; and of all, which may be none. */
static void check_anchors(const uint8_t *data, uint64_t length, FILE *out)
{
    uint64_t capacity = 1000, size = length < 20000 ? length : 20000;
    uint32_t *keys = room(capacity * sizeof *keys), *places = room(capacity * sizeof *places);
    uint8_t *part = exact(data, size, 0, 0);
    uint64_t count = tt_anchors(part, size, 4, keys, places, capacity);
    for (uint64_t i = 0; i < count; i++)
        fprintf(out, " %u:%u", (unsigned)keys[i], (unsigned)places[i]);
    tt_anchors(data, length, 1, keys, places, capacity);
    tt_anchors(data, length, 16, keys, places, capacity);
    free(keys);
    free(places);
    free(part);
}

static const struct {
    const char *name;
    check *run;
} checks[] = {
    {"disk", check_disk},
    {"inflate", check_inflate},
    {"recompress", check_recompress},
    {"slices", check_slices},
    {"bytes", check_bytes},
    {"scan", check_scan},
    {"match", check_match},
    {"delta", check_delta},
    {"anchors", check_anchors},
};

static char *result_of(check *run, const uint8_t *data, uint64_t length)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    run(data, length, out);
    fclose(out);
    return text;
}

/* The result of one function over one input; ends the program if paths or alignments differ. */
static void compare(const char *file, const char *name, check *run, const uint8_t *data, uint64_t length)
{
    static const uint64_t offsets[] = {0, 1, 8, 63};
    char *first = NULL;
    for (int path = TT_SCALAR; path <= TT_AVX512; path++) {
        if (tt_select(path) != path)
            continue;
        for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
            uint8_t *moved = room(offsets[i] + length);
            memcpy(moved + offsets[i], data, length);
            char *text = result_of(run, moved + offsets[i], length);
            free(moved);
            if (first != NULL && strcmp(first, text) != 0) {
                fprintf(stderr, "%s: %s differs on path %d, offset %d\n", file, name, path, (int)offsets[i]);
                exit(1);
            }
            free(first);
            first = text;
        }
    }
    printf("%s %s%s\n", file, name, first);
    free(first);
}

int main(int count, char **files)
{
    for (int i = 1; i < count; i++) {
        FILE *in = fopen(files[i], "rb");
        if (in == NULL || fseek(in, 0, SEEK_END) != 0)
            return 2;
        uint64_t length = (uint64_t)ftell(in);
        uint8_t *data = room(length);
        rewind(in);
        if (fread(data, 1, length, in) != length)
            return 2;
        fclose(in);
        for (size_t j = 0; j < sizeof checks / sizeof *checks; j++)
            compare(files[i], checks[j].name, checks[j].run, data, length);
        free(data);
    }
    return 0;
}
