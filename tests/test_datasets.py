"""The driver `hpcHess.datasets`, as a user starts it."""

import os
import subprocess
import sys

import pytest
from mpi4py import MPI

from hpcHess.networks.datasets import SOURCES

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")


def datasets(home, *arguments, ranks=None):
    launcher = ["mpiexec", "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-m", "hpcHess.datasets", *arguments]
    environment = {**os.environ, "HPCHESS_DATA": str(home)}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def errors(run):
    return [line for line in run.stderr.splitlines() if line.startswith("hpcHess: error: ")]


def test_list(tmp_path):
    run = datasets(tmp_path, "list")
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["digits", "mnist", "adult"]
    assert "scikit-learn" in lines[0] and str(tmp_path / "adult") in lines[2] and "missing: adult.data" in lines[2]
    (tmp_path / "adult").mkdir()
    (tmp_path / "adult" / "adult.data").touch()
    assert datasets(tmp_path, "list").stdout.splitlines()[2].endswith("there")


def test_fetch_digits_is_nothing(tmp_path):
    run = datasets(tmp_path, "fetch", "digits")
    assert run.returncode == 0 and run.stdout == "" and "nothing to fetch" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranks", [None, 2])
def test_wrong_file_is_refused_in_one_line(tmp_path, ranks):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "adult.data").write_text("not the right file\n")
    run = datasets(tmp_path / "home", "fetch", "adult", "--from", mirror.as_uri(), ranks=ranks)
    assert run.returncode == 2 and run.stdout == "" and "Traceback" not in run.stderr
    assert len(errors(run)) == 1 and "checksum is wrong" in errors(run)[0]
    assert list((tmp_path / "home" / "adult").iterdir()) == []


@pytest.mark.parametrize("name", ["adult", "mnist"])
def test_fetch_real_files(tmp_path, data_dir, name):
    if any(not (data_dir / name / file).is_file() for file in SOURCES[name].files):
        pytest.skip(f"HPCHESS_DATA has no {name}")
    run = datasets(tmp_path, "fetch", name, "--from", str(data_dir / name))
    assert run.returncode == 0 and run.stdout == ""
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(SOURCES[name].files)
    again = datasets(tmp_path, "fetch", name, "--from", "file:///nowhere")
    assert again.returncode == 0 and again.stderr.count("checksum is right") == len(SOURCES[name].files)


@pytest.mark.parametrize("arguments", [[], ["fetch"], ["fetch", "cifar"], ["remove", "mnist"]])
def test_wrong_arguments(tmp_path, arguments):
    run = datasets(tmp_path, *arguments)
    assert run.returncode == 2 and len(errors(run)) == 1


def test_help(tmp_path):
    run = datasets(tmp_path, "fetch", "--help")
    assert run.returncode == 0 and "--from" in run.stdout
