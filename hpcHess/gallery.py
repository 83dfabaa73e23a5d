"""python -m hpcHess.gallery NAME --n N --output K.npy: symmetric dense test matrices from their definitions.

Functions f(n, seed=0, …, dtype=float64) → K [n, n], exactly symmetric, the same for the same arguments; `MATRICES` names them with the parameters of
the suites they follow. K02, K03, K04 … K06, K09, K11, K12 are after the matrices of those names in Yu, Levitt, Reiz, Biros, "Geometry-oblivious FMM for
compressing dense SPD matrices", SC 2017, §3, which describes them in words: coefficients, bandwidths and sizes are chosen here. A matrix in
float32 has its float64 entries rounded, which moves eigenvalues by up to 6e-8 ‖K‖_F: the small ones of a definite K may turn negative.
Random points and coefficients come from NumPy's PCG64.
"""

import argparse
import inspect

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from hpcHess.parallel.agree import on_root
from hpcHess.parallel.memory import free_bytes
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import DONE, InputError
from hpcHess.runtime.session import run_driver
from hpcHess.storage.dense import check_dense_output, write_dense

_ROWS = 256  # of K in one step
HELMHOLTZ = -((2 * np.pi / 10) ** 2)  # shift of a wave of 10 points


def inverse_laplacian(n, seed=0, shift=1e-3, power=2, dtype=np.float64):
    """K = (L + σI)^−p, L the 5-point Laplacian (4 on the diagonal, −1 for neighbours) with Dirichlet boundaries, σ = `shift`, p = `power` 1 or 2.

    The n points are the first of a grid of ⌈√n⌉ columns, row by row; `seed` is not used. K02: p = 2, the squared inverse of a regularized
    Laplacian; on a full grid κ(K) = ((8 cos²θ + σ) / (8 sin²θ + σ))^p with θ = π/(2√n + 2). σ < 0: Helmholtz with 2π/√−σ points a wave, K03
    with p = 2 (definite); p = 1 is indefinite, with as many negative eigenvalues as L has below −σ. κ grows as −σ comes close to one.
    """
    _require(power in (1, 2), f"power must be 1 or 2, not {power}")
    rows, columns, _ = _grid(n)
    A = _stiffness(n, rows, columns, np.ones(len(rows)), 4.0 * np.ones(n), shift)
    return _inverse(A, power, dtype, definite=shift >= 0)


def inverse_diffusion_1d(n, seed=0, contrast=1e6, dtype=np.float64):
    """K = A⁻¹, (Au)_i = a_i (u_i − u_{i−1}) + a_{i+1} (u_i − u_{i+1}), u_0 = u_{n+1} = 0: −(a u')' with a_i log-uniform in [1, contrast].

    K11. K_ij = s_min(i,j) (1 − s_max(i,j)/s) with s_i = Σ_{k ≤ i} 1/a_k and s the sum of all n + 1: every block off the diagonal has rank 1.
    κ(K) ≲ contrast · n² / 2.
    """
    a = _log_uniform(np.random.default_rng(seed), n + 1, contrast)
    left = np.arange(n - 1)
    A = _stiffness(n, left, left + 1, a[1:-1], a[:-1] + a[1:], 0.0)
    return _inverse(A, 1, dtype)


def inverse_diffusion_2d(n, seed=0, contrast=1e4, dtype=np.float64):
    """K = A⁻¹, (Au)_i = Σ_j a_ij (u_i − u_j) over the neighbours on `inverse_laplacian`'s grid, u = 0 outside; a_ij log-uniform in [1, contrast].

    K12, −div(a grad u) with a of high contrast. κ(K) ≲ contrast · n / 2.
    """
    rng = np.random.default_rng(seed)
    rows, columns, outside = _grid(n)
    a = _log_uniform(rng, len(rows) + len(outside), contrast)
    diagonal = np.bincount(np.concatenate([rows, columns, outside]), np.concatenate([a[: len(rows)], a]), minlength=n)
    return _inverse(_stiffness(n, rows, columns, a[: len(rows)], diagonal, 0.0), 1, dtype)


def inverse_graph_laplacian(n, seed=0, shift=1e-2, degree=10.0, dtype=np.float64):
    """K = (L + σI)⁻¹, L = D − W of a random geometric graph: n uniform points of the unit square, joined where ‖x − y‖² ≤ degree / (π n).

    Eigenvalues lie in (0, 1/σ], 1/σ for the constant on each connected piece; κ(K) ≤ 1 + 2 max degree / σ.
    """
    _require(shift > 0 and degree > 0, f"shift and degree must be positive, not {shift} and {degree}")
    points = np.random.default_rng(seed).random((n, 2))
    rows, columns = cKDTree(points).query_pairs(np.sqrt(degree / (np.pi * n)), output_type="ndarray").reshape(-1, 2).T
    A = _stiffness(n, rows, columns, np.ones(len(rows)), np.bincount(np.concatenate([rows, columns]), minlength=n).astype(float), shift)
    return _inverse(A, 1, dtype)


def gaussian(n, seed=0, bandwidth=1.0, dimension=6, ridge=0.0, dtype=np.float64):
    """K_ij = exp(−‖x_i − x_j‖² / (2 h²)) + ridge δ_ij, h = `bandwidth`, x_i standard normal in R^dimension.

    K04, K05, K06 with h = 1, 0.5, 2: in R⁶ distances are about √12, so h = 0.5 is close to I and hard to compress, h = 2 of low rank. Positive
    definite, but by rounding only up to its smallest eigenvalue: κ(K) ≈ n / ridge for wide h.
    """
    _require(bandwidth > 0, f"bandwidth must be positive, not {bandwidth}")
    return _radial(n, seed, dimension, lambda d2: np.exp(-d2 / (2 * bandwidth**2)), ridge, dtype)


def inverse_multiquadric(n, seed=0, width=1.0, dimension=6, ridge=0.0, dtype=np.float64):
    """K_ij = (‖x_i − x_j‖² + c²)^−1/2 + ridge δ_ij, c = `width`, x_i standard normal in R^dimension. K09; positive definite, κ as `gaussian`."""
    _require(width > 0, f"width must be positive, not {width}")
    return _radial(n, seed, dimension, lambda d2: 1 / np.sqrt(d2 + width**2), ridge, dtype)


def toeplitz(n, seed=0, rho=0.99, dtype=np.float64):
    """K_ij = ρ^|i−j|, 0 < ρ < 1 (Kac, Murdock, Szegő 1953); `seed` is not used. K⁻¹ is tridiagonal, κ(K) < ((1 + ρ)/(1 − ρ))²."""
    _require(0 < rho < 1, f"rho must lie between 0 and 1, not {rho}")
    power = rho ** np.arange(n)
    return _by_rows(n, lambda i: power[np.abs(i[:, None] - np.arange(n))], dtype)


def identity_plus_low_rank(n, seed=0, rank=20, scale=100.0, dtype=np.float64):
    """K = I + scale · U Uᵀ, U [n, rank] random with orthonormal columns: eigenvalues 1 and 1 + scale (rank times)."""
    U = _orthonormal(n, rank, seed)
    return _by_rows(n, lambda i: scale * U[i] @ U.T + (i[:, None] == np.arange(n)), dtype)


def rank_deficient(n, seed=0, rank=20, digits=4.0, dtype=np.float64):
    """K = U D Uᵀ of exact rank `rank`, U as in `identity_plus_low_rank`, D from 1 down to 10^−digits in equal ratios."""
    U = _orthonormal(n, rank, seed)
    D = np.logspace(0, -digits, rank)
    return _by_rows(n, lambda i: (U[i] * D) @ U.T, dtype)


def zero_blocks(n, seed=0, blocks=8, dtype=np.float64):
    """Block diagonal, `blocks` blocks of (nearly) equal size: the 1st, 3rd, … is `gaussian` of h = 1 in the plane with ridge 0.1, the others are zero.

    Half of the parameters are dead; κ of the rest ≲ 10 n / blocks.
    """
    _require(1 <= blocks <= n, f"blocks must lie between 1 and n = {n}, not {blocks}")
    K, bounds = np.zeros((n, n), dtype), row_starts(n, blocks)
    for number in range(0, blocks, 2):
        piece = slice(bounds[number], bounds[number + 1])
        K[piece, piece] = gaussian(piece.stop - piece.start, seed + number, 1.0, 2, 0.1, dtype)
    return K


MATRICES = {
    "K02": (inverse_laplacian, {}),
    "K03": (inverse_laplacian, {"shift": HELMHOLTZ}),
    "K04": (gaussian, {"bandwidth": 1.0}),
    "K05": (gaussian, {"bandwidth": 0.5}),
    "K06": (gaussian, {"bandwidth": 2.0}),
    "K09": (inverse_multiquadric, {}),
    "K11": (inverse_diffusion_1d, {}),
    "K12": (inverse_diffusion_2d, {}),
    "graph": (inverse_graph_laplacian, {}),
    "toeplitz": (toeplitz, {}),
    "low-rank": (identity_plus_low_rank, {}),
    "rank-deficient": (rank_deficient, {}),
    "zero-blocks": (zero_blocks, {}),
    "indefinite": (inverse_laplacian, {"shift": HELMHOLTZ, "power": 1}),
}


def make(name, n, seed=0, dtype=np.float64, **parameters):
    """The matrix `name` of `MATRICES`, with some of its parameters changed. InputError: unknown names, values out of range, no memory."""
    _require(name in MATRICES, f"unknown matrix {name!r}: there are {', '.join(MATRICES)}")
    function, given = MATRICES[name]
    known = _parameters(function)
    for key, value in parameters.items():
        _require(key in known, f"{name} has no parameter {key!r}: it has {', '.join(known)}")
        _require(np.isfinite(value), f"{key} must be finite, not {value}")
        _require(isinstance(known[key], float) or isinstance(value, int), f"{key} must be an integer, not {value}")
    _require(n >= 1 and seed >= 0, f"n must be at least 1 and seed at least 0, not {n} and {seed}")
    needed, free = n * n * np.dtype(dtype).itemsize, free_bytes()
    _require(needed < free, f"{name} of order {n} in {np.dtype(dtype)} needs {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are free")
    return function(n, seed, dtype=dtype, **{**given, **parameters})


def _parameters(function):
    """{name: default} of a matrix's own parameters."""
    return {key: each.default for key, each in inspect.signature(function).parameters.items() if key not in ("n", "seed", "dtype")}


def _require(condition, text):
    if not condition:
        raise InputError(text)


def _grid(n):
    """(i, j) of the n points' neighbours on the grid, and i of every neighbour outside: int arrays."""
    width = int(np.ceil(np.sqrt(n)))
    point = np.arange(n)
    right = point[(point % width < width - 1) & (point + 1 < n)]
    below = point[point + width < n]
    rows, columns = np.concatenate([right, below]), np.concatenate([right + 1, below + width])
    outside = np.repeat(point, 4 - np.bincount(np.concatenate([rows, columns]), minlength=n))
    return rows, columns, outside


def _stiffness(n, rows, columns, weights, diagonal, shift):
    """The sparse A with A_ij = A_ji = −weight for every pair, and diagonal + shift."""
    off = coo_matrix((-weights, (rows, columns)), shape=(n, n))
    return (off + off.T + diags(diagonal + shift)).tocsc()


def _inverse(A, power, dtype, definite=True):
    """A^−power, dense, for a sparse symmetric A."""
    options = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}} if definite else {}
    try:
        factors = splu(A, permc_spec="MMD_AT_PLUS_A", **options)
    except RuntimeError:
        raise InputError("the matrix to be inverted is singular: change shift") from None

    def rows(i):
        X = np.zeros((A.shape[0], len(i)))
        X[i, np.arange(len(i))] = 1
        for _ in range(power):
            X = factors.solve(X)
        return X.T

    return _by_rows(A.shape[0], rows, dtype)


def _radial(n, seed, dimension, function, ridge, dtype):
    """function(‖x_i − x_j‖²) + ridge δ_ij; differences are squared, not expanded, so that nothing cancels."""
    _require(dimension >= 1 and ridge >= 0, f"dimension must be at least 1 and ridge at least 0, not {dimension} and {ridge}")
    x = np.random.default_rng(seed).standard_normal((n, dimension))

    def rows(i):
        d2 = np.zeros((len(i), n))
        for axis in range(dimension):
            d2 += np.square(x[i, axis][:, None] - x[:, axis])
        K = function(d2)
        K[np.arange(len(i)), i] += ridge
        return K

    return _by_rows(n, rows, dtype)


def _orthonormal(n, rank, seed):
    """Random [n, rank] with orthonormal columns."""
    _require(1 <= rank <= n, f"rank must lie between 1 and n = {n}, not {rank}")
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, rank)))[0]


def _log_uniform(rng, count, contrast):
    _require(contrast >= 1, f"contrast must be at least 1, not {contrast}")
    return contrast ** rng.random(count)


def _by_rows(n, rows, dtype):
    """K from `rows(i)`, the rows i (int array) in float64: what is above the diagonal is overwritten by what is below."""
    K = np.empty((n, n), dtype)
    for a in range(0, n, _ROWS):
        K[a : a + _ROWS] = rows(np.arange(a, min(n, a + _ROWS)))
    for a in range(0, n, _ROWS):
        block = slice(a, min(n, a + _ROWS))
        for b in range(0, a, _ROWS):
            K[b : b + _ROWS, block] = K[block, b : b + _ROWS].T
        square = K[block, block]
        upper = np.triu_indices(len(square), 1)
        square[upper] = square.T[upper]
    return K


def build_parser():
    """Arguments of the driver."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", metavar="NAME", help="which matrix (--list)")
    parser.add_argument("--list", action="store_true", help="the matrices and their parameters")
    parser.add_argument("--n", type=int, metavar="N", help="order of the matrix")
    parser.add_argument("--seed", type=int, default=0, help="of random points and coefficients")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="change a parameter of the matrix")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the file")
    parser.add_argument("--output", metavar="K", help="K.npy, K.h5:/K, or any other name: raw little-endian float32")
    return parser


def main(session, args):
    """Make a matrix and write it, on rank 0. Collective."""
    if args.list:
        for name, (function, given) in MATRICES.items():
            shown = ", ".join(f"{key} = {value:.4g}" for key, value in {**_parameters(function), **given}.items())
            session.output(f"{name:<15}{function.__name__}({shown})")
        return DONE
    for option, value in (("NAME", args.name), ("--n", args.n), ("--output", args.output)):
        _require(value is not None, f"{option} is missing (see --help, --list)")
    on_root(session.comm, _write, args)
    session.output(f"{args.output}: {args.name}, N = {args.n}, {args.dtype}")
    return DONE


def _write(args):
    check_dense_output(args.output, args.dtype)
    write_dense(args.output, make(args.name, args.n, args.seed, np.dtype(args.dtype), **dict(map(_parameter, args.set))))


def _parameter(text):
    """(key, value) of "key=value", the value an integer or a number."""
    key, equals, value = text.partition("=")
    try:
        return key.strip(), int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    except ValueError:
        raise InputError(f"--set {text}: write it as key=number") from None


if __name__ == "__main__":
    run_driver("gallery", build_parser, main)
