"""How many vectors and samples a product takes at a time."""

import math

from hpcHess.parallel.memory import block_bytes

TEMPORARY_BYTES = 1 << 28  # of all temporaries of one product or probe together, its result aside
KEPT_BYTES = 1 << 26  # of buffers kept for the next product, whose pages are there: fresh ones took a third of small networks' time
SAMPLES = 1024  # of one sweep: the inner dimension of the gradients' products
COLUMNS = 64
_FEW = 4, 64  # vectors below which, and samples down to which, more blocks of samples are made


def blocking(fixed, per_sample, n_samples, k, itemsize):
    """(vectors at a time, number of blocks of the samples) that keep buffers within TEMPORARY_BYTES, one vector at least.

    fixed, per_sample   numbers in the buffers for one vector, and for one vector and one sample
    """
    n_blocks = math.ceil(n_samples / SAMPLES)
    while True:
        samples = math.ceil(n_samples / n_blocks)
        width = block_bytes(TEMPORARY_BYTES, 8) // itemsize // (fixed + per_sample * samples)
        if width >= min(_FEW[0], k) or samples <= _FEW[1]:
            width = max(1, min(k, width, COLUMNS))
            return math.ceil(k / math.ceil(k / width)), n_blocks
        n_blocks *= 2
