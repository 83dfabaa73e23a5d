"""The format with near lists (FMM) against dense matrices in float64: approximation errors against rtol, implementation errors apart."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.hierarchical.compress import compress
from hpcHess.formats.file import load
from hpcHess.hierarchical.norms import norm_frobenius
from hpcHess.info import describe, summarize
from hpcHess.storage.factor_file import FactorFile
from hpcHess.tree.interactions import most_near
from tests.reference.dense_operator import DenseOperator, dense, exponential_kernel, gaussian_kernel
from tests.tree.test_neighbours import EntriesOperator

N = 450  # no power of two


def dead_rows(K):
    K[::17], K[:, ::17] = 0, 0
    return K


def gram(n):
    """A global, slowly decaying rank: near lists do not help."""
    J = np.random.default_rng(0).standard_normal((n // 3, n)) * np.exp(-np.arange(n // 3) / 30)[:, None]
    return J.T @ J


MATRICES = {
    "exponential": lambda: dead_rows(exponential_kernel(N)),
    "gaussian": lambda: gaussian_kernel(N, 0.1),
    "gram": lambda: gram(N),
    "indefinite": lambda: np.random.default_rng(2).choice([-1, 1], N)[:, None] * exponential_kernel(N) - 3 * np.eye(N),
}


def matrix_named(name):
    H = MATRICES[name]()
    return (H + H.T) / 2


def fmm(operator, budget, rtol=1e-3, **options):
    options = {"leaf_size": 20, "distance": "angle", "n_neighbors": 12} | options
    return compress(operator, rtol=rtol, format="fmm", budget=budget, **options)


def assembled(H):
    """The sum of all blocks in parameter order, float64, from the level arrays of a matrix on one rank: an own evaluation by
    U = [U_l 0; 0 U_r] Pᵀ (docs/FORMAT.md), and how often every entry was covered."""
    tree, n = H.tree, H.tree.n
    A, count, bases = np.zeros((n, n)), np.zeros((n, n), int), [None] * (tree.depth + 1)
    nodes = [tree.leaf_starts[:: 1 << (tree.depth - level)] for level in range(tree.depth + 1)]
    for number in range(tree.depth, 0, -1):
        level, starts, bases[number] = H.levels[number], nodes[number], []
        for i in range(1 << number):
            c, s = level.columns[i], level.ranks[i]
            order = level.order[level.column_starts[i] : level.column_starts[i + 1]]
            P = np.zeros((s, c))
            P[:, order] = np.hstack([np.eye(s), level.T[i]])
            below = np.eye(c) if number == tree.depth else np.zeros((starts[i + 1] - starts[i], c))
            if number < tree.depth:
                left, right = bases[number + 1][2 * i : 2 * i + 2]
                below[: len(left), : left.shape[1]], below[len(left) :, left.shape[1] :] = left, right
            bases[number].append(below @ P.T)
        for (a, b), B in zip(level.far.pairs, (level.far.blocks[i] for i in range(len(level.far.pairs)))):
            add(A, count, starts, a, b, bases[number][a] @ B @ bases[number][b].T)
    for i, (a, b) in enumerate(H.near.pairs):
        add(A, count, tree.leaf_starts, a, b, H.near.blocks[i])
    whole = np.zeros((H.n_params, H.n_params))
    whole[np.ix_(tree.permutation, tree.permutation)] = A
    return whole, count


def add(A, count, starts, a, b, block):
    rows, columns = slice(starts[a], starts[a + 1]), slice(starts[b], starts[b + 1])
    A[rows, columns] += block
    count[rows, columns] += 1
    if a != b:
        A[columns, rows] += block.T
        count[columns, rows] += 1


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("budget", [0.03, 0.1, 0.5, 1])
@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
def test_error_is_within_rtol(comm, name, budget, rtol):
    A = matrix_named(name)
    H = fmm(DenseOperator(A, comm), budget, rtol)
    error = np.linalg.norm(dense(H) - A) / np.linalg.norm(A)
    assert error <= rtol and H.report["rtol_met"], H.report["warnings"]
    low, high = (H.report["error_estimate"][key] for key in ("low", "high"))
    assert low * 0.8 <= error + 1e-14 and error <= high * 1.25 + 1e-14
    n_leaves, counts = 1 << H.tree.depth, np.bincount(H.near.pairs.ravel()) - 1
    assert H.format == H.report["format"] == ("hss" if most_near(H.tree.depth, budget) == 1 else "fmm")
    assert counts.max() <= n_leaves and (budget < 0.1 or len(H.near.pairs) >= 2 * n_leaves), "longer near lists than the leaf alone"


@pytest.mark.parametrize("budget", [0.1, 1])
def test_product_is_that_of_the_level_arrays(comm, budget):
    """Implementation error: H̃ is the sum of its blocks, every entry of which is in one; exact where near; symmetric; norm exact."""
    A = matrix_named("exponential")
    one = fmm(DenseOperator(A, MPI.COMM_SELF), budget, dtype="float64")
    D, count = assembled(one)
    assert np.all(count == 1)
    scale = np.linalg.norm(A)
    assert np.abs(dense(one) - D).max() <= 1e-14 * scale
    assert np.abs(D - D.T).max() <= 1e-14 * scale
    assert np.isclose(norm_frobenius(one), np.linalg.norm(D), rtol=1e-13)
    leaf = [one.tree.permutation[a:b] for a, b in zip(one.tree.leaf_starts[:-1], one.tree.leaf_starts[1:])]
    assert all(np.array_equal(D[np.ix_(leaf[a], leaf[b])], A[np.ix_(leaf[a], leaf[b])]) for a, b in one.near.pairs)
    assert np.all(D[::17] == 0) and np.all(D[:, ::17] == 0)
    many = fmm(DenseOperator(A, comm), budget, dtype="float64")
    V = np.random.default_rng(0).standard_normal((N, 3))
    assert np.abs(many @ V - dense(many) @ V).max() <= 1e-13 * scale
    assert np.isclose(norm_frobenius(many), np.linalg.norm(dense(many)), rtol=1e-13)


def test_budget_zero_is_hss(comm):
    """To the last bit, the report too."""
    operator = DenseOperator(matrix_named("exponential"), comm)
    H, G = fmm(operator, 0), compress(operator, rtol=1e-3, leaf_size=20, distance="angle", n_neighbors=12)
    assert np.array_equal(dense(H), dense(G))
    assert {**H.report, "timings": 0} == {**G.report, "timings": 0}
    assert H.report["format"] == "hss" and H.report["budget"] == 0


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_single_leaf(comm, n):
    A = gaussian_kernel(n, 0.5) + np.eye(n)
    H = fmm(DenseOperator(A, comm), 1)
    assert H.tree.depth == 0 and np.allclose(dense(H), A, rtol=1e-6)


def test_everything_near(comm):
    """No far field at all: rank 0 everywhere, one attempt, exact."""
    A, n = gram(200), 200
    H = fmm(DenseOperator(A, comm), 1, n_neighbors=n, dtype="float64")
    n_leaves = 1 << H.tree.depth
    assert len(H.near.pairs) == n_leaves * (n_leaves + 1) // 2
    assert all(len(level.far.pairs) == 0 and not level.ranks.any() for level in H.levels[1:])
    assert H.report["attempts"] == 1 and H.report["rtol_met"]
    assert np.abs(dense(H) - A).max() <= 1e-14 * np.linalg.norm(A)
    assert H.report["storage_entries"] == n * (n + 1) // 2


def test_near_blocks_pay_where_coupling_is_local(comm):
    """Pairs of far apart leaves that are strongly coupled, in random order of the parameters: dense blocks there are cheaper than ranks."""
    rng = np.random.default_rng(0)
    n, m = 512, 16
    A = gaussian_kernel(n, 2.0, dimension=3) + 5 * np.eye(n)
    for a, b in rng.permutation(n // m).reshape(-1, 2):
        Q = np.linalg.qr(rng.standard_normal((m, m)))[0]
        A[a * m : (a + 1) * m, b * m : (b + 1) * m] += Q
        A[b * m : (b + 1) * m, a * m : (a + 1) * m] += Q.T
    operator = EntriesOperator(A, comm)
    options = {"leaf_size": m, "distance": "parameter", "n_neighbors": 8}
    hss, near = fmm(operator, 0, **options).report, fmm(operator, 2 / 32, **options).report
    assert near["rtol_met"] and near["storage_entries"] < 0.5 * hss["storage_entries"]


def test_storage_is_counted(comm, shared_tmp):
    """Of the numbers in the file (identities, indices and checksums not)."""
    h5py = pytest.importorskip("h5py")
    H = fmm(DenseOperator(matrix_named("gaussian"), comm), 0.1)
    H.save(shared_tmp / "F.h5")
    counts = {key: sum(row[key] for row in H.report["levels"]) for key in ("near_blocks", "far_blocks", "bytes")}
    assert counts["near_blocks"] == len(H.near.pairs) and counts["far_blocks"] == sum(len(level.far.pairs) for level in H.levels[1:])
    if comm.rank == 0:
        with h5py.File(shared_tmp / "F.h5", "r") as file:
            assert file.attrs["matrix_format"] == "fmm"
            stored = sum(file[name].size for name in ("near/values", "far/values", "nodes/interpolation"))
    else:
        stored = None
    assert H.report["storage_entries"] == comm.bcast(stored) == counts["bytes"] // H.dtype.itemsize


def test_info_shows_the_format(comm, shared_tmp):
    """Its name, what the lists were made with, and near and far blocks of every level."""
    H = fmm(DenseOperator(matrix_named("gaussian"), comm), 0.1)
    H.save(shared_tmp / "F.h5")
    with FactorFile(shared_tmp / "F.h5", comm, verify=False) as file:
        lines = describe(summarize(file, False)).splitlines()
    assert "FMM matrix" in lines[0] and any("12 neighbours, at most 0.1 of the leaves" in line for line in lines)
    header = next(i for i, line in enumerate(lines) if line.split()[-2:] == ["near", "far"])
    shown = [[int(word.replace(",", "")) for word in line.split()[-2:]] for line in lines[header + 1 : header + 2 + H.tree.depth]]
    assert [far for _, far in shown] == [0, *(len(level.far.pairs) for level in H.levels[1:])]
    assert [near for near, _ in shown] == [0] * H.tree.depth + [len(H.near.pairs)]


@pytest.mark.parametrize("budget", [0.1, 1])
def test_round_trip_on_another_number_of_ranks(comm, shared_tmp, budget):
    H, path = fmm(DenseOperator(matrix_named("indefinite"), comm), budget), shared_tmp / "F.h5"
    H.save(path)
    G, alone = load(path, comm), load(path, MPI.COMM_SELF)
    assert G.format == alone.format == "fmm"
    assert np.array_equal(dense(G), dense(H)) and {**G.report, "timings": 0} == {**H.report, "timings": 0}
    assert np.allclose(dense(alone), dense(H), rtol=0, atol=1e-5)
    assert np.allclose(assembled(alone)[0], dense(H), rtol=0, atol=1e-5)


@pytest.mark.parametrize("made", [DenseOperator, EntriesOperator])
def test_any_number_of_ranks_gives_one_matrix_twice_the_same(comm, made):
    A = matrix_named("exponential")
    one, many, again = (fmm(made(A, each), 0.1, 1e-6) for each in (MPI.COMM_SELF, comm, comm))
    assert np.array_equal(dense(many), dense(again))
    assert np.array_equal(one.near.pairs, many.near.pairs) and np.array_equal(one.tree.permutation, many.tree.permutation)
    assert np.linalg.norm(dense(many) - dense(one)) <= 2e-6 * np.linalg.norm(A)


@pytest.mark.parametrize("distance", ["kernel", "parameter", "random"])
def test_every_tree_has_near_lists(comm, distance):
    """The neighbours' distance is the tree's own, or `angle`; leaves of size 7 or 8."""
    A = matrix_named("gaussian")
    H = fmm(EntriesOperator(A, comm), 0.05, distance=distance, leaf_size=8)
    assert H.format == "fmm" and np.linalg.norm(dense(H) - A) <= 1e-3 * np.linalg.norm(A)


def test_a_budget_too_small_for_any_neighbour_is_told(comm):
    """Asked for FMM, got HSS: said so; with budget 0 that is what was asked."""
    operator = DenseOperator(exponential_kernel(200), comm)
    H = fmm(operator, 0.1)
    assert H.format == "hss" and any("budget 0.1 of 16 leaves" in text and "raise budget" in text for text in H.report["warnings"])
    assert fmm(operator, 0).report["warnings"] == [] == fmm(operator, 0.3).report["warnings"]
