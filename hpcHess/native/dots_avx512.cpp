// Inner products for processors with AVX-512.
#define HPCHESS_SET avx512
#define HPCHESS_BYTES 64
#include "dots_tiles.inc"
