/* Chunker 2: the scan with AVX-512 and the byte permutes of VBMI (Ice Lake, Zen 4 and later). */
#define TT_VBMI 1
#include "search_avx512.c"
