"""Leading eigenpairs without a tolerance for the whole matrix: what is taken out before a tree."""

import numpy as np

from hpcHess.lowrank.basis import AliveProducts
from hpcHess.lowrank.block_krylov import BlockKrylov
from hpcHess.lowrank.compress import low_rank_matrix, pairs_found
from hpcHess.lowrank.search import Steering, search

_ROUNDING = 1e-4  # of ‖H̃‖_F: what the interpolative form may lose, for the remainder holds it
_NEVER = 1e-14  # a tolerance that the rank bounds, not the error


def leading(operator, rank, seed, dtype, backend):
    """`LowRankMatrix` of the `rank` eigenpairs of largest magnitude (fewer where H has fewer), by block Krylov; no certificate. Collective."""
    products = AliveProducts(operator)
    finder = BlockKrylov(products, seed)
    cut = search(finder, Steering(products, seed), _NEVER, max_rank=rank)
    matrix = low_rank_matrix(operator, products, finder.basis.combine(cut.S), cut.values, backend, np.dtype(dtype), _ROUNDING)
    matrix.report = pairs_found(matrix, "randomized", finder, products)
    return matrix
