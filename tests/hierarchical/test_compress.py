"""Compression, products and error estimates against dense matrices in float64: approximation errors against rtol."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.hierarchical.compress import compress
from hpcHess.compressed.certificate import frobenius_interval
from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.hierarchical.norms import norm_frobenius
from hpcHess.parallel import memory
from hpcHess.runtime.errors import InputError
from tests.reference.dense_operator import DenseOperator, dense, exponential_kernel, gaussian_kernel

N = 500


def dead_rows(K):
    K[::17], K[:, ::17] = 0, 0
    return K


MATRICES = {
    "exponential": lambda: dead_rows(exponential_kernel(N)),
    "gaussian": lambda: gaussian_kernel(N, 0.3),
    "gaussian narrow": lambda: gaussian_kernel(N, 0.03),
    "low rank": lambda: np.random.default_rng(1).standard_normal((N, 7)) @ np.diag(10.0 ** -np.arange(7)) @ np.ones((7, N)) / N,
    "identity": lambda: np.eye(N),
    "indefinite": lambda: np.random.default_rng(2).choice([-1, 1], N)[:, None] * exponential_kernel(N) - 3 * np.eye(N),
}


def matrix_named(name):
    H = MATRICES[name]()
    return (H + H.T) / 2


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4, 1e-6, 1e-8])
def test_error_is_within_rtol(comm, name, rtol):
    A = matrix_named(name)
    H = compress(DenseOperator(A, comm), rtol=rtol, leaf_size=40, distance="random" if name == "identity" else "parameter")
    error = np.linalg.norm(dense(H) - A) / np.linalg.norm(A)
    assert error <= rtol
    assert H.report["rtol_met"] and H.report["error_estimate"]["high"] <= rtol
    assert H.report["error_estimate"]["low"] * 0.8 <= error <= H.report["error_estimate"]["high"] * 1.25 + 1e-15
    assert H.dtype == (np.float64 if rtol < 1e-5 else np.float32)


@pytest.mark.parametrize("distance", ["angle", "kernel", "random"])
@pytest.mark.parametrize("leaf_size", [2, 33, 1000])
def test_trees_and_leaves(comm, distance, leaf_size):
    A = matrix_named("exponential")
    H = compress(DenseOperator(A, comm), rtol=1e-3, leaf_size=leaf_size, distance=distance)
    assert np.linalg.norm(dense(H) - A) <= 1e-3 * np.linalg.norm(A)


def test_geometry_pays(comm):
    """A tree that sees the geometry stores less than one that does not."""
    A = exponential_kernel(800)
    stored = [compress(DenseOperator(A, comm), rtol=1e-3, leaf_size=50, distance=d).report["storage_entries"] for d in ("angle", "random")]
    assert stored[0] < 0.7 * stored[1]


def test_product_is_that_of_the_level_arrays(comm):
    """Implementation error: H̃ is symmetric to rounding, columns do not depend on how many come at once, exact zeros stay."""
    A = matrix_named("exponential")
    H = compress(DenseOperator(A, comm), rtol=1e-2, leaf_size=40, dtype="float64")
    D = dense(H)
    assert np.abs(D - D.T).max() <= 1e-14 * np.abs(D).max()
    assert np.all(D[::17] == 0) and np.all(D[:, ::17] == 0)
    V = np.random.default_rng(0).standard_normal((N, 5))
    assert np.allclose(H @ V, D @ V, rtol=0, atol=1e-12 * np.linalg.norm(D))
    assert np.allclose(H @ V[:, 0], D @ V[:, 0], rtol=0, atol=1e-12 * np.linalg.norm(D))
    assert (H @ V[:, :0]).shape == (N, 0)
    assert np.isclose(norm_frobenius(H), np.linalg.norm(D), rtol=1e-13)
    lo, hi = H.tree_rows(H.parameter_starts)
    assert np.allclose(H.matmat_rows(V[lo:hi]), (D @ V)[lo:hi], rtol=0, atol=1e-12 * np.linalg.norm(D))


def test_products_in_the_wider_precision(comm):
    H = compress(DenseOperator(matrix_named("gaussian"), comm), rtol=1e-3, leaf_size=40)
    V = np.random.default_rng(0).standard_normal((N, 3))
    wide, narrow = H @ V, H @ V.astype(np.float32)
    assert wide.dtype == np.float64 and narrow.dtype == np.float32
    assert 0 < np.abs(wide - narrow).max() < 1e-4 * np.abs(wide).max()


def test_ranks_of_the_communicator_agree(comm):
    """The same matrix, tree and factors on one rank and on many, up to rounding."""
    A = matrix_named("exponential")
    many = compress(DenseOperator(A, comm), rtol=1e-6, leaf_size=30, distance="angle")
    one = compress(DenseOperator(A, MPI.COMM_SELF), rtol=1e-6, leaf_size=30, distance="angle")
    assert np.linalg.norm(dense(many) - dense(one)) <= 2e-6 * np.linalg.norm(A)
    assert np.array_equal(many.tree.permutation, one.tree.permutation)


@pytest.mark.parametrize("distance", ["kernel", "random"])
def test_the_largest_seed(comm, distance):
    H = compress(DenseOperator(matrix_named("gaussian"), comm), rtol=1e-3, leaf_size=40, distance=distance, seed=2**63 - 1)
    assert H.report["rtol_met"]


def test_sub_communicators(comm):
    part = comm.Split(comm.rank % 2, comm.rank)
    A = matrix_named("gaussian") + part.rank * 0 + (comm.rank % 2) * np.eye(N)
    H = compress(DenseOperator(A, part), rtol=1e-4, leaf_size=64)
    assert np.linalg.norm(dense(H) - A) <= 1e-4 * np.linalg.norm(A)
    part.Free()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_parameters_than_ranks(comm, n):
    A = gaussian_kernel(n, 0.5) + np.eye(n)
    H = compress(DenseOperator(A, comm), rtol=1e-6, leaf_size=2)
    assert np.allclose(dense(H), A, rtol=1e-6)
    assert np.allclose(H.solve(np.arange(n) + 1.0, damping=0.5), np.linalg.solve(A + 0.5 * np.eye(n), np.arange(n) + 1.0), rtol=1e-5)


def test_all_parameters_dead(comm):
    H = compress(DenseOperator(np.zeros((6, 6)), comm), rtol=1e-2)
    assert np.all(H @ np.ones(6) == 0)
    assert np.allclose(H.solve(np.ones(6), damping=0.5), 2.0)


def test_rank_saturation_is_loud(comm):
    A = exponential_kernel(N)
    H = compress(DenseOperator(A, comm), rtol=1e-6, leaf_size=40, max_rank=5)
    assert not H.report["rtol_met"] and H.report["error_estimate"]["low"] > 1e-6
    assert max(level["rank_max"] for level in H.report["levels"]) == 5
    assert any("rank saturation" in text and "max_rank = 5" in text for text in H.report["warnings"])
    assert any("not met" in text for text in H.report["warnings"])


def test_memory_bounds_the_sketch(comm, monkeypatch):
    """Where the memory ends the ranks are cut, loudly, and the result is still a matrix."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 20)
    K = exponential_kernel(N, 0.3, dimension=3)
    H = compress(DenseOperator(K, comm), rtol=1e-6, leaf_size=40)
    assert H.report["sketch_columns"] == 56 and not H.report["rtol_met"]
    assert any("memory" in text for text in H.report["warnings"])
    cut = compress(DenseOperator(K, comm), rtol=1e-6, leaf_size=40, max_rank=42)
    assert np.linalg.norm(dense(H) - K) <= 1.3 * np.linalg.norm(dense(cut) - K)


def test_a_cut_rank_keeps_its_oversampling(comm):
    """max_rank around the first sketch's columns (leaf_size + 16): a larger bound does not make the error larger."""
    K = exponential_kernel(N, 0.3, dimension=3)
    errors = [
        np.linalg.norm(dense(compress(DenseOperator(K, comm), rtol=1e-3, leaf_size=40, max_rank=bound)) - K) / np.linalg.norm(K)
        for bound in (30, 46, 55, 56, 57)
    ]
    assert all(b <= 1.05 * a for a, b in zip(errors[:-1], errors[1:]))


def test_single_precision_products_are_not_trusted_beyond_their_digits(comm):
    H = compress(DenseOperator(exponential_kernel(N), comm, np.float32), rtol=1e-9, leaf_size=40)
    assert not H.report["rtol_met"] and any("float64" in text for text in H.report["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0}, "rtol"),
        ({"rtol": -1}, "rtol"),
        ({"rtol": float("nan")}, "rtol"),
        ({"rtol": 1.0}, "rtol"),
        ({"leaf_size": 1}, "leaf_size"),
        ({"max_rank": -1}, "max_rank"),
        ({"probes": 5}, "probes"),
        ({"seed": -1}, "seed"),
        ({"dtype": "half"}, "dtype"),
        ({"distance": "x"}, "distance"),
        ({"backend": "x"}, "backend"),
    ],
)
def test_bad_options(comm, options, message):
    with pytest.raises(InputError, match=message):
        compress(DenseOperator(np.eye(4), comm), **options)


def test_interval_covers(comm):
    """The 95 % interval of ‖E‖_F from 32 probes covers it at least 90 % of the time, for flat and for rank-one spectra."""
    rng = np.random.default_rng(5)
    for spectrum in (np.ones(200), np.array([1.0]), 0.5 ** np.arange(40), np.array([1.0] + [0.05] * 300)):
        hits, widths = 0, []
        for _ in range(400):
            squares = (rng.standard_normal((32, len(spectrum))) ** 2 @ spectrum**2).astype(float)
            value, low, high = frobenius_interval(squares)
            hits += low <= np.linalg.norm(spectrum) <= high
            widths.append(high / low)
        assert hits >= 360, (spectrum[:2], hits)
        assert np.median(widths) < 2.2


def test_storage_counts_what_a_product_needs(comm):
    H = compress(DenseOperator(exponential_kernel(N), comm), rtol=1e-3, leaf_size=40)
    count = sum(m * (m + 1) // 2 for m in H.tree.leaf_sizes)
    for level in H.levels[1:]:
        count += int(np.sum(level.ranks * (level.columns - level.ranks)) + np.sum(level.ranks[::2] * level.ranks[1::2]))
    assert H.report["storage_entries"] == count and H.report["storage_bytes"] == 4 * count
    assert np.isclose(H.report["storage_percent"], 100 * count / N**2)
    assert sum(level["bytes"] for level in H.report["levels"]) == 4 * count


def test_linear_operator(comm):
    H = compress(DenseOperator(exponential_kernel(60), comm), rtol=1e-3, leaf_size=16)
    L = H.aslinearoperator()
    assert L.shape == (60, 60)
    assert np.allclose(L @ np.ones(60), H @ np.ones(60)) and np.allclose(L.H @ np.ones((60, 2)), H @ np.ones((60, 2)))


def test_wrong_shape_is_refused(comm):
    H = compress(DenseOperator(np.eye(8), comm), rtol=1e-3, leaf_size=4)
    with pytest.raises(ValueError, match="does not fit"):
        H @ np.ones(9)


def test_four_passes_on_tree_rows(comm):
    H = compress(DenseOperator(exponential_kernel(64), comm), rtol=1e-8, leaf_size=8)
    rows = slice(*H.tree_rows(H.leaf_rows))
    W = np.random.default_rng(1).standard_normal((64, 2))
    A = exponential_kernel(64)[np.ix_(H.tree.permutation, H.tree.permutation)]
    assert np.allclose(H.backend.to_host(multiply_tree_rows(H, H.backend.asarray(W[rows]))), (A @ W)[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampling", ["sketch", "rows"])
def test_a_matrix_that_underflows_is_refused(comm, sampling):
    """Numbers that float32 rounds to zero are no compression without error."""
    with pytest.raises(InputError, match="too small for float32.*float64"):
        compress(DenseOperator(exponential_kernel(60) * 1e-42, comm, np.float32), rtol=1e-2, leaf_size=16, sampling=sampling)
    with pytest.raises(InputError, match="too small for float32.*float64"):
        compress(DenseOperator(exponential_kernel(60) * 1e-50, comm), rtol=1e-2, leaf_size=16, sampling=sampling)
    H = compress(DenseOperator(exponential_kernel(60) * 1e-50, comm), rtol=1e-2, leaf_size=16, dtype="float64", sampling=sampling)
    assert H.report["rtol_met"] and H.report["norm_frobenius"] > 1e-50
