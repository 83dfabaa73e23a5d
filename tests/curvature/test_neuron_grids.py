"""Diagonal blocks of the same neurons, evaluated together, against the dense matrix made of products."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature import neuron_grids
from hpcHess.curvature.fisher import EmpiricalFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.networks.network import Network


def _operator(kind, dtype, kernel_bytes):
    rng = np.random.default_rng(0)
    widths = [12, 24, 20, 5]
    network = Network([rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(widths, widths[1:])], [rng.standard_normal(b) for b in widths[1:]], loss="cross-entropy")
    made = type("Made", (kind,), {"_kernel_bytes": kernel_bytes})
    X, y = rng.standard_normal((30, 12)), rng.integers(0, 5, 30)
    return made(network, X, y, comm=MPI.COMM_SELF, dtype=dtype)


def _blocks(rng):
    """Leaves as a tree by neurons has them, in any order: a layer's neurons, some missing, times one to three inputs; others between them."""
    first = lambda p, q: p * 12 + q  # noqa: E731
    second = lambda p, q: 24 * 12 + 24 + p * 24 + q  # noqa: E731
    blocks = [np.array([first(p, q) for p in range(24) if (p + q) % 9]) for q in range(12)]
    blocks += [np.array([second(p, q) for p in range(20) for q in (at, at + 1) if (p * q) % 7 != 3]) for at in range(0, 20, 2)]
    blocks += [np.array([second(p, q) for p in range(20) for q in (20, 21, 22)]), np.arange(24 * 12, 24 * 12 + 24), np.array([5]), np.zeros(0, np.int64), np.arange(280, 380, 9)]
    order = rng.permutation(len(blocks))
    return [rng.permutation(blocks[at]).astype(np.int64) for at in order]


@pytest.mark.parametrize("kind", [GaussNewton, EmpiricalFisher])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limits", [{}, {"_COLUMNS": 4, "_SAMPLES": 7, "_ROWS": 900}])
def test_blocks_of_the_same_neurons(monkeypatch, kind, dtype, limits):
    for name, value in limits.items():
        monkeypatch.setattr(neuron_grids, name, value)
    operator, sets = _operator(kind, dtype, 0), _blocks(np.random.default_rng(1))
    I, starts = np.concatenate(sets), np.cumsum([0, *map(len, sets)])
    sides = operator._entries._sides(*operator._entries.locate(I), starts)
    grids = neuron_grids.Grids(sides, operator.samples.neuron_starts, operator.samples.rank)
    assert len(grids.groups) == 2 and sum(len(blocks) for _, blocks in grids.groups) + len(grids.rest) == len(sets)
    dense = _operator(kind, np.float64, None).matmat(np.eye(operator.n_params))
    found = operator.entries_batch(I, starts, I.copy(), starts)
    for at, indices in enumerate(sets):
        np.testing.assert_allclose(found[at], dense[np.ix_(indices, indices)], rtol=0, atol=(2e-6 if dtype == np.float32 else 1e-14) * np.abs(dense).max())


def test_other_blocks_are_left_to_the_backend():
    """Blocks off the diagonal, and where κ is stored, or shared between the samples."""
    rng = np.random.default_rng(2)
    operator = _operator(GaussNewton, np.float64, 0)
    I = np.concatenate([np.arange(q, 24 * 12, 12) for q in range(4)])
    J, starts = np.roll(I, 24), np.arange(5) * 24
    dense = operator.matmat(np.eye(operator.n_params))
    found = operator.entries_batch(I, starts, J, starts)
    for at in range(4):
        np.testing.assert_allclose(found[at], dense[np.ix_(I[starts[at] : starts[at + 1]], J[starts[at] : starts[at + 1]])], rtol=0, atol=1e-14)
    network = Network([rng.standard_normal((20, 3)), rng.standard_normal((6, 20))], loss="squared-error")
    operator = GaussNewton(network, rng.standard_normal((15, 3)), comm=MPI.COMM_SELF)
    dense, I = operator.matmat(np.eye(operator.n_params)), np.concatenate([np.arange(q, 60, 3) for q in range(3)])
    found = operator.entries_batch(I, np.arange(4) * 20, I, np.arange(4) * 20)
    for at in range(3):
        block = I[20 * at : 20 * at + 20]
        np.testing.assert_allclose(found[at], dense[np.ix_(block, block)], rtol=0, atol=1e-13)
