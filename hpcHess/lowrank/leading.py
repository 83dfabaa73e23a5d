"""Leading eigenpairs without a tolerance for the whole matrix: outliers, for deflation, and what is taken out before a tree."""

import numpy as np

from hpcHess.lowrank.basis import AliveProducts
from hpcHess.lowrank.block_krylov import BlockKrylov
from hpcHess.lowrank.compress import low_rank_matrix, pairs_found
from hpcHess.lowrank.search import Steering, leading_first, search
from hpcHess.parallel.replicated import replicated
from hpcHess.runtime.errors import InputError

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


def leading_eigenpairs(operator, count=None, above=None, tolerance=1e-3, seed=0):
    """The `count` eigenpairs of H of largest magnitude, or all with |θ| ≥ `above`: (θ [r], U [n_local, r]), largest first, by block Krylov.

    Ritz pairs with ‖Hu − θu‖ ≤ tolerance · max |θ| (or rounding); U orthonormal in parameter rows, in the operator's dtype. Fewer where H has
    fewer. Collective; InputError unless one of count and above is given.
    """
    if (count is None) == (above is None):
        raise InputError("leading_eigenpairs takes either count or above")
    products = AliveProducts(operator)
    finder = BlockKrylov(products, seed)
    while True:
        finder.grow()
        theta, S = replicated(products.comm, leading_first, finder.core())
        rank = min(int(count), len(theta)) if above is None else int(np.count_nonzero(np.abs(theta) >= above))
        complete = rank == count if above is None else rank < len(theta)
        checked = rank if above is None else rank + 1  # the first below the bound may still rise above it
        residuals = products.comm.bcast(finder.residuals(S[:, :checked]))
        if finder.exhausted or (complete and np.all(residuals <= (tolerance * abs(theta[0])) ** 2)):
            return theta[:rank], products.spread(finder.basis.combine(S[:, :rank]))
