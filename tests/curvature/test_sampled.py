"""Sampled entries: unbiased, deviations within the bounds, the same for every order and number of ranks; what compressions make of them."""

import warnings

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature import importance
from hpcHess.curvature.fisher import EmpiricalFisher, Fisher, MonteCarloFisher
from hpcHess.curvature.from_job import operator_from_job
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import Quadrature
from hpcHess.curvature.regularized import Regularized
from hpcHess.curvature.sampled import SampledEntries, noise_of
from hpcHess.curvature.submatrix import PrincipalSubmatrix
from hpcHess.formats.compress import compress
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.jobfile import Job
from tests.curvature.networks import CASES, WEIGHTS, make

KINDS = {"gauss-newton": GaussNewton, "opg": EmpiricalFisher}
SEEDS, DRAWS = 80, 3


def of_each_sample(kind, network, x, y, weights=None):
    """Dense H_i, scaled so that their mean is H, [n, N, N]: by the operator's exact products with one sample each."""
    n, every = len(x), np.eye(network.n_params)
    made = (kind(network, x[i : i + 1], y[i : i + 1], comm=MPI.COMM_SELF) for i in range(n))
    scale = np.ones(n) if weights is None else n * weights
    return np.array([s * each.matmat(every) for s, each in zip(scale, made, strict=True)])


def over_seeds(comm, entries):
    """entries(seed) for all seeds, [SEEDS, …]; each rank makes some."""
    parts = comm.allgather([entries(seed) for seed in range(comm.rank, SEEDS, comm.size)])
    found = [None] * SEEDS
    for rank, part in enumerate(parts):
        found[rank :: comm.size] = part
    return np.array(found)


@pytest.fixture(params=[(name, kind) for name in CASES for kind in KINDS], ids=" of ".join, scope="module")
def case(request):
    """(operator, H_i [n, N, N])."""
    (network, x, y), kind = make(request.param[0]), KINDS[request.param[1]]
    return kind(network, x, y, comm=MPI.COMM_SELF), of_each_sample(kind, network, x, y)


def independent(H, I, J, draws=DRAWS):
    """(H_IJ, entrywise variance of the mean of independent draws with P_i ∝ √(tr H_i,II tr H_i,JJ)), the estimator's as defined, [|I|, |J|]."""
    sizes = np.sqrt(np.abs(np.trace(H[:, I[:, None], I], axis1=1, axis2=2) * np.trace(H[:, J[:, None], J], axis1=1, axis2=2)))
    blocks, P = H[:, I[:, None], J] / len(H), sizes / (sizes.sum() or 1.0)
    total = blocks.sum(axis=0)
    used = P > 0
    assert not blocks[~used].any()
    return total, (np.sum(blocks[used] ** 2 / P[used, None, None], axis=0) - total**2) / draws


def checked(found, exact, variance, bound):
    """Means of samples of estimators [m, …] within z-scores of independent draws, deviations below theirs and the bound, not none."""
    scale = np.abs(exact).max()
    off = np.abs(found.mean(axis=0) - exact)
    assert np.all(off <= 5 * np.sqrt(np.maximum(variance, 0) / len(found)) + 1e-12 * scale)
    deviation = np.mean((found - exact) ** 2, axis=0)
    total = np.sqrt(deviation.sum()), np.sqrt(np.maximum(variance, 0).sum())
    assert total[0] <= 1.15 * total[1] + 1e-12 * scale and total[1] <= bound * (1 + 1e-12)
    assert total[0] >= 0.1 * total[1]


def test_blocks(case, comm):
    operator, H = case
    every = np.arange(operator.n_params)
    for I, J in ((every[::2], every[1::3]), (every, every), (every[-3:], every[:5])):
        exact, variance = independent(H, I, J)
        np.testing.assert_allclose(operator.entries(I, J), exact, atol=1e-12 * np.abs(H).max())
        found = over_seeds(comm, lambda seed: SampledEntries(operator, DRAWS, seed=seed).entries(I, J))  # noqa: B023
        mean = H.mean(axis=0)
        checked(found, exact, variance, np.sqrt(np.trace(mean[np.ix_(I, I)]) * np.trace(mean[np.ix_(J, J)]) / DRAWS))


def test_pairs_have_their_own_probabilities(case, comm):
    operator, H = case
    rng, n = np.random.default_rng(0), operator.n_params
    j, k = rng.integers(0, n, (2, 15))
    found = over_seeds(comm, lambda seed: SampledEntries(operator, DRAWS, seed=seed).sampled_pairs(j, k))
    squares, expected = 0.0, 0.0  # of all pairs: a rare sample makes those of one an unsteady measure
    for at in range(len(j)):
        exact, variance = independent(H, j[at : at + 1], k[at : at + 1])
        bound = np.sqrt(H.mean(axis=0)[j[at], j[at]] * H.mean(axis=0)[k[at], k[at]] / DRAWS)
        off = np.abs(found[:, at].mean() - exact[0, 0])
        assert off <= 5 * np.sqrt(max(0, variance[0, 0]) / SEEDS) + 1e-12 * np.abs(H).max()
        assert np.sqrt(variance[0, 0].clip(0)) <= bound * (1 + 1e-9) + 1e-14
        squares, expected = squares + np.mean((found[:, at] - exact) ** 2), expected + variance[0, 0].clip(0)
    assert 0.01 * expected <= squares <= 1.3 * expected
    sampled = SampledEntries(operator, DRAWS, seed=4)
    for at in range(5):
        assert sampled.entries(j[at : at + 1], k[at : at + 1])[0, 0] == sampled.sampled_pairs(j, k)[at] == sampled.sampled_pairs(k, j)[at]
    np.testing.assert_allclose(sampled.sampled_pairs(np.arange(n), np.arange(n)), operator.diagonal(), rtol=1e-12, atol=1e-300)  # P_i ∝ h_i


@pytest.mark.parametrize("columns", [0, 10**9])
def test_every_way_of_evaluation(case, monkeypatch, columns):
    """The same draws, neuron by neuron or by columns, with κ stored or made from the factors."""
    operator, H = case
    every, kernel = np.arange(operator.n_params), operator._entries.kernel
    stored, expected = kernel.stored, SampledEntries(operator, DRAWS, seed=1).entries(every, every[::-2])
    pairs = SampledEntries(operator, DRAWS, seed=1).sampled_pairs(every, every[::-1])
    monkeypatch.setattr(importance, "_COLUMNS", columns)
    for each in (stored, None):
        monkeypatch.setattr(kernel, "stored", each)
        found = SampledEntries(operator, DRAWS, seed=1)
        np.testing.assert_allclose(found.entries(every, every[::-2]), expected, atol=1e-12 * np.abs(H).max())
        monkeypatch.setattr(importance, "_KERNEL", 1)  # sample by sample
        np.testing.assert_allclose(found.entries(every, every[::-2]), expected, atol=1e-12 * np.abs(H).max())
        np.testing.assert_allclose(found.sampled_pairs(every, every[::-1]), pairs, atol=1e-12 * np.abs(H).max())


def test_one_draw_for_the_whole(case, comm):
    """Positive semidefinite, the same whatever is asked, unbiased, (tr H)² / c."""
    operator, H = case
    every = np.arange(operator.n_params)
    found = over_seeds(comm, lambda seed: SampledEntries(operator, DRAWS, seed=seed, global_draw=True).entries(every, every))
    assert min(np.linalg.eigvalsh(each)[0] for each in found) >= -1e-12 * np.trace(H.mean(axis=0))
    exact, variance = independent(H, every, every)
    checked(found, exact, variance, np.trace(exact) / np.sqrt(DRAWS))
    whole = SampledEntries(operator, DRAWS, seed=7, global_draw=True)
    np.testing.assert_allclose(whole.entries(every[::3], every[1:4]), found[7][::3, 1:4], atol=1e-13 * np.abs(found[7]).max())
    np.testing.assert_allclose(whole.matmat(np.eye(len(every))), exact, atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("kind", [GaussNewton, Fisher, MonteCarloFisher, EmpiricalFisher])
def test_weights_layers_and_single_precision(kind, comm):
    network, x, y = make("classes, mixed")
    part = network.restricted([1, 2])
    operator = kind(part, x, y, WEIGHTS, MPI.COMM_SELF)
    single = kind(part, x, y, WEIGHTS, MPI.COMM_SELF, np.float32)
    every = np.arange(part.n_params)
    for draws in (1, 4):
        a, b = (SampledEntries(each, draws, seed=2).entries(every, every[:9]) for each in (operator, single))
        assert b.dtype == np.float32
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())
    if kind is not MonteCarloFisher:
        H = of_each_sample(kind, part, x, y, WEIGHTS)
        exact, variance = independent(H, every, every[:9])
        found = over_seeds(comm, lambda seed: SampledEntries(operator, DRAWS, seed=seed).entries(every, every[:9]))
        checked(found, exact, variance, np.inf)


def test_order_and_company_do_not_matter():
    network, x, y = make("classes, gelu, some biases")
    operator = GaussNewton(network, x, y, comm=MPI.COMM_SELF)
    sampled, rng = SampledEntries(operator, 4, seed=3), np.random.default_rng(1)
    I, J = rng.permutation(operator.n_params)[:12], rng.permutation(operator.n_params)[:15]
    expected, order = sampled.entries(I, J), rng.permutation(12)
    assert np.array_equal(sampled.entries(J, I), expected.T)
    assert np.array_equal(sampled.entries(I[order], J[::-1]), expected[order][:, ::-1])
    assert np.array_equal(sampled.entries(np.append(I, I[:2]), J), np.concatenate([expected, expected[:2]]))
    whole = sampled.entries(I, I)
    assert np.array_equal(whole, whole.T) and np.linalg.eigvalsh(whole)[0] >= -1e-13 * np.trace(whole)
    batch = sampled.entries_batch(np.concatenate([J, I, I]), np.array([0, 15, 27, 39]), np.concatenate([I, J, I]), np.array([0, 12, 27, 39]))
    assert all(np.array_equal(found, each) for found, each in zip((batch[0], batch[1], batch[2]), (expected.T, expected, whole), strict=True))
    assert not all(np.array_equal(SampledEntries(operator, 4, seed=seed).entries(I, J), expected) for seed in range(4, 9))
    assert sampled.entries(I[:0], J).shape == (0, 15)


def test_blocks_of_equally_many_neurons_are_transposes():
    """Which side is evaluated first does not depend on which is rows: H̃_JI = H̃_IJ ᵀ bit for bit, in every way of evaluation."""
    for name in ("classes, mixed", "deep linear, values", "binary, many outputs"):
        operator = GaussNewton(*make(name), comm=MPI.COMM_SELF)
        (neurons, _), rng = operator._entries.locate(np.arange(operator.n_params)), np.random.default_rng(2)
        for count in (1, 1, 2, 2, 2, 3):
            for most in (1, 9):
                some = [rng.choice(neurons[-1] + 1, count, replace=False) for _ in range(2)]
                I, J = (np.concatenate([rng.permutation(np.flatnonzero(neurons == p))[:most] for p in each]) for each in some)
                sampled = SampledEntries(operator, 4, seed=int(rng.integers(99)))
                assert np.array_equal(sampled.entries(J, I), sampled.entries(I, J).T)
                sampled._sampler.close()


def test_ranks_draw_the_same(comm):
    network, x, y = make("classes, mixed")
    I, J = np.arange(0, network.n_params, 2), np.arange(1, network.n_params, 3)
    for global_draw in (False, True):
        everyone = SampledEntries(GaussNewton(network, x, y, comm=comm), 4, seed=5, global_draw=global_draw)
        alone = SampledEntries(GaussNewton(network, x, y, comm=MPI.COMM_SELF), 4, seed=5, global_draw=global_draw)
        np.testing.assert_allclose(everyone.entries(I, J), alone.entries(I, J), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(everyone.sampled_pairs(I[:9], J[:9]), alone.sampled_pairs(I[:9], J[:9]), rtol=1e-13, atol=1e-15)
        everyone.close()


def test_exact_where_sampling_has_nothing_to_choose():
    """One sample's copies: any draw is exact. Dead parameters: zero. As many draws as samples: exact, and told."""
    network, x, y = make("classes, gelu, some biases")
    every = np.arange(network.n_params)
    copies = GaussNewton(network, np.repeat(x[:1], 5, axis=0), comm=MPI.COMM_SELF)
    exact = copies.entries(every, every)
    for global_draw in (False, True):
        found = SampledEntries(copies, 2, global_draw=global_draw).entries(every, every)
        np.testing.assert_allclose(found, exact, atol=1e-13 * np.abs(exact).max())
    operator = GaussNewton(network, x, y, comm=MPI.COMM_SELF)
    dead = np.setdiff1d(every, operator.alive)
    sampled = SampledEntries(operator, 2)
    assert len(dead) and not sampled.entries(dead, every).any() and not sampled.entries(dead, dead).any()
    assert not sampled.sampled_pairs(dead[:1], dead[:1]).any() and not sampled.entries(dead[:1], every[-1:]).any()
    with pytest.warns(UserWarning, match="9 draws a block are no fewer than the 9 samples"):
        enough = SampledEntries(operator, 9)
    assert enough.entry_draws == 0 and np.array_equal(enough.entries(every, every), operator.entries(every, every))
    with pytest.raises(InputError, match="entries are exact here"):
        enough.sampled_pairs(every, every)
    zero = GaussNewton(Network([np.zeros((3, 4)), np.zeros((2, 3))]), np.ones((6, 4)), comm=MPI.COMM_SELF)
    assert not SampledEntries(zero, 2, global_draw=True).entries(np.arange(12), np.arange(12)).any()


def test_everything_else_is_the_operator_s(comm):
    network, x, y = make("values, output sigmoid")
    operator = GaussNewton(network, x, y, comm=comm)
    sampled, V = SampledEntries(operator, error=0.5), np.random.default_rng(0).standard_normal((network.n_params, 3))
    assert sampled.entry_draws == 4 and SampledEntries(operator, error=0.4).entry_draws == 7
    assert sampled.samples is operator.samples and sampled.full is operator and sampled.quadrature is None and sampled.shape == operator.shape
    assert np.array_equal(sampled.matmat(V), operator.matmat(V)) and np.array_equal(sampled @ V, operator.matmat(V))
    assert np.array_equal(sampled.diagonal(), operator.diagonal()) and not hasattr(sampled, "nothing")
    fewer = sampled.reduced(Quadrature(np.arange(1, 8), np.full(7, 1 / 7), 0.1, 1.0, 9))
    assert fewer.entry_draws == 4 and fewer.n_samples == 7 and fewer.full is operator and fewer.quadrature.error == 0.1
    part = PrincipalSubmatrix(sampled, np.arange(4, 20))
    assert part.entry_draws == Regularized(part, 0.1).entry_draws == 4
    np.testing.assert_array_equal(part.entries(np.arange(5), np.arange(3)), sampled.entries(np.arange(4, 9), np.arange(4, 7)))


@pytest.mark.parametrize(
    "options, line",
    [
        ({"samples_per_entry": -1}, "samples_per_entry must be an integer"),
        ({"samples_per_entry": 2.5}, "samples_per_entry must be an integer"),
        ({"error": 0.0}, "error of sampled entries must be larger than 0"),
        ({"error": float("nan")}, "error of sampled entries must be larger than 0"),
        ({"seed": -3}, "seed must be an integer"),
    ],
)
def test_bad_arguments(comm, options, line):
    network, x, y = make("autoencoder")
    operator = GaussNewton(network, x, y, comm=comm)
    with pytest.raises(InputError, match=line):
        SampledEntries(operator, **options)


def test_other_operators_are_refused(comm):
    network, x, y = make("autoencoder")
    with pytest.raises(InputError, match="of Gram type .* not of Regularized"):
        SampledEntries(Regularized(GaussNewton(network, x, y, comm=comm), 0.1), 3)


@pytest.fixture(scope="module")
def larger(comm):
    """A network of 270 parameters whose 400 samples differ little: (operator, dense H)."""
    rng = np.random.default_rng(5)
    network = Network([rng.standard_normal((10, 15)) / 4, rng.standard_normal((10, 10)) / 3], [np.zeros(10), np.zeros(10)], "tanh", "squared-error")
    x = rng.standard_normal((1, 15)) + 0.15 * rng.standard_normal((400, 15))
    operator = GaussNewton(network, x, comm=comm)
    every = np.arange(operator.n_params)
    return operator, operator.entries(every, every)


def dense(matrix):
    return matrix.matmat(np.eye(matrix.shape[0]))


def relative(A, H):
    return np.linalg.norm(A - H) / np.linalg.norm(H)


@pytest.mark.parametrize("format", ["hss", "fmm", "dense"])
@pytest.mark.parametrize("global_draw", [False, True])
def test_compressions_by_entries_alone(larger, format, global_draw):
    """Within rtol of the exact H, certified by exact products; off by the noise, not more."""
    operator, H = larger
    sampled = SampledEntries(operator, 100, global_draw=global_draw)
    matrix = compress(sampled, rtol=0.2, format=format, leaf_size=32, dtype="float64")
    error = relative(dense(matrix), H)
    reported = matrix.report["error_estimate"]
    assert matrix.report["rtol_met"] and 1e-4 < error <= 0.2 and 0.7 * reported["low"] <= error <= 1.3 * reported["high"]
    if format == "dense":
        assert error <= 3 * np.trace(H) / np.sqrt(100) / np.linalg.norm(H)
        assert not reported.get("exact")


def test_what_the_noise_forbids_is_told(larger, comm):
    operator, H = larger
    sampled = SampledEntries(operator, 20)
    noise = np.trace(H) / np.linalg.norm(H) / np.sqrt(20)
    for format in ("hss", "dense"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            matrix = compress(sampled, rtol=1e-3, format=format, leaf_size=32)
        lines = [line for line in matrix.report["warnings"] if "not met" in line]
        assert not matrix.report["rtol_met"] and len(lines) == 1
        assert any("not met" in str(each.message) for each in said) == (comm.rank == 0)
        given = float(lines[0].split("= ")[1].split(":")[0])
        assert abs(given - noise) <= 0.05 * noise
        assert "20 draws a block" in lines[0] and "raise rtol or use exact entries" in lines[0]
    rtol = 1.1 * noise * np.sqrt(20 / 400)  # the bound is met by fewer draws than samples
    assert f"raise samples_per_entry (to at most {int(np.ceil(20 * (noise / rtol) ** 2))}) or rtol, or use exact" in noise_of(sampled, np.linalg.norm(H), rtol)
    with warnings.catch_warnings(action="ignore"):
        blocks = compress(sampled, rtol=1e-3, format="block-diagonal")
    assert "what is between blocks" in blocks.report["warnings"][0] and "20 draws a block" in blocks.report["warnings"][0]
    assert not blocks.report["error_estimate"].get("exact")


@pytest.mark.parametrize(
    "options, line",
    [
        ({"sampling": "sketch"}, 'sampling = "sketch" combines exact products.*use sampling = "rows"'),
        ({"distance": "auto"}, 'distance = "auto" combines.*name a distance'),
        ({"format": "auto"}, 'format = "auto" combines.*name a format'),
        ({"structured": "low-rank"}, 'structured = "low-rank" combines.*structured = "none"'),
        ({"memory": 10**9}, "prediction of hss for a given memory combines.*leave out the memory"),
    ],
)
def test_no_mixing(larger, options, line):
    operator, _ = larger
    for sampled in (SampledEntries(operator, 20), PrincipalSubmatrix(SampledEntries(operator, 20), np.arange(100)), Regularized(SampledEntries(operator, 20), 1.0)):
        with pytest.raises(InputError, match=line):
            compress(sampled, rtol=0.1, **options)
    assert compress(SampledEntries(operator, 400), rtol=0.1, sampling="sketch").report["rtol_met"]  # as many draws as samples: exact


@pytest.mark.parametrize("format", ["none", "kronecker-sum", "low-rank", "data-woodbury"])
def test_formats_without_entries_are_exact(larger, format):
    operator, H = larger
    sampled, exact = (compress(each, rtol=1e-2, format=format, dtype="float64") for each in (SampledEntries(operator, 5), operator))
    np.testing.assert_allclose(dense(sampled), dense(exact), atol=1e-10 * np.linalg.norm(H))


def test_jobs(comm, shared_tmp):
    if comm.rank == 0:
        network, x, y = make("autoencoder")
        np.save(shared_tmp / "x.npy", np.tile(x, (10, 1)).astype(np.float32))
        pairs = zip(network.weights, network.biases, strict=True)
        np.savez(shared_tmp / "w.npz", **{f"{at}.{key}": each for at, pair in enumerate(pairs) for key, each in zip(("weight", "bias"), pair, strict=True)})
    comm.Barrier()
    text = f"""
    [network]
    weights = "{shared_tmp}/w.npz"
    activation = "sigmoid"
    loss = "squared-error"
    [data]
    inputs = "{shared_tmp}/x.npy"
    task = "autoencode"
    [curvature]
    entries = "sampled"
    samples_per_entry = 7
    seed = 3
    """
    operator, origin = operator_from_job(Job.from_text(text, str(shared_tmp)), comm)
    assert operator.entry_draws == 7 and "entries from 7 samples a block" in origin.summary
    expected = SampledEntries(operator.exact, 7, seed=3).entries(np.arange(9), np.arange(4))
    assert np.array_equal(operator.entries(np.arange(9), np.arange(4)), expected)
