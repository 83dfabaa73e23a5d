"""The published tables: the page stands for the cases there are, jobs are complete, and the command survives what fails."""

import json

import numpy as np
import pytest
from mpi4py import MPI

from benchmarks import tables
from benchmarks.processes import told
from benchmarks.tables_cases import CASES, JOBS, QUICK
from benchmarks.tables_page import page, structure
from hpcHess.runtime.jobfile import load
from tests.storage.launch import launch

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own processes")


def test_the_page_is_that_of_the_cases():
    expected = structure(page(CASES, {}))
    assert structure(tables.PAGE.read_text("utf-8")) == expected
    assert sum(line == "mnist-hss-high" for line in expected) == 1 + 3  # storage, and one line a solver


def test_every_job_loads_and_is_listed():
    listed = (tables.ROOT / "docs" / "JOBS.md").read_text("utf-8")
    for path in sorted(JOBS.glob("*.toml")):
        assert path.read_text("utf-8").startswith("#"), f"{path.name} does not say what it is"
        assert load(path)["compress"]["rtol"] > 0
        assert f"`{path.name}`" in listed, f"docs/JOBS.md does not list {path.name}"
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        job = load(JOBS / case.job, case.sets)
        assert ("matrix" in job.tables) == (case.table == "dense") == bool(case.file)


def test_a_small_case_gives_its_rows(shared_tmp):
    done = launch(1, "-m", "benchmarks.tables", "--quick", "--only", "small-fmm", "--ranks", "1", "--output", shared_tmp / "r.json")
    assert done.returncode == 0, done.stderr
    assert structure(done.stdout) == structure(page(QUICK, {}))
    found = json.loads((shared_tmp / "r.json").read_text())["small-fmm"]
    assert found["failed"] is None and found["report"]["format"] == "fmm" and found["report"]["rtol_met"]
    assert found["compression_seconds"][0] > 0 and found["wall_seconds"][0] > found["compression_seconds"][0]
    row = next(line for line in done.stdout.splitlines() if line.startswith("| small-fmm | FMM"))
    assert f" {found['report']['storage_percent']:.3g} |" in row
    for each in found["solves"]:
        assert each["compressed_residual"] <= 1e-10 and each["refined"]["residual"] <= 1e-8 < each["exact_residual"]
    assert all(0 < found["products"][f"{kind} {k}"]["seconds"]["median"] for kind in ("compressed", "exact") for k in (1, 64))
    assert sorted(path.name for path in shared_tmp.iterdir()) == ["r.json"]


def test_what_fails_is_told_and_the_rest_goes_on(shared_tmp, monkeypatch, capfd):
    store = shared_tmp / "r.json"
    answers = {"hpcHess.compress": tables.Failed("hpcHess.compress: error: no data"), "hpcHess.info": np.nan}
    kept = {"mnist": {"case": "mnist", "failed": "as before"}}
    store.write_text(json.dumps(kept))

    def start(self, words, limit, good=(0,), ranks=None):
        raise answers[words[0]]

    monkeypatch.setattr(tables.Run, "start", start)
    assert tables.main(["--only", "mnist-hss", "--output", str(store)]) == 1
    found = json.loads(store.read_text())
    assert found["mnist"] == kept["mnist"] and set(found) == {"mnist", "mnist-hss-low", "mnist-hss-high"}
    output = capfd.readouterr().out
    assert "| mnist-hss-low | **hpcHess.compress: error: no data** |" in output and "| mnist | **as before** |" in output
    assert "autoencoder-hss-high | **not run** |" in output


def test_nothing_starts_when_the_time_is_over(shared_tmp, capfd):
    assert tables.main(["--quick", "--limit", "1e-9", "--output", str(shared_tmp / "r.json")]) == 1
    assert capfd.readouterr().out.count("the time is over") == 3 + 4


def test_a_process_that_hangs_is_ended(shared_tmp, monkeypatch):
    run = tables.Run(QUICK[0], 1, 1, shared_tmp, tables.time.monotonic() + 60)
    monkeypatch.setattr(run, "command", lambda *words, ranks=None: ["sleep", "60"])
    with pytest.raises(tables.Failed, match="sleep took more than 0 s"):
        run.start(("sleep",), 0.1)


@pytest.mark.parametrize("words", [["--quick", "--write"], ["--only", "digit"], ["--ranks", "0"], ["--limit", "0"]])
def test_bad_arguments(words, capfd):
    with pytest.raises(SystemExit) as ended:
        tables.main(words)
    assert ended.value.code == 2 and "error" in capfd.readouterr().err


def test_the_line_that_says_what_was_wrong():
    assert told("tree …\nhpcHess.compress: error: no such file\n------\nmpiexec noticed\n") == "hpcHess.compress: error: no such file"
    assert told("first\nlast\n") == "last" and told("") == ""
