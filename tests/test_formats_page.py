"""The page of the formats: made from real runs of two tiny cases; regret; what is refused, left out or not run is a row."""

import json

import pytest
from mpi4py import MPI

from benchmarks import formats, formats_figures
from benchmarks.formats_cases import CASES, QUICK, STORAGE, rows_of
from benchmarks.formats_page import page
from benchmarks.formats_regret import seconds_for, storage_regret, time_regret, worst
from benchmarks.processes import Failed
from hpcHess.formats.registry import FORMATS
from hpcHess.runtime.jobfile import load
from tests.storage.launch import launch

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own processes")
RUNS = ("digits/low-rank/0.1", "digits/auto, storage/0.1", "K06-256/kronecker-sum/0.1")


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


def test_the_page_is_that_of_the_cases():
    assert headings(formats.PAGE.read_text("utf-8")) == headings(page(CASES, {}))


def test_every_run_is_a_job():
    for case in (*CASES, *QUICK):
        job = load(formats.JOBS / case.job)
        assert ("matrix" in job.tables) == bool(case.gallery)
        for row in rows_of(case, FORMATS):
            changed = load(formats.JOBS / case.job, (*case.sets, *row.sets, f"compress.format={row.format}"))
            assert changed["compress"]["format"] == row.format
    keys = [formats.key_of(*run) for run in formats.runs_of(CASES)]
    assert len(set(keys)) == len(keys)
    named = {name for name, entry in FORMATS.items() if entry.compress is not None}
    assert {row.name for row in rows_of(CASES[0], FORMATS)} >= named


def test_two_tiny_cases_end_to_end(shared_tmp):
    done = launch(1, "-m", "benchmarks.formats", "--quick", "--ranks", "1", "--repeat", "1", "--only", *RUNS, "--output", shared_tmp / "r.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((shared_tmp / "r.json").read_text())
    assert set(found) == {*RUNS, "digits/exact", "K06-256/exact"}
    low, auto, refused = (found[name] for name in RUNS)
    for run in (low, auto):
        assert run["failed"] is None and run["compress_seconds"] > 0 and run["report"]["rtol_met"]
    assert low["solve"]["residual"] <= 1e-6 and low["refined"]["residual"] <= 1e-6 and "solve" not in auto
    assert low["refined"]["iterations"] < found["digits/exact"]["refined"]["iterations"]
    assert "needs a network" in refused["failed"]
    assert f"| low-rank | 0.1 | {low['report']['storage_percent']:.3g} | " in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| kronecker-sum | 0.")]
    assert len(rows) == 2 * 2 and sum("needs a network" in line for line in rows) == 1 and sum("not run" in line for line in rows) == 3
    assert f"| **{STORAGE}**: {auto['report']['plan']['chosen']}" in done.stdout
    if formats_figures.installed():
        drawn = [formats_figures.draw(QUICK[0], [low, auto], shared_tmp / folder) for folder in ("a", "b")]
        assert drawn == ["formats-digits.svg"] * 2
        assert (shared_tmp / "a" / drawn[0]).read_bytes() == (shared_tmp / "b" / drawn[0]).read_bytes()
    assert {path.name for path in shared_tmp.iterdir()} >= {"r.json", "formats-digits.npz", "K06-256.npy"}


def _run(row, entries, error, rtol=0.1, kind="format", compress=1.0, solve=0.64, **more):
    error = {"value": error, "low": error, "high": error, "probes": 0, "exact": True}
    report = {"format": row, "storage_entries": entries, "storage_percent": entries / 100, "storage_bytes": 4 * entries, "error_estimate": error}
    solved = {"seconds": solve, "factor_seconds": 0.5, "columns": 64, "converged": True, "residual": 1e-7, "iterations": 9, "method": "cg"}
    given = {"case": "K02", "row": row, "rtol": rtol, "kind": kind, "format": row, "approximates": True, "steered": True, "seconds": 1.0}
    return given | {"compress_seconds": compress, "report": report, "solve": solved, "products": {"1": 1e-3}, "failed": None} | more


def test_regret_is_against_the_best_that_met_rtol():
    auto = _run(STORAGE, 120, 0.05, kind="auto")
    auto["report"]["plan"] = {"chosen": "hss", "seconds": 0.1, "predictions": {}}
    runs = [
        _run("hss", 120, 0.05),
        _run("low-rank", 100, 0.1),
        _run("kronecker-sum", 10, 0.11),  # missed
        _run("none", 5, 0.0, approximates=False, steered=False, compress=0.1),
        _run("K-FAC", 1, 0.0, kind="reference"),
        _run("fmm", 50, 0.05, rtol=0.01),  # of another tolerance
        auto,
        _run("auto, time 64", 120, 0.05, kind="auto", compress=2.0),
        _run("auto, time 10000", 120, 0.05, kind="auto", solve=0.064),
    ]
    storage = storage_regret(runs, 0.1)
    assert (storage.best, storage.cost, storage.chosen, storage.factor) == ("low-rank", 100, "hss", pytest.approx(1.2))
    few = time_regret(runs, 0.1, 64)
    assert few.best == "none" and few.cost == pytest.approx(0.1 + 0.5 + 0.64) and few.factor == pytest.approx((2.0 + 0.5 + 0.64) / 1.24)
    assert time_regret(runs, 0.1, 10_000).factor == pytest.approx((1.5 + 10.0) / (0.6 + 100.0))
    case = next(case for case in CASES if case.name == "K02")
    assert worst({"K02": runs}, [case])["storage"] == (pytest.approx(1.2), "K02", 0.1)
    text = page([case], {str(number): run for number, run in enumerate(runs)})
    assert f"| K02 | 0.1 | low-rank, {100 * 100 / 4096**2:.3g} | hss, {100 * 120 / 4096**2:.3g} | 1.20 |" in text
    assert storage_regret(runs[:1], 0.1).factor is None and storage_regret([], 0.1).best is None


def test_a_solve_that_failed_has_no_time():
    run = _run("hss", 1, 0.0)
    assert seconds_for(run | {"solve": None}, 64) is None and seconds_for({}, 64) is None
    assert seconds_for(run | {"solve": run["solve"] | {"converged": False}}, 64) is None


def test_what_fails_is_told_and_not_tried_again(shared_tmp, monkeypatch):
    store, started = shared_tmp / "r.json", []
    known = {"digits/exact": {"case": "digits", "row": "exact", "kind": "exact", "damping": 1.0, "seconds": 1.0}}
    store.write_text(json.dumps(known))
    (shared_tmp / "formats-digits.npz").write_bytes(b"")

    def start(self, words, limit, good=(0,), ranks=None):
        started.append(words)
        raise Failed("benchmarks.formats_measure took more than 5 s")

    monkeypatch.setattr(formats.Processes, "start", start)
    assert formats.main(["--quick", "--only", "digits/hss/", "--output", str(store)]) == 0
    found = json.loads(store.read_text())
    assert found["digits/hss/0.1"]["failed"] == "took more than 5 s" and found["digits/hss/0.01"]["failed"] == "as at 0.1: took more than 5 s"
    assert len(started) == 1 and "compress.format=hss" in started[0]


def test_the_budget_stops_gracefully(shared_tmp, capfd):
    assert formats.main(["--quick", "--only", "K06", "--budget", "1e-9", "--output", str(shared_tmp / "r.json")]) == 1
    runs = [run for run in formats.runs_of(QUICK) if run[0].name == "K06-256"]
    found = json.loads((shared_tmp / "r.json").read_text())
    assert all(found[formats.key_of(*run)]["failed"] == formats.NO_TIME for run in runs)
    assert formats.NO_TIME in capfd.readouterr().out


def test_dense_is_left_out_where_it_is_too_large(capfd):
    autoencoder = next(case for case in CASES if case.name == "autoencoder")
    dense = next(row for row in rows_of(autoencoder, FORMATS) if row.name == "dense")
    assert "N² numbers" in dense.left_out
    assert not any(row.left_out for row in rows_of(CASES[0], FORMATS))


@pytest.mark.parametrize("words", [["--quick", "--write"], ["--only", "nothing"], ["--ranks", "0"], ["--limit", "0"]])
def test_bad_arguments(words, capfd):
    with pytest.raises(SystemExit) as ended:
        formats.main(words)
    assert ended.value.code == 2 and "error" in capfd.readouterr().err
