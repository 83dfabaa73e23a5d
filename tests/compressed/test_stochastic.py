"""Stochastic Lanczos quadrature against dense eigenvalues: values, bounds, intervals that hold, on any number of ranks."""

import numpy as np
import pytest

from hpcHess.compressed import stochastic
from hpcHess.compressed.stochastic import eigenvalue_measure, logdet, trace_of_function
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError

N = 90


class Whole:
    """A dense matrix with what the estimates ask for."""

    def __init__(self, comm, A, dtype=np.float64):
        self.comm, self.A, self.n_params, self.dtype, self.shape = comm, A, len(A), np.dtype(dtype), A.shape
        self.parameter_starts = row_starts(len(A), comm.size)
        self.mine = slice(*(int(at) for at in self.parameter_starts[comm.rank : comm.rank + 2]))
        self.products = 0

    def matmat_rows(self, V):
        self.products += 1
        return (self.A[self.mine].astype(self.dtype) @ np.concatenate(self.comm.allgather(V)).astype(self.dtype)).astype(np.float64)


def symmetric(spectrum, seed=0, n=N):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (Q * np.pad(spectrum, (0, n - len(spectrum)))) @ Q.T


SPECTRA = {
    "decaying": 10.0 ** -np.linspace(0, 6, N),
    "low rank": np.linspace(1, 3, 12),
    "clusters": np.repeat([5.0, 1.0, 1e-3], N // 3),
    "flat": np.linspace(1, 2, N),
}


def exact(A, damping):
    return np.linalg.slogdet(A + damping * np.eye(len(A)))[1]


@pytest.mark.parametrize("name", SPECTRA)
def test_exact_where_nothing_is_random(comm, name):
    """Diagonal matrices: random signs make the trace exact, as long as the Krylov space is exhausted; no step too many is taken."""
    A = np.diag(np.pad(SPECTRA[name], (0, N - len(SPECTRA[name]))))
    matrix = Whole(comm, A)
    sign, value = found = logdet(matrix, 1e-2, probes=4, steps=N)
    assert sign == 1 and value == pytest.approx(exact(A, 1e-2), rel=1e-9) and found.high - found.low <= 1e-6 * abs(value)
    distinct = len(np.unique(np.diag(A)))
    assert matrix.products <= distinct + 1
    found = trace_of_function(matrix, lambda t: t / (t + 0.1), probes=2, steps=N)
    assert found == pytest.approx((np.diag(A) / (np.diag(A) + 0.1)).sum(), rel=1e-9) and found.smallest >= -1e-14


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("relative", [1e-1, 1e-3])
def test_intervals_hold(comm, name, relative):
    """The 95 % interval holds the truth for at least 90 % of 40 seeds, with few steps, and is no wider than it must be."""
    A = symmetric(SPECTRA[name])
    damping = relative * SPECTRA[name].max()
    matrix, truth = Whole(comm, A), exact(A, damping)
    found = [logdet(matrix, damping, probes=8, steps=12, seed=seed) for seed in range(40)]
    assert sum(each.low <= truth <= each.high for each in found) >= 36
    assert np.std([each[1] for each in found]) <= np.mean([each.high - each.low for each in found])
    assert np.mean([each[1] for each in found]) == pytest.approx(truth, abs=np.mean([each.high - each.low for each in found]) / 2)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [2, 3, 6, 12])
@pytest.mark.parametrize("damping", [1.0, 1e-2, 1e-5])
def test_bounds(comm, name, steps, damping):
    """Gauss is above, Gauss–Radau below zᵀ log(I + H/λ) z for semidefinite H, however few the steps; they meet as steps grow."""
    A = symmetric(SPECTRA[name])
    w, V = np.linalg.eigh(A)
    matrix, f = Whole(comm, A), lambda t: np.log(np.abs(1 + t / damping))
    Z = stochastic._signs(0, slice(0, N), range(4))
    truths = np.einsum("ij,i->j", (V.T @ Z) ** 2, f(np.maximum(w, 0))) / N
    pairs = stochastic._lanczos(matrix, Z[matrix.mine], steps)
    for truth, (alpha, beta) in zip(truths, pairs):
        above, below = stochastic._rules(alpha, beta, f, 0.0)
        assert below - 1e-9 * abs(truth) <= truth <= above + 1e-9 * abs(truth)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_semidefinite_with_rounding(comm, dtype):
    """Zero eigenvalues that rounding makes negative do not make the matrix indefinite."""
    A = symmetric(SPECTRA["low rank"])
    found = logdet(Whole(comm, A, dtype), 1e-2, probes=8, steps=40)
    assert found[0] == 1 and found.low <= exact(A, 1e-2) <= found.high and np.isfinite(found.high)


@pytest.mark.parametrize("relative", [1e-8, 1e-12])
def test_tiny_damping(comm, relative):
    """Finite, and the interval holds the truth, also where zero eigenvalues are only rounding away from −λ."""
    for name in ("low rank", "flat"):
        A = symmetric(SPECTRA[name])
        truth = (N - len(SPECTRA[name])) * np.log(relative) + np.log(SPECTRA[name] + relative).sum()
        found = [logdet(Whole(comm, A), relative, probes=16, steps=60, seed=seed) for seed in range(5)]
        assert sum(each.low <= truth <= each.high for each in found) >= 4


def test_indefinite(comm):
    """The sign is not known, log|det| is estimated with an interval that holds."""
    A = symmetric(np.concatenate([np.linspace(1, 5, 60), -np.linspace(1, 3, 30)]))
    truth = exact(A, 0.5)
    found = [logdet(Whole(comm, A), 0.5, probes=16, steps=40, seed=seed) for seed in range(20)]
    assert all(np.isnan(each[0]) for each in found) and sum(each.low <= truth <= each.high for each in found) >= 18


def test_nothing(comm):
    matrix = Whole(comm, np.zeros((N, N)))
    found = logdet(matrix, 0.5)
    assert found == (1.0, pytest.approx(N * np.log(0.5))) and found.low == found.high and matrix.products == 1
    tiny = logdet(Whole(comm, np.diag([1.0, 2.0])), 0.5)
    assert tiny[1] == pytest.approx(np.log(1.5 * 2.5)) and tiny.high - tiny.low < 1e-12


def test_groups_of_probes_change_nothing(comm, monkeypatch):
    matrix = Whole(comm, symmetric(SPECTRA["decaying"]))
    together = logdet(matrix, 1e-2, probes=6, steps=10)
    monkeypatch.setattr(stochastic, "_COLUMNS_BYTES", 1)
    apart = logdet(matrix, 1e-2, probes=6, steps=10)
    np.testing.assert_allclose((together[1], together.low, together.high), (apart[1], apart.low, apart.high), rtol=1e-10)


def test_the_same_on_any_number_of_ranks(comm):
    from mpi4py import MPI

    A = symmetric(SPECTRA["decaying"])
    one, all_of_them = (logdet(Whole(each, A), 1e-2, probes=4, steps=20) for each in (MPI.COMM_SELF, comm))
    np.testing.assert_allclose((one[1], one.low, one.high), (all_of_them[1], all_of_them.low, all_of_them.high), rtol=1e-9)


def test_measure(comm):
    """Σ weight f(θ) ≈ tr f, without reorthogonalization."""
    A = symmetric(SPECTRA["decaying"])
    matrix = Whole(comm, A)
    theta, weight = eigenvalue_measure(matrix, matrix.mine, 32, 40)
    assert weight.sum() == pytest.approx(N) and (weight * theta).sum() == pytest.approx(np.trace(A), rel=0.1)
    assert (weight * theta**2).sum() == pytest.approx(np.square(A).sum(), rel=0.3)


def test_bad_input(comm):
    matrix = Whole(comm, np.eye(4))
    for damping, message in ((0.0, "damping > 0"), (-1.0, "≥ 0"), (np.nan, "≥ 0")):
        with pytest.raises(InputError, match=message):
            logdet(matrix, damping)
    for keywords in ({"probes": 1}, {"steps": 1}):
        with pytest.raises(InputError, match="at least 2 probes and 2 steps"):
            logdet(matrix, 1.0, **keywords)
