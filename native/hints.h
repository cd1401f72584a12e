/* Hints of 4 KiB blocks: the input of the cut rule for disk images (see cut.h). */
#ifndef TT_HINTS_H
#define TT_HINTS_H
#include <stdint.h>

/* cffi: begin */
void tt_hints(const uint8_t *data, uint64_t length, uint32_t *mixed, uint8_t *flags);
/* cffi: end */
#endif
