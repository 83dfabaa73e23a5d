"""1, 2, 3, 4 and 5 ranks, each set started once: every one meets rtol, they agree, and equal ranks write equal files."""

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from tests.drivers.drive import Run, dense, drive_all, relative, residuals, small_arrays, write_job

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
RTOL, DAMPING = 1e-4, 0.02
SMALL = {"widths": (20, 16, 10, 6), "n": 50}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    job = write_job(folder, rtol=RTOL, **SMALL)
    arrays, x, _ = small_arrays(**SMALL)
    H = dense(arrays, x)
    np.save(folder / "I.npy", np.eye(len(H)))
    np.save(folder / "B.npy", np.random.default_rng(2).standard_normal((len(H), 3)))
    return folder, job, H


@pytest.fixture(scope="module")
def found(case):
    """{ranks: {step: Run}} of all drivers; matrices, products and solutions lie in files named by their ranks."""
    folder, job, _ = case
    I, B, runs = folder / "I.npy", folder / "B.npy", {}
    for ranks in (4, 1, 2, 3, 5):
        F = folder / f"F{ranks}.h5"
        out = lambda what, r=ranks: folder / f"{what}{r}.npy"  # noqa: E731
        steps = {
            "compress": ("compress", job, "--output", F, "--damping", DAMPING),
            "again": ("compress", job, "--output", folder / f"again{ranks}.h5", "--damping", DAMPING),
            "multiply": ("multiply", F, "--input", I, "--output", out("H")),
            "exact": ("multiply", F, "--input", I, "--output", out("E"), "--exact"),
            "solve": ("solve", F, "--rhs", B, "--output", out("X"), "--damping", DAMPING),
            "refine": ("solve", F, "--rhs", B, "--output", out("Y"), "--damping", DAMPING, "--refine", "exact"),
            "four": ("multiply", folder / "F4.h5", "--input", I, "--output", out("four")),
            "four solve": ("solve", folder / "F4.h5", "--rhs", B, "--output", out("Xfour"), "--damping", DAMPING),
            "verify": ("info", folder / "F4.h5", "--verify"),
        }
        runs[ranks] = dict(zip(steps, drive_all(ranks, folder, steps.values()), strict=True))
    return runs


@pytest.fixture(scope="module")
def load(case):
    return lambda what, ranks: np.load(case[0] / f"{what}{ranks}.npy")


def test_all_leave_with_status_0(found):
    assert [(ranks, step, run.err) for ranks, runs in found.items() for step, run in runs.items() if run.status != 0] == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_each_meets_rtol_and_all_agree(ranks, case, found, load):
    H = case[2]
    assert relative(load("H", ranks), H) <= RTOL
    assert relative(load("E", ranks), H) < 1e-13
    assert np.linalg.norm(load("H", ranks) - load("H", 1)) <= 2 * RTOL * np.linalg.norm(H)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_each_solves(ranks, case, found, load):
    _, _, H = case
    B, eye = np.load(case[0] / "B.npy"), np.eye(len(H))
    assert residuals(load("H", ranks).astype(np.float64) + DAMPING * eye, load("X", ranks), B).max() < 1e-10
    assert residuals(H + DAMPING * eye, load("Y", ranks), B).max() <= 1e-8
    assert found[ranks]["solve"].residual("compressed") < 1e-10
    exact = residuals(H + DAMPING * eye, load("X", ranks), B).max()
    assert found[ranks]["solve"].residual("exact") == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_file_of_4_ranks_is_read_on_others(ranks, found, load):
    """The same matrix up to the order of sums, its stored solver factors too."""
    assert relative(load("four", ranks), load("H", 4)) < 1e-6
    assert relative(load("Xfour", ranks), load("X", 4)) < 1e-10
    assert found[ranks]["four solve"].residual("compressed") < 1e-10


def contents(path):
    """Datasets and attributes of a file but for its time stamps."""
    with h5py.File(path, "r") as file:
        datasets = {}
        file.visititems(lambda name, item: datasets.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        attributes = {name: value for name, value in file.attrs.items() if name not in ("provenance", "attributes_sha256")}
    return datasets, attributes


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_equal_ranks_write_equal_files(ranks, case, found):
    (first, attributes), (second, others) = (contents(case[0] / f"{name}{ranks}.h5") for name in ("F", "again"))
    assert attributes == others and list(first) == list(second)
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name


def test_more_ranks_than_parameters(tmp_path):
    """N = 5 on 6 ranks, and a matrix of one leaf."""
    job = write_job(tmp_path, widths=(4, 1), n=3, loss="squared-error", rtol=1e-6)
    arrays, x, _ = small_arrays((4, 1), 3, "squared-error")
    H = dense(arrays, x, loss="squared-error")
    np.save(tmp_path / "I.npy", np.eye(5))
    F, given = tmp_path / "F.h5", ("--rhs", tmp_path / "I.npy", "--damping", 0.1, "--output")
    runs: list[Run] = drive_all(
        6,
        tmp_path,
        [
            ("compress", job, "--output", F),
            ("multiply", F, "--input", tmp_path / "I.npy", "--output", tmp_path / "H.npy"),
            ("solve", F, *given, tmp_path / "X.npy", "--refine", "exact"),
        ],
    )
    assert [run.status for run in runs] == [0, 0, 0], [run.err for run in runs]
    assert relative(np.load(tmp_path / "H.npy"), H) < 1e-6
    assert relative(np.load(tmp_path / "X.npy"), np.linalg.inv(H + 0.1 * np.eye(5))) < 1e-8
