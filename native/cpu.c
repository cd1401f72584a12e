#include "cpu.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define TT_ATOMIC volatile int /* aligned ints are read and written whole there */
#else
#include <stdatomic.h>
#define TT_ATOMIC atomic_int
#endif

/* The chosen path, or -1 before the first question. Two threads that ask first at once find the same answer, so the
 * race is harmless; the type is atomic only to keep it defined. */
static TT_ATOMIC chosen = -1;

static int supported(int path)
{
#if defined(TT_X86)
    /* The compiler's run-time support checks the processor and that the system saves the wide registers. */
    __builtin_cpu_init();
    switch (path) {
    case TT_128:
        return __builtin_cpu_supports("ssse3") != 0;
    case TT_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
               __builtin_cpu_supports("popcnt");
    case TT_AVX512:
        return supported(TT_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
#elif defined(TT_NEON)
    if (path == TT_128)
        return 1;
#endif
    return path == TT_SCALAR;
}

static int best(void)
{
    int path = TT_AVX512;
    while (!supported(path))
        path--; /* ends at TT_SCALAR at the latest */
    return path;
}

int tt_path(void)
{
    int path = chosen;
    if (path < 0)
        chosen = path = best();
    return path;
}

int tt_select(int path)
{
    if (path < 0)
        path = best();
    if (path > TT_AVX512 || !supported(path))
        return -1;
    chosen = path;
    return path;
}
