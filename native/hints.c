#include "hints.h"
void tt_hints(const uint8_t *data, uint64_t length, uint32_t *mixed, uint8_t *flags)
{ (void)data; (void)length; (void)mixed; (void)flags; }
