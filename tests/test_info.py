"""The driver `info` in its own processes: the JSON alone on standard output, the table, and one line for every bad file."""

import json

import h5py
import pytest
from mpi4py import MPI

from tests.reference.hss import ReferenceHSS, write_reference
from tests.storage.launch import launch

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")


@pytest.fixture(scope="module")
def hss():
    return ReferenceHSS(n_params=80, depth=2, max_rank=4)


@pytest.fixture
def path(shared_tmp, hss):
    write_reference(hss, shared_tmp / "F.h5", MPI.COMM_SELF)
    return shared_tmp / "F.h5"


def info(ranks, *arguments):
    return launch(ranks, "-m", "hpcHess.info", *arguments)


def test_json(path, hss):
    done = info(2, path, "--json", "--verify")
    assert done.returncode == 0, done.stderr
    found, report = json.loads(done.stdout), json.loads(hss.attributes["report"])
    for key in ("rtol", "rtol_met", "error_estimate", "levels", "storage_entries", "storage_bytes", "storage_percent", "lambda_max"):
        assert found[key] == report[key]
    assert found["format"] == "hss" and found["complete"] is True and found["checksums_verified"] is True
    assert (found["n_params"], found["n_alive"], found["depth"]) == (80, 78, 2)
    assert found["provenance"] == json.loads(hss.attributes["provenance"]) and found["job"] == hss.attributes["job"]
    with h5py.File(path, "r") as file:
        assert found["storage_entries"] == sum(file[name].size for name in ("near/values", "far/values", "nodes/interpolation"))


def test_table(path, hss):
    done = info(1, path)
    assert done.returncode == 0, done.stderr
    report = json.loads(hss.attributes["report"])
    rows = [line.split() for line in done.stdout.splitlines() if line.split() and line.split()[0].isdigit()]
    assert len(rows) == len(report["levels"]) == 3
    for row, level in zip(rows, report["levels"], strict=True):
        assert [int(row[i]) for i in (0, 1, 2, 4)] == [level[key] for key in ("level", "nodes", "rank_min", "rank_max")]
        assert int(row[5].replace(",", "")) == level["bytes"]
    for words in (f"{report['storage_bytes']:,} bytes", "% of N²", "interval 5e-08 … 2e-07", "rtol = 0.001: met", "2000-01-01", "host h"):
        assert words in done.stdout
    assert "warning: the matrix is random" in done.stdout and done.stderr == ""


def test_damage_is_found_only_by_verify(path):
    with h5py.File(path, "r+") as file:
        file["far/values"][3] += 1.0
    assert info(1, path, "--json").returncode == 0
    done = info(2, path, "--json", "--verify")
    assert done.returncode == 2 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("hpcHess: error: ")]
    assert len(errors) == 1 and "far/values" in errors[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "does not exist"),
        ("truncated", "truncated"),
        ("incomplete", "incomplete"),
        ("version", "format version 7"),
        ("attribute", "checksum of the attributes"),
    ],
)
def test_bad_file_is_one_line_and_status_2(path, fault, words):
    size = path.stat().st_size
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        with open(path, "r+b") as file:
            file.truncate(size // 2)
    else:
        with h5py.File(path, "r+") as file:
            name, value = {"incomplete": ("complete", False), "version": ("format_version", 7), "attribute": ("n_params", 81)}[fault]
            file.attrs.modify(name, value)
    done = info(1, path)
    assert done.returncode == 2 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("hpcHess: ")]
    assert len(errors) == 1 and errors[0].startswith("hpcHess: error: ") and words in errors[0]
    assert "Traceback" not in done.stderr
