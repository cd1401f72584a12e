/* Runs the compiled functions outside Python: `native_driver FILE...`, built with sanitizers by test_sanitizers.py.
 *
 * Every function listed in `checks` is run over each file on every path that the machine has, at several alignments.
 * Input and output buffers are heap blocks of exactly the size that the function may touch, so that a sanitizer sees
 * any access beyond. What the functions return must be the same every time; it is printed once: FILE, function,
 * numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "cut.h"
#include "hints.h"

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

static const struct {
    const char *name;
    check *run;
} checks[] = {
    {"disk", check_disk},
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
