"""The benchmarks: the counts of operations against dense sums, and the results' shape on the small example."""

import json
import math

import numpy as np
import pytest
from mpi4py import MPI

from benchmarks import models, rows
from benchmarks.cases import CASES
from benchmarks.ceilings import CeilingMeter, Ceilings
from benchmarks.gram import gram_blocks
from benchmarks.meter import Meter
from benchmarks.models import Work
from benchmarks.run import run_case
from hpcHess import backend as backends
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.networks.network import Network
from tests.storage.launch import launch

SECONDS = {"median": 0.5, "min": 0.4, "max": 0.7, "repeats": 3, "cpu_share": 0.9, "system_share": 0.1}
ALWAYS = ("compression", "Woodbury factors", "write matrix", "read matrix", "H̃V, 1 vector, float32", "exact product, 64 vectors, float64")


@pytest.fixture(scope="module")
def operator():
    rng = np.random.default_rng(0)
    widths = (6, 5, 4, 3)
    weights = [rng.standard_normal(shape) for shape in zip(widths[1:], widths[:-1])]
    network = Network(weights, [rng.standard_normal(5), None, rng.standard_normal(3)], "tanh", "cross-entropy")
    return GaussNewton(network, rng.standard_normal((20, 6)), comm=MPI.COMM_SELF)


@pytest.fixture(scope="module")
def ceilings():
    rates = {"sgemm": 4e9, "dgemm": 2e9, "triad": {1 << 20: 8e9, 1 << 23: 1e9}}
    return Ceilings(2, rates, rates, 3)


def test_ceiling_that_binds(ceilings):
    assert rows.binding(Work(8e9, 4e9, 1e6), ceilings) == ("sgemm", 4.0)
    assert rows.binding(Work(4e9, 8e9, 1e6), ceilings) == ("dgemm", 5.0)
    # 4 MB on 2 ranks do not fit into the smaller triad
    assert rows.binding(Work(0.0, 1e3, 4 << 20), ceilings) == ("triad 8 MiB", (4 << 20) / 1e9)
    assert rows.binding(Work(0.0, 1e3, 2 << 20), ceilings) == ("triad 1 MiB", (2 << 20) / 8e9)
    found = rows.row("p", SECONDS, Work(1e9, 0.0, 1e6), ceilings)
    assert found["gflops"] == 2.0 and found["fraction"] == 0.5 and found["bound"] == "sgemm"
    assert rows.row("p", SECONDS, None, ceilings)["fraction"] is None


def test_lost_seconds_are_those_above_the_ceilings(ceilings):
    seconds = lambda value: {**SECONDS, "median": value}  # noqa: E731
    found = [
        rows.row("all", seconds(10.0), Work(8e9, 0.0, 1e6), ceilings),
        rows.row("a", seconds(6.0), Work(8e9, 0.0, 1e6), ceilings, "all"),
        rows.row("kernel", seconds(5.0), Work(8e9, 0.0, 1e6), ceilings, "a"),
        rows.row("other", seconds(1.0), None, ceilings, "a"),
        rows.row("kernel", seconds(1.5), None, ceilings, "all"),
        rows.row("elsewhere", seconds(9.0), None, ceilings),
    ]
    expected = [{"phase": "kernel", "seconds": 4.5, "fraction": 0.45}, {"phase": "other", "seconds": 1.0, "fraction": 0.1}]
    assert rows.lost(found, "all") == expected
    assert rows.lost(found, "all", 1) == expected[:1]


def test_product_counts_what_dense_layers_need(operator):
    n, k = 20, 3
    forward_and_gradient = 2 * 2 * (5 * 7 + 4 * 5 + 3 * 5)  # V x̃ and u x̃ᵀ, biases in the layers 1 and 3
    between = 2 * 2 * (4 * 5 + 3 * 4) + 2 * (5 + 4)  # W dx and Wᵀ u, and both products with s'
    assert models.product_flops(operator.network, n, k) == n * k * (forward_and_gradient + between + 5 * 3)
    assert operator.n_params == 5 * 7 + 4 * 5 + 3 * 5


def test_truncated_qr_counts_every_reflection():
    m, r, k = 9, 4, 14
    steps = sum(4 * (k - j) * (m - j) for j in range(r)) + 2 * m * k + r * r * (m - r)
    found = models.truncated_qr([m, m], [r, r], k, np.float64)
    assert math.isclose(found.flops64, 2 * steps) and found.flops32 == 0 and found.bytes == 2 * 8 * (m * k + r * (m - r))


def test_matrix_work_follows_from_the_levels(operator):
    H = compress(operator, rtol=1e-2, leaf_size=20)
    near, level, k = H.near, H.levels, 5
    stored = sum(T.size for each in level[1:] for T in (each.T[i] for i in range(len(each.T))))
    coupled = sum(each.far.blocks[i].size for each in level[1:] for i in range(len(each.far.blocks)))
    dense = sum(near.blocks[i].size for i in range(len(near.blocks)))
    assert H.tree.depth == 2 and coupled > 0 and stored > 0
    found = models.matrix_product(H, k, np.float32)
    assert found.flops32 == 2 * k * (2 * stored + 2 * coupled + dense)
    assert found.bytes == 4 * (2 * stored + coupled + dense) + 4 * 2 * H.n_params * k
    factors = H.factorize(1.0)
    eliminated = [(s, r) for e in factors.eliminations for s, r in zip(e.T.rows, e.T.cols)]
    assert models.factor_solve(factors, k).flops64 == 2 * 2 * k * sum(2 * s * r + r * (r + 1) / 2 for s, r in eliminated)
    assert math.isclose(models.factorization(factors).flops64, sum(3 * s * s * r + 3 * s * r * r + 2 * r**3 / 3 for s, r in eliminated))


def test_meter_counts_and_leaves_nothing_behind(operator):
    kernels, meter = backends.get(), Meter()
    with meter.watch(operator, kernels):
        H = compress(operator, rtol=1e-2, leaf_size=20, progress=meter)
    for owner in (operator, kernels):
        assert not {"partial_matmat", "entries_batch", "multiply", "interpolate"} & set(vars(owner))
    near, probes = meter.counts["near blocks"]["entries"], meter.counts["exact probes"]["exact product"]
    assert near.calls == 1 and near.work == models.entries(H.near.blocks.offsets[-1], operator.n_samples, operator.dtype)
    assert probes.work.flops64 == models.product_flops(operator.network, 20, 32)
    assert list(meter.phases) == list(meter.timings.as_dict())
    assert list(meter.phases)[:4] == ["tree", "sketch", "near blocks", "exact probes"]
    inside = sum(count.seconds for kernels in meter.counts.values() for count in kernels.values())
    assert inside < sum(wall for wall, *_ in meter.phases.values())


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_gram_route_gives_the_exact_entries(loss):
    rng = np.random.default_rng(1)
    network = Network([rng.standard_normal((4, 6)), rng.standard_normal((3, 4))], [rng.standard_normal(4), None], "sigmoid", loss)
    op = GaussNewton(network, rng.standard_normal((20, 6)), comm=MPI.COMM_SELF)
    sets = [rng.permutation(op.n_params), np.array([2, 39, 5]), np.array([25])]
    found, seconds = gram_blocks(op, sets)
    H = op.matmat(np.eye(op.n_params))
    for I, block in zip(sets, found):
        np.testing.assert_allclose(block, H[np.ix_(I, I)], rtol=0, atol=1e-13 * np.abs(H).max())
    assert seconds > 0


def test_results_of_a_case(comm, shared_tmp):
    pytest.importorskip("petsc4py")
    meter = CeilingMeter(comm, order=64, working_sets=(1 << 20,))
    found = json.loads(json.dumps(run_case(comm, CASES["small"], 2, 1.0, shared_tmp, meter), allow_nan=False))
    assert found["ceilings"]["ranks"] == comm.size and found["ceilings"]["samples"] == 6
    assert min(found["ceilings"]["together"][name] for name in ("sgemm_gflops", "dgemm_gflops")) > 0
    sizes = found["sizes"]
    assert sizes["n_params"] == 1210 and sizes["compressed"]["rtol_met"] and sizes["compressed"]["storage_percent"] > 0
    assert sizes["entries_difference"] < 1e-5 and sizes["woodbury_residual"] < 1e-10
    assert sizes["refine"]["converged"] and sizes["refine"]["residual"] <= 1e-8
    by_phase = {row["phase"]: row for row in found["rows"] if row["inside"] is None}
    assert set(ALWAYS) <= set(by_phase)
    for row in found["rows"]:
        seconds = row["seconds"]
        assert 0 <= seconds["min"] <= seconds["median"] <= seconds["max"] and seconds["repeats"] >= 1
        assert 1 / comm.size - 1e-9 <= seconds.get("balance", 1.0) <= 1 + 1e-9
        assert seconds["cpu_share"] is None or seconds["cpu_share"] > 0
        assert (seconds["system_share"] or 0) >= 0
        assert row["inside"] is None or any(row["inside"] == other["phase"] for other in found["rows"])
        if row["flops"]:
            assert math.isclose(row["gflops"] * seconds["median"] * 1e9, row["flops"], rel_tol=1e-9)
        if row["fraction"] is not None:
            assert row["bound"] and math.isclose(row["fraction"] * seconds["median"], row["least_seconds"], rel_tol=1e-9)
    inside = [row for row in found["rows"] if row["inside"] == "compression"]
    assert math.isclose(sum(row["flops"] or 0 for row in inside), by_phase["compression"]["flops"])
    assert 0 < len(found["lost"]) <= 6 and found["lost"][0]["seconds"] > 0
    assert len(rows.table(found["rows"])) == len(found["rows"]) + 1
    assert list(shared_tmp.iterdir()) == []


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
def test_unknown_case_and_missing_data(shared_tmp, monkeypatch):
    monkeypatch.setenv("HPCHESS_DATA", str(shared_tmp))
    done = launch(1, "-m", "benchmarks.run", "digit")
    assert done.returncode == 2 and "unknown case digit" in done.stderr
    path = shared_tmp / "results" / "r.json"
    done = launch(2, "-m", "benchmarks.run", "mnist", "--output", path)
    assert done.returncode == 0 and "mnist: skipped" in done.stderr, done.stderr
    document = json.loads(path.read_text())
    assert document["cases"] == [] and document["skipped"][0]["case"] == "mnist"
    assert document["machine"]["ranks"] == 2 and document["machine"]["versions"]["numpy"] == np.__version__
