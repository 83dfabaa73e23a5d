"""Batches of exact entries by both backends against dense matrices by automatic differentiation."""

import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

torch = pytest.importorskip("torch", reason="the oracle is PyTorch's automatic differentiation")

import hpcHess.backend as hb  # noqa: E402
from hpcHess.curvature import kernel  # noqa: E402
from hpcHess.curvature.fisher import EmpiricalFisher  # noqa: E402
from hpcHess.curvature.gauss_newton import GaussNewton  # noqa: E402
from hpcHess.networks.network import Network  # noqa: E402
from tests.curvature.networks import CASES, WEIGHTS, make  # noqa: E402
from tests.reference import autograd  # noqa: E402


def batches(n_params, seed=0):
    """(I, starts_I, J, starts_J): pairs alike and not, single ones, all, none, any order, repeated, cut out of larger arrays."""
    rng = np.random.default_rng(seed)
    every, some = np.arange(n_params), rng.permutation(n_params)
    sets = [(every, every), (some, every), (some[:9], some[:9]), (some[:9], some[8:0:-1]), (some[:1], some[-1:]), (some[:0], some[:4])]
    sets += [(some[3:], some[:0]), (np.repeat(some[:3], 3), np.repeat(some[:3], 3)), (some[:6], some[6:8]), (every[-3:], every[-3:])]
    cut = lambda at: (np.concatenate([[0], *(each[at] for each in sets)]), np.cumsum([1] + [len(each[at]) for each in sets]))  # noqa: E731
    return *cut(0), *cut(1)


def check(found, H, batch, tolerance):
    I, starts_I, J, starts_J = batch
    for b in range(len(starts_I) - 1):
        rows, columns = I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]]
        assert found[b].shape == (len(rows), len(columns))
        assert np.abs(found[b] - H[np.ix_(rows, columns)]).max(initial=0) <= tolerance * np.abs(H).max()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_batches(comm, monkeypatch, name, backend, stored):
    """Every loss, with weights and without, κ stored or not, in double and single precision."""
    if not stored:
        monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    network, x, y = make(name)
    batch = batches(network.n_params)
    oracles = (GaussNewton, None, autograd.gauss_newton(network, x)), (GaussNewton, WEIGHTS, autograd.gauss_newton(network, x, WEIGHTS))
    for made, weights, H in (*oracles, (EmpiricalFisher, None, autograd.outer_products(network, x, y))):
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
            operator = made(network, x, y, weights=weights, comm=comm, dtype=dtype, backend=backend)
            found = operator.entries_batch(*batch)
            assert found.dtype == dtype
            check(found, H, batch, tolerance)
            operator.close()


def wide(widths, loss, n, backend, comm, dtype=np.float64):
    rng = np.random.default_rng(0)
    network = Network([rng.standard_normal(s) / np.sqrt(s[1]) for s in zip(widths[1:], widths[:-1], strict=True)], None, "tanh", loss)
    return GaussNewton(network, rng.standard_normal((n, widths[0])), comm=comm, dtype=dtype, backend=backend)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 3e-6)])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_backends_agree_on_large_blocks(comm, monkeypatch, loss, stored, dtype, tolerance):
    """Groups of all sizes, several tiles a block, several pieces of the samples; symmetric blocks to the last bit."""
    if not stored:
        monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    found = []
    rng = np.random.default_rng(1)
    for backend in ("numpy", "native"):
        operator = wide([50, 9, 7, 6], loss, 1203, backend, comm, dtype)
        sets = [np.arange(330), rng.permutation(operator.n_params)[:300], np.arange(7) * 50 + 3, np.arange(60, 81), operator.alive[-40:]]
        rng = np.random.default_rng(1)
        I, starts = np.concatenate(sets), np.cumsum([0, *map(len, sets)])
        J, starts_J = np.concatenate(sets[::-1]), np.cumsum([0, *map(len, sets[::-1])])
        found.append((operator.entries_batch(I, starts, I, starts), operator.entries_batch(I, starts, J, starts_J)))
        operator.close()
    for one, other in zip(*found, strict=True):
        assert np.abs(one.data - other.data).max() <= tolerance * np.abs(one.data).max()
    assert all(np.array_equal(block, block.T) for block in found[1][0])


@pytest.mark.parametrize("stored", [True, False])
def test_threads_do_not_change_a_bit(monkeypatch, stored):
    """With one OpenMP thread and with two or three, in one process."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if not stored:
        monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    operator, found = wide([60, 9, 7, 6], "cross-entropy", 700, "native", MPI.COMM_SELF, np.float32), []
    for threads in (1, 2, 3):
        with threadpoolctl.threadpool_limits(threads, "openmp"):
            found.append(operator.entries(operator.alive, operator.alive))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_temporaries_do_not_grow_with_entries_times_samples(backend):
    """300 × 300 entries of 3000 samples would be 2 GB; rows gathered for all samples 14 MB."""
    operator = wide([50, 9, 7, 6], "cross-entropy", 3000, backend, MPI.COMM_SELF)
    some = operator.alive[:300]
    tracemalloc.start()
    operator.entries(some, some)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used <= 12 << 20


def test_native_results_of_another_type_or_layout_are_not_lost():
    """Sums of float64 factors are float64's whatever H is stored in; an H that would be written by way of a copy is refused."""
    pytest.importorskip("hpcHess._native")
    operator = wide([20, 5, 4], "cross-entropy", 50, "native", MPI.COMM_SELF)
    entries, some = operator._entries, operator.alive[:30]
    sides, expected = entries._sides(*entries.locate(some), np.array([0, 30])), operator.entries(some, some)
    H = hb.Blocks.shaped(lambda size: np.zeros(size, np.float32), [30], [30])
    entries.backend.gram_entries(entries._factors, sides, sides, 1 / 50, H)
    np.testing.assert_array_equal(H[0], expected.astype(np.float32))
    H.data = np.zeros(1800)[::2]
    with pytest.raises(TypeError):
        entries.backend.gram_entries(entries._factors, sides, sides, 1 / 50, H)
    assert not H.data.any()
