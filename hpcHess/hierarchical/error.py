"""Errors of nested-basis matrices in tree rows, where the sketches and the probes lie (the estimates: `compressed.certificate`)."""

import numpy as np

from hpcHess.compressed.certificate import error_of_products, spectral_norm
from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.hierarchical.norms import norm_frobenius
from hpcHess.parallel.exchange import gather_rows, reduce_rows


def estimate_error(matrix, G, HG, norm=None):
    """(ErrorEstimate, Norm) from exact products HG in tree rows (`certificate.error_of_products`). Collective."""
    return error_of_products(matrix.comm, HG, _product(matrix, G), lambda: norm_frobenius(matrix), norm)


def _product(matrix, W):
    """H̃W in tree rows, host arrays. Collective."""
    backend = matrix.backend
    return backend.to_host(multiply_tree_rows(matrix, backend.asarray(np.ascontiguousarray(W))))


def spectral_error(matrix, operator, G, HG, columns=8, products=4):
    """‖H̃ − H‖₂ from below, on the block Krylov space of the error's image of the probes. Collective."""
    comm = matrix.comm

    def apply(W):
        whole = np.zeros((matrix.n_params, W.shape[1]), operator.dtype)
        whole[matrix.tree.permutation] = gather_rows(comm, np.ascontiguousarray(W, operator.dtype), matrix.leaf_rows)
        exact = reduce_rows(comm, operator.partial_matmat(whole)[matrix.tree.permutation], matrix.leaf_rows)
        return exact.astype(np.float64) - _product(matrix, W)

    start = HG.astype(np.float64) - _product(matrix, G.astype(np.float64))
    return spectral_norm(apply, comm, start[:, :columns], products, 1e-2)
