"""The figures of docs/PERFORMANCE.md: tiny runs of each, the page, the synthetic matrix against a dense one, counts against hand counts."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from benchmarks import models, products
from benchmarks.figures import command, growth, page, ranks, solves, synthetic, turns
from benchmarks.figures.products import gemm_shapes
from benchmarks.figures.table import FIGURES
from benchmarks.processes import Failed
from benchmarks.scaling_times import main as scaling_times
from hpcHess.hierarchical.elimination import InterpolativeElimination
from hpcHess.parallel.exchange import gather_rows
from hpcHess.parallel.ownership import row_starts

ALONE = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="one process")
TINY = turns.Options(tiny=True, seconds=0.2)
QUICK = ("products", "entries", "pivoted-qr", "stored", "woodbury", "dense-lapack", "compressed-product", "million")
MACHINE = {"date": "2026-11-21T10:00:00", "commit": "0123456789abcdef+", "threads": {"OMP_NUM_THREADS": "2"}, "load_average": [0.1, 0, 0], "cores": 2}
MACHINE |= {"cpu": "a processor", "versions": {"numpy": "2.0", "mpi": "an MPI"}}


def document(name, measured):
    return {"figure": name, "machine": MACHINE, "took": 1.0, "rows": [turns.row(f"of {name}", 0.5, measured, "share", "sgemm", "the memory")]}


@ALONE
@pytest.mark.parametrize("name", QUICK)
def test_tiny_run_of_a_figure(name):
    found = list(importlib.import_module(FIGURES[name].module).measure(TINY))
    assert found and json.dumps(found, allow_nan=False)
    for row in found:
        assert row["measured"] > 0 and row["verdict"] in ("met", "short", "reported") and row["ceiling"]
        assert (row["asked"] is None) == (row["verdict"] == "reported")
        if row["verdict"] == "short" and row["kind"] in turns.AT_LEAST:
            assert row["measured"] < row["asked"]
        for seconds in row["seconds"].values():
            assert 0 <= seconds["min"] <= seconds["median"] <= seconds["max"] and seconds["repeats"] == 2


def test_every_figure_has_a_module():
    for figure in FIGURES.values():
        assert callable(importlib.import_module(figure.module).measure)


@ALONE
def test_command_keeps_results_and_says_what_failed(tmp_path, capsys, monkeypatch):
    store = tmp_path / "f.json"
    assert command.main(["pivoted", "--tiny", "--threads", "1", "--output", str(store)]) == 0
    found = json.loads(store.read_text())
    assert set(found) == {"pivoted-qr"} and found["pivoted-qr"]["tiny"] and found["pivoted-qr"]["machine"]["threads"]["OMP_NUM_THREADS"] == "1"
    assert "`pivoted-qr` 48 × 48 to rank 8, float32" in capsys.readouterr().out
    assert command.main(["gpu", "--tiny", "--limit", "1e-9", "--output", str(store)]) == 1
    found = json.loads(store.read_text())
    assert set(found) == {"pivoted-qr", "gpu"} and "the time is over" in found["gpu"]["rows"][0]["holds"]
    with pytest.raises(SystemExit):
        command.main(["nothing"])


def test_rows_measured_before_a_failure_are_kept(tmp_path, monkeypatch):
    def start(self, words, limit):
        Path(words[words.index("--output") + 1]).write_text(json.dumps(document("stored", 0.7)))
        raise Failed("took more than 1 s")

    monkeypatch.setattr(command.Processes, "start", start)
    store = tmp_path / "f.json"
    assert command.main(["stored", "--output", str(store)]) == 1
    first, second = json.loads(store.read_text())["stored"]["rows"]
    assert first["what"] == "of stored" and second["verdict"] == "not run" and "took more" in second["holds"]


def test_page_replaces_the_rows_of_measured_figures_alone():
    text = "# Performance\n\n## Results\n\n## Hessian products\n\nwords\n"
    first = page.merged(text, [document("stored", 0.4), document("products", 0.7)])
    again = page.merged(first, [document("stored", 0.6)])
    for each in (first, again):
        assert each.startswith("# Performance\n\n## Results\n") and each.endswith("## Hessian products\n\nwords\n") and each.count(page.HEAD) == 1
        assert each.index("| `products` of products") < each.index("| `stored` of stored")
    assert "| ≥ 50 % | 40 % | short | sgemm | the memory | 2026-11-21, 0123456+, 2 threads, load 0.1 |" in first
    assert "| 60 % | met |" in again and "| 40 % |" not in again and "| 70 % | met |" in again
    assert page.merged(again, []) == again and "a processor" in again
    table = [line for line in again.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_rates_are_compared_round_by_round():
    found = object.__new__(turns.Turns)
    found.seconds = {"a": [1.0, 2.0, 10.0], "b": [2.0, 4.0, 20.0]}
    assert found.ratio("a", "b") == 2.0 and found.ratio("b", "a", 4.0, 1.0) == 2.0 and found.median("a") == 2.0


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian"])
def test_plain_gemms_do_the_operations_of_the_product(kind):
    network, *_ = products.problem("12-5-12, squared error", 7)
    counted = 2.0 * sum(m * n * k for m, n, k in gemm_shapes(network, 7, 3, kind))
    needed = products.flops(network, kind, SimpleNamespace(samples=7, vectors=3))
    assert 0.9 * needed <= counted <= needed


def test_synthetic_matrix_is_what_it_says(comm):
    """On any number of ranks: symmetric, H̃ + I definite, products linear, bytes those of the blocks, factors that solve."""
    H = synthetic.hss(comm, 4, 12, 5, np.float64)
    n, starts = H.n_params, row_starts(H.n_params, comm.size)
    eye = np.eye(n)
    A = H.matmat(eye)
    assert n == 12 * 16 - 5 and np.abs(A - A.T).max() < 1e-13 and np.linalg.eigvalsh(A)[0] > 0.4
    off = A - np.diag(np.diag(A))
    assert np.linalg.matrix_rank(A[: n // 2, n // 2 :], tol=1e-12) <= H.levels[1].ranks.max() and np.abs(off[: n // 2, n // 2 :]).max() > 0
    assert {int(rank) for rank in H.levels[4].ranks} == {3, 5, 6}
    numbers = sum(int(np.sum(level.ranks * (level.columns - level.ranks))) for level in H.levels[1:]) + int(np.sum(H.tree.leaf_sizes**2))
    numbers += sum(int(np.prod(level.ranks.reshape(-1, 2), axis=1).sum()) for level in H.levels[1:])
    assert comm.allreduce(synthetic.stored_bytes(H)) == 8 * numbers
    assert comm.allreduce(models.matrix_product(H, 0, np.float64).bytes) > 8 * numbers
    B = np.random.default_rng(0).standard_normal((n, 2))
    X = gather_rows(comm, InterpolativeElimination.factorize(H, 1.0).solve_rows(B[H.mine]), starts)
    assert np.abs(A @ X + X - B).max() < 1e-12


def test_seconds_of_every_phase_on_these_ranks(comm, shared_tmp):
    output = shared_tmp / "t.json"
    scaling_times(["--tiny", "--repeat", "1", "--output", str(output)])
    comm.Barrier()
    found = json.loads(output.read_text())
    assert found["machine"]["ranks"] == comm.size and all(each["median"] > 0 for each in found["phases"].values())
    assert {each["kind"] for each in found["phases"].values()} == {"gemm-bound", "bandwidth-bound", "ceiling", "whole"}


def test_speedups_of_the_ceilings_count_their_amounts():
    phases = lambda scale: {"triad": (ranks.CEILING, scale, 8.0 * scale), "sgemm": (ranks.CEILING, 1.0, 8.0 * scale), "p": (ranks.GEMM, 4.0 / scale, None)}  # noqa: E731
    made = lambda scale: {"phases": {name: {"kind": kind, "median": s, "amount": a} for name, (kind, s, a) in phases(scale).items()}}  # noqa: E731
    speed = ranks.speedups([{1: made(1.0), 2: made(2.0)}], 2)
    assert speed["triad"][1] == 1.0 and speed["sgemm"][1] == 2.0 and speed["p"][1] == 2.0
    (row,) = ranks.rows([{1: made(1.0), 2: made(2.0)}], 2)
    assert row["asked"] == 1.8 and row["verdict"] == "met"


def test_growth_is_of_seconds_a_parameter():
    sizes = [{"n_params": n, "seconds": s, "cpu_seconds": 2 * s, "peak_bytes": 1e9, "timings": {"sketch": s}} for n, s in ((100, 2.0), (400, 12.0))]
    (row,) = growth.grown(sizes, "seconds")
    assert row["measured"] == 1.5 and row["verdict"] == "short" and "sketch 6.0 ×, N 4.0 ×" in row["holds"]


def test_conjugate_gradients_solve():
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((20, 20)), rng.standard_normal((20, 3))
    A = A @ A.T
    X, iterations, seconds = solves.conjugate_gradients(lambda V: A @ V, B, 1.0, 1e-12, 500)
    np.testing.assert_allclose(X, np.linalg.solve(A + np.eye(20), B), rtol=1e-8, atol=1e-8)
    assert 5 < iterations == len(seconds) < 500
