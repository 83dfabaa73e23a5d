"""Helpers of the backend's tests: what to run them on, random blocks."""

import numpy as np

import hpcHess.backend as hb

BACKENDS = [name for name in hb.available() if name != "cupy"]


def starts_of(sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def random_blocks(rng, rows, cols, dtype):
    return hb.Blocks.shaped(lambda n: rng.standard_normal(n).astype(dtype), rows, cols)
