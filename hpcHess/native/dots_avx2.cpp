// Inner products for processors with AVX2 and FMA.
#define HPCHESS_SET avx2
#define HPCHESS_BYTES 32
#include "dots_tiles.inc"
