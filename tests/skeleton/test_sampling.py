"""Sketch, rows and products against dense matrices: approximation against rtol, implementation against machine precision."""

from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess import backend as backends
from hpcHess.hierarchical.compress import compress
from hpcHess.hierarchical.search import Search
from hpcHess.parallel import memory
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import HpcHessWarning, InputError
from hpcHess.skeleton.products import ProductSamples
from hpcHess.skeleton.rows import RowSamples
from hpcHess.skeleton.skeletonize import Saturation, Skeletonizer
from hpcHess.skeleton.sketch import PRODUCT_BYTES, Sketch, SketchSamples
from tests.backend.device_arrays import DeviceBackend
from tests.skeleton.matrices import MATRICES, OPERATORS, N, BlackBox, WithDiagonal, exactly_hss, matrix_named, relative

SAMPLINGS = list(OPERATORS)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-7])
def test_error_is_within_rtol(comm, sampling, name, rtol):
    A = matrix_named(name)
    H = compress(OPERATORS[sampling](A, comm), rtol=rtol, leaf_size=24, sampling=sampling)
    error, found = relative(H, A), H.report["error_estimate"]
    assert error <= rtol and H.report["rtol_met"] and found["high"] <= rtol
    assert 0.8 * found["low"] - 1e-12 <= error <= 1.25 * found["high"] + 1e-12
    assert H.report["sampling"] == sampling


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_exactly_hss_matrices_come_out_to_machine_precision(comm, sampling, depth):
    A = exactly_hss(321, 6, depth)
    H = compress(OPERATORS[sampling](A, comm), rtol=1e-9, leaf_size=-(-321 >> depth), sampling=sampling, dtype="float64")
    assert H.tree.depth == depth
    assert relative(H, A) <= 1e-12
    if depth:
        assert H.levels[depth].ranks.max() <= 6
    D = H @ np.eye(321)
    assert np.abs(D - D.T).max() <= 1e-14 * np.abs(D).max()


@pytest.mark.parametrize("sampling", [name for name in SAMPLINGS if name != "sketch"])
def test_low_error_costs_about_what_the_sketch_costs(comm, sampling):
    A = matrix_named("kernel")
    stored = [compress(OPERATORS[s](A, comm), rtol=1e-2, leaf_size=24, sampling=s).report["storage_entries"] for s in ("sketch", sampling)]
    assert stored[1] <= 1.25 * stored[0]


@pytest.mark.parametrize("sampling", ["rows", "products"])
def test_full_rank_is_told(comm, sampling):
    """A random symmetric matrix has no low-rank blocks: the tolerance is met without compression, or said to be missed."""
    A = np.random.default_rng(5).standard_normal((200, 200))
    A += A.T
    H = compress(OPERATORS[sampling](A, comm), rtol=1e-3, leaf_size=20, sampling=sampling)
    assert H.report["rtol_met"] == (relative(H, A) <= 1e-3)
    assert H.report["rtol_met"] and H.report["warnings"][0].startswith("no compression")
    H = compress(OPERATORS[sampling](A, comm), rtol=1e-3, leaf_size=20, max_rank=7, sampling=sampling)
    error = H.report["error_estimate"]
    assert not H.report["rtol_met"] and error["low"] * 0.9 <= relative(H, A) <= error["high"] * 1.1
    assert H.levels[-1].ranks.max() == 7 and any("saturation" in line and "max_rank = 7" in line for line in H.report["warnings"])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_number_of_ranks_gives_the_same_twice(comm, sampling):
    A = matrix_named("kernel")
    make = lambda group: compress(  # noqa: E731
        OPERATORS[sampling](A, group), rtol=1e-5, leaf_size=24, sampling=sampling, dtype="float64", seed=3
    )
    many, again, one = make(comm), make(comm), make(MPI.COMM_SELF)
    for H in (again, one):
        assert all(np.array_equal(a.ranks, b.ranks) for a, b in zip(many.levels[1:], H.levels[1:]))
    assert np.array_equal(many @ np.eye(len(A)), again @ np.eye(len(A)))
    assert np.abs(many @ np.eye(len(A)) - one @ np.eye(len(A))).max() <= 1e-12 * np.abs(A).max()


def test_what_is_used(comm):
    """Products: nothing but `partial_matmat`. Rows: products for the probes and certificates only."""
    A = matrix_named("kernel")
    H = compress(BlackBox(A, comm), rtol=1e-2, leaf_size=24, sampling="products")
    assert H.report["exact_products"] >= H.report["sketch_columns"] + 64 and H.report["sketch_columns"] >= 24 + 10
    H = compress(WithDiagonal(A, comm), rtol=1e-2, leaf_size=24, sampling="rows")
    assert H.report["sketch_columns"] == 0 and H.report["exact_products"] % 32 == 0 and H.report["exact_products"] <= 160
    with pytest.raises(InputError, match="entries"):
        compress(BlackBox(A, comm), sampling="rows")
    with pytest.raises(InputError, match="hss"):
        compress(BlackBox(A, comm), sampling="products", format="fmm")


def test_black_boxes_with_zero_rows_and_solves(comm, shared_tmp):
    """An ordinary HSS matrix: files and Woodbury solves work; rows that are zero stay zero."""
    from hpcHess.formats.file import load

    A = matrix_named("kernel")
    A[::9], A[:, ::9] = 0, 0
    H = compress(BlackBox(A, comm), rtol=1e-7, leaf_size=24, sampling="products")
    H.save(shared_tmp / "products.h5")
    again, b = load(shared_tmp / "products.h5", comm), np.random.default_rng(0).standard_normal((len(A), 2))
    expected = np.linalg.solve(A + 0.1 * np.eye(len(A)), b)
    for each in (H, again):
        assert np.linalg.norm(each.solve(b, damping=0.1) - expected) <= 1e-7 * np.linalg.norm(A) / 0.1 * np.linalg.norm(expected)
    assert np.abs((H @ np.eye(len(A)))[::9]).max() <= 1e-12 * np.abs(A).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_that_ends(comm, monkeypatch, dtype):
    """Where no further products can be held the ranks stop at what these support, and the report says so."""
    monkeypatch.setattr(Sketch, "affordable", lambda self: 0)
    A = matrix_named("kernel")
    with pytest.warns(HpcHessWarning) if comm.rank == 0 else pytest.MonkeyPatch.context():
        H = compress(BlackBox(A, comm, dtype), rtol=1e-6, leaf_size=24, sampling="products")
    assert not H.report["rtol_met"] and any("memory" in line and f"{H.report['sketch_columns']} products" in line for line in H.report["warnings"])
    assert H.report["error_estimate"]["low"] * 0.8 <= relative(H, A) <= H.report["error_estimate"]["high"] * 1.25


@pytest.mark.parametrize("sampling", ["sketch", "rows"])
@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
def test_near_lists(comm, sampling, rtol):
    A = matrix_named("kernel")
    H = compress(WithDiagonal(A, comm), rtol=rtol, leaf_size=24, sampling=sampling, distance="angle", format="fmm", budget=0.2)
    assert len(H.near.pairs) > 1 << H.tree.depth
    assert H.report["rtol_met"] and relative(H, A) <= rtol
    assert H.preconditioner.report["error_spectral"] <= 0.2 * H.report["lambda_max"]


@pytest.mark.parametrize("sampling", ["rows", "products"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_fewer_parameters_than_ranks(comm, sampling, n):
    A = matrix_named("kernel")[:n, :n]
    H = compress(OPERATORS[sampling](A, comm), rtol=1e-6, leaf_size=2, sampling=sampling)
    assert relative(H, A) <= 1e-6


@pytest.mark.parametrize("sampling", ["rows", "products"])
def test_arrays_of_a_device(comm, sampling, monkeypatch):
    """Arrays that refuse implicit conversion, as a GPU's do, give NumPy's numbers."""
    A = matrix_named("kernel")[:120, :120]
    make = lambda: compress(OPERATORS[sampling](A, comm), rtol=1e-5, leaf_size=12, sampling=sampling, dtype="float64", backend="numpy")  # noqa: E731
    host = make()
    monkeypatch.setattr(backends, "get", lambda name="auto": DeviceBackend())
    device = make()
    assert device.near.blocks.data.__class__.__name__ == "DeviceArray"
    assert np.abs(device @ np.eye(120) - host @ np.eye(120)).max() <= 1e-12 * np.abs(A).max()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_entries_near_the_largest_float32(comm, sampling):
    """Weighted rows of it overflow float32, the matrix and its products do not."""
    A = np.eye(256) * 1e36
    A[5, 250] = A[250, 5] = 3e37
    H = compress(OPERATORS[sampling](A, comm, np.float32), rtol=1e-2, leaf_size=8, sampling=sampling, dtype="float32")
    assert H.report["rtol_met"] and relative(H, A) <= 1e-2


class WrongEntry(WithDiagonal):
    """Entries that are not finite, on one rank alone."""

    def entries_batch(self, I, starts_I, J, starts_J):
        blocks = super().entries_batch(I, starts_I, J, starts_J)
        if self.comm.rank == self.comm.size - 1 and len(blocks.data) and len(I) != len(J):
            blocks.data[:] = np.nan
        return blocks


class WrongProduct(BlackBox):
    """Products that are not finite after the first, on one rank alone."""

    def __init__(self, A, comm):
        super().__init__(A, comm)
        right, made = self.partial_matmat, []

        def partial_matmat(V):
            made.append(1)
            return right(V) + (np.inf if len(made) > 1 and comm.rank == comm.size - 1 else 0)

        self.partial_matmat = partial_matmat


@pytest.mark.parametrize("operator, sampling", [(WrongEntry, "rows"), (WrongProduct, "products")])
def test_samples_that_are_not_finite_on_one_rank_are_refused_on_all(comm, operator, sampling):
    with pytest.raises(InputError, match="not finite.*float64"):
        compress(operator(matrix_named("kernel"), comm), rtol=1e-2, leaf_size=24, sampling=sampling)


def test_memory_that_ends_for_rows(comm, monkeypatch):
    """Fewer rows than the ranks need: these are cut, and the report says so."""
    A = matrix_named("kernel")
    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 17)
    H = compress(WithDiagonal(A, comm), rtol=1e-6, leaf_size=24, sampling="rows")
    assert not H.report["rtol_met"] and any("memory allows (rows of the far fields)" in line for line in H.report["warnings"])
    assert H.report["error_estimate"]["low"] * 0.8 <= relative(H, A) <= H.report["error_estimate"]["high"] * 1.25


def test_passes_that_only_deepen_the_samples_are_attempts(comm, monkeypatch):
    passes, run = [], Skeletonizer.run
    monkeypatch.setattr(Skeletonizer, "run", lambda *arguments: (passes.append(1), run(*arguments))[1])
    deepened, deepen = [], RowSamples.deepen
    monkeypatch.setattr(RowSamples, "deepen", lambda samples: (deepened.append(deepen(samples)), deepened[-1])[1])
    monkeypatch.setattr(Search, "_tails_mislead", lambda search, high: True)
    H = compress(WithDiagonal(matrix_named("kernel"), comm), rtol=1e-2, leaf_size=24, sampling="rows")
    assert deepened.count(True) == 3 and H.report["attempts"] == len(passes) > 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_of_a_further_column(comm, dtype, monkeypatch):
    """Of a sketch two and a half numbers a row; products are kept in their own precision and, six times, in float64."""
    operator, share = BlackBox(matrix_named("kernel"), comm, dtype), 1 << 22
    sketch = Sketch(operator, np.arange(N), row_starts(N, comm.size), 0)
    monkeypatch.setattr(memory, "fair_share", lambda _: share + (3 * PRODUCT_BYTES) * 5 // 4)
    most = lambda row_bytes: 0.8 * share / (row_bytes * -(-N // comm.size))  # noqa: E731
    SketchSamples(sketch)
    assert 0.9 * most(2.5 * operator.dtype.itemsize) < sketch.affordable() <= 1.01 * most(2.5 * operator.dtype.itemsize)
    ProductSamples(sketch)
    assert 0.9 * most(48 + 4 * (dtype == np.float32)) < sketch.affordable() <= 1.01 * most(48 + 4 * (dtype == np.float32))


def test_a_remainder_that_is_unknown_is_not_zero(comm, monkeypatch):
    """As many ranks as samples say nothing of what remains."""
    samples, found = SimpleNamespace(), SimpleNamespace(saturated=np.array([False, True]), residual=np.array([0.5, np.inf]))
    saturation, made = Saturation(), Skeletonizer(SimpleNamespace(comm=comm), None, None, None, samples, None, np.float64)
    made._report(saturation, SimpleNamespace(level=3), found)
    assert saturation.nodes == comm.size and saturation.levels == [3] and saturation.worst == np.inf
    run = Skeletonizer.run
    monkeypatch.setattr(Skeletonizer, "run", lambda *arguments: (run(*arguments)[0], saturation))
    H = compress(WithDiagonal(matrix_named("kernel")[:60, :60], comm), rtol=1e-2, leaf_size=24)
    assert "remainder unknown" in H.report["warnings"][0]
