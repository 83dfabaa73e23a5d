// Inner products for processors with whatever the compiler assumes.
#define HPCHESS_SET plain
#define HPCHESS_BYTES 16
#include "dots_tiles.inc"
