"""Every mistake of the user: one line on standard error, exit status 2, no file left, on the ranks of the test run (1 and 3)."""

import io
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from tests.drivers.drive import drive, listing, ok, on_root, write_job
from tests.storage.launch import launch


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


OBJECTS = npy(np.array([{"a": 1}, None], dtype=object))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def arrays(change):
    def spoil(path):
        found = dict(np.load(path))
        change(found)
        np.savez(path, **found)

    return spoil


def entry(index, value):
    def spoil(path):
        array = np.load(path)
        array[index] = value
        np.save(path, array)

    return spoil


def text(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


def pickled_npz(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.weight.npy", OBJECTS)


def put(name, index, value):
    """Change one entry of an array of weights."""

    def change(found):
        found[name] = found[name].copy()
        found[name][index] = value

    return arrays(change)


JOBS = {  # what is wrong: (file, how to spoil it, words of the message)
    "job missing": ("job.toml", lambda p: p.unlink(), ["job.toml", "No such file"]),
    "job binary": ("job.toml", lambda p: p.write_bytes(b"\x89HDF\xff"), ["job.toml"]),
    "job not TOML": ("job.toml", text("[data]", "[data"), ["job.toml is not TOML"]),
    "unknown key": ("job.toml", text("leaf_size", "leafsize"), ["unknown key compress.leafsize", "did you mean compress.leaf_size?"]),
    "unknown table": ("job.toml", text("[compress]", "[compression]"), ["unknown table compression", "did you mean compress?"]),
    "wrong choice": ("job.toml", text('"tanh"', '"thanh"'), ["network.activation", "did you mean tanh?"]),
    "rtol 0": ("job.toml", text("rtol = 0.001", "rtol = 0.0"), ["compress.rtol must be larger than 0"]),
    "rtol negative": ("job.toml", text("rtol = 0.001", "rtol = -1e-3"), ["compress.rtol must be larger than 0"]),
    "rtol NaN": ("job.toml", text("rtol = 0.001", "rtol = nan"), ["compress.rtol"]),
    "no network": ("job.toml", text('weights = "net.npz"', ""), ["network.weights", "network.fit"]),
    "weights missing": ("net.npz", lambda p: p.unlink(), ["net.npz", "no such file"]),
    "weights a folder": ("net.npz", lambda p: (p.unlink(), p.mkdir()), ["net.npz"]),
    "weights truncated": ("net.npz", truncate, ["net.npz"]),
    "weights empty": ("net.npz", lambda p: p.write_bytes(b""), ["net.npz"]),
    "weights pickled": ("net.npz", pickled_npz, ["net.npz", "Python objects"]),
    "weights of another program": ("net.npz", lambda p: np.savez(p, fc1=np.ones((3, 3))), ["net.npz", "unsupported layer fc1"]),
    "weights do not chain": ("net.npz", arrays(lambda a: a.update({"2.weight": np.ones((8, 7))})), ["net.npz", "do not chain", "2.weight [8, 7]"]),
    "bias does not fit": ("net.npz", arrays(lambda a: a.update({"2.bias": np.ones(7)})), ["2.bias is [7]", "[8, 12]"]),
    "NaN weight": ("net.npz", put("2.weight", (1, 2), np.nan), ["2.weight is not finite: nan at [1, 2]"]),
    "Inf bias": ("net.npz", put("4.bias", 3, np.inf), ["4.bias is not finite: inf at [3]"]),
    "inputs missing": ("inputs.npy", lambda p: p.unlink(), ["inputs.npy", "no such file"]),
    "inputs truncated": ("inputs.npy", truncate, ["inputs.npy"]),
    "inputs pickled": ("inputs.npy", lambda p: p.write_bytes(OBJECTS), ["inputs.npy", "Python objects"]),
    "inputs too wide": ("inputs.npy", lambda p: np.save(p, np.ones((60, 17))), ["samples have 17 numbers, the network takes 16"]),
    "inputs not a matrix": ("inputs.npy", lambda p: np.save(p, np.ones(60)), ["[n, width]"]),
    "inputs complex": ("inputs.npy", lambda p: np.save(p, np.ones((60, 16), complex)), ["complex128"]),
    "no samples": ("inputs.npy", lambda p: np.save(p, np.ones((0, 16))), ["empty"]),
    "NaN input": ("inputs.npy", entry((7, 5), np.nan), ["inputs.npy is not finite: nan at [7, 5]"]),
    "Inf input": ("inputs.npy", entry((59, 0), -np.inf), ["inputs.npy is not finite: -inf at [59, 0]"]),
    "fewer samples than asked": ("job.toml", text('targets = "targets.npy"', 'targets = "targets.npy"\nsamples = 61'), ["60 samples, 61"]),
    "targets of other samples": ("targets.npy", lambda p: np.save(p, np.zeros(59, int)), ["59 samples"]),
    "label too large": ("targets.npy", entry(11, 5), ["label 5 of sample 11", "5 outputs"]),
    "label negative": ("targets.npy", entry(0, -1), ["label -1 of sample 0"]),
    "labels real": ("targets.npy", lambda p: np.save(p, np.zeros(60)), ["integer labels"]),
    "targets of another loss": ("job.toml", text("cross-entropy", "squared-error"), ["targets.npy"]),
}


@pytest.fixture(scope="module")
def jobs(folder):
    on_root(lambda: write_job(folder / "jobs"))
    return folder / "jobs"


def refused(run, words, trace=False):
    assert run.status == 2, f"status {run.status}\n{run.err}"
    assert len(run.errors) == 1 and all(word in run.errors[0] for word in words), run.err
    assert run.out == "" and ("Traceback" in run.err) == trace


@pytest.mark.parametrize("fault", JOBS)
def test_bad_job(fault, jobs, shared_tmp):
    name, spoil, words = JOBS[fault]
    here = shared_tmp / "j"
    on_root(lambda: shutil.copytree(jobs, here) and None)
    on_root(lambda: spoil(here / name) and None)
    before = listing(shared_tmp)
    refused(drive("compress", here / "job.toml", "--output", shared_tmp / "F.h5"), words)
    assert listing(shared_tmp) == before


def test_a_curvature_that_overflows(shared_tmp):
    """Finite numbers whose products are not, in the type of the products."""
    job = on_root(lambda: write_job(shared_tmp, activation="relu", loss="squared-error"))
    on_root(lambda: np.save(shared_tmp / "inputs.npy", np.load(shared_tmp / "inputs.npy") * 1e30))
    refused(drive("compress", job, "--output", shared_tmp / "F.h5"), ["too large", "float64"])
    assert not (shared_tmp / "F.h5").exists()
    ok(drive("compress", job, "--output", shared_tmp / "F.h5", "--set", "compress.dtype=float64"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), ["required", "--output"]),
        (("--output", "F.h5", "--set", "compress.rtol=0"), ["compress.rtol"]),
        (("--output", "F.h5", "--set", "compress.rtoll=0.1"), ["did you mean compress.rtol?"]),
        (("--output", "F.h5", "--set", "rtol=0.1"), ["table.key=value"]),
        (("--output", "F.h5", "--damping", "-1"), ["damping", "≥ 0"]),
        (("--output", "F.h5", "--damping=-0.1*lmax"), ["damping", "≥ 0"]),
        (("--output", "F.h5", "--damping", "-0.1*lmax"), ["damping", "≥ 0"]),
        (("--output", "F.h5", "--damping", "small"), ["small", "0.01*lmax"]),
        (("--output", "."), ["directory"]),
        (("--output", "nowhere/F.h5"), ["nowhere is not a directory"]),
        (("--output", "net.npz/F.h5"), ["net.npz is not a directory"]),
        (("--output", "F.h5", "--nonsense"), ["--nonsense"]),
        (("--output", "job.toml"), ["would replace"]),
        (("--output", "../jobs/net.npz"), ["would replace"]),
        (("--output", "targets.npy"), ["would replace"]),
        (("--output", "/dev/null"), ["not a regular file"]),
    ],
)
def test_bad_arguments_of_compress(arguments, words, jobs, monkeypatch):
    monkeypatch.chdir(jobs)
    before = listing(jobs)
    refused(drive("compress", "job.toml", *arguments), words)
    assert listing(jobs) == before


def attribute(name, value):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            file.attrs.modify(name, value)

    return spoil


def flip(name):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            file[name][2] += 1

    return spoil


def other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["V"] = np.ones(5)


FACTORS = {
    "missing": (lambda p: p.unlink(), ["does not exist"]),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), []),
    "a vector": (lambda p: p.write_bytes(npy(np.ones(3))), ["not an HDF5 file"]),
    "empty": (lambda p: p.write_bytes(b""), []),
    "truncated": (truncate, ["truncated"]),
    "another HDF5 file": (other_hdf5, ["not a factor file"]),
    "incomplete": (attribute("complete", np.bool_(False)), ["incomplete"]),
    "of an unknown version": (attribute("format_version", 99), ["version 99"]),
    "of a changed attribute": (attribute("n_params", 352), ["checksum of the attributes"]),
    "of changed data": (flip("near/values"), ["checksum of near/values fails"]),
    "of a changed tree": (flip("tree/permutation"), ["checksum of tree/permutation fails"]),
}


@pytest.mark.parametrize("name", ["multiply", "solve", "info"])
@pytest.mark.parametrize("fault", FACTORS)
def test_bad_factor_file(fault, name, case, shared_tmp):
    spoil, words = FACTORS[fault]
    F = shared_tmp / "F.h5"
    on_root(lambda: shutil.copy(case.F, F) and None)
    on_root(lambda: spoil(F) and None)
    before, V, out = listing(shared_tmp), case.folder / "V.npy", ("--output", shared_tmp / "U.npy")
    given = {"multiply": ("--input", V, *out), "solve": ("--rhs", V, "--damping", "0.1", *out), "info": ("--verify", "--json")}
    refused(drive(name, F, *given[name]), ["F.h5", *words])
    assert listing(shared_tmp) == before


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["V"], file["g/short"] = np.ones(353), np.ones(352)
        file["g/nan"] = np.where(np.arange(353) == 350, np.nan, 1.0)


N = 353
VECTORS = {
    "missing": ("V.npy", None, ["V.npy does not exist"]),
    "empty": ("V.npy", lambda p: p.write_bytes(b""), ["V.npy cannot be read"]),
    "truncated": ("V.npy", lambda p: (p.write_bytes(npy(np.ones((N, 3)))), truncate(p)), ["V.npy cannot be read"]),
    "pickled": ("V.npy", lambda p: p.write_bytes(OBJECTS), ["Python objects"]),
    "an archive": ("V.npy", lambda p: p.write_bytes(b"PK\x03\x04"), ["V.npy cannot be read"]),
    "short": ("V.npy", lambda p: np.save(p, np.ones((N - 1, 2))), ["352 rows", "353 parameters"]),
    "transposed": ("V.npy", lambda p: np.save(p, np.ones((2, N))), ["2 rows", "353 parameters"]),
    "three-dimensional": ("V.npy", lambda p: np.save(p, np.ones((N, 2, 2))), ["shape (353, 2, 2)"]),
    "a number": ("V.npy", lambda p: np.save(p, np.float64(3)), ["shape ()"]),
    "of no columns": ("V.npy", lambda p: np.save(p, np.ones((N, 0))), ["no columns"]),
    "complex": ("V.npy", lambda p: np.save(p, np.ones(N, complex)), ["complex128"]),
    "text": ("V.npy", lambda p: np.save(p, np.array(["a"] * N)), ["real numbers"]),
    "with a NaN in the first row": ("V.npy", lambda p: np.save(p, np.where(np.arange(N) == 0, np.nan, 1.0)), ["NaN or Inf (row 0,"]),
    "with an Inf in the last row": ("V.npy", lambda p: np.save(p, np.where(np.arange(N) == N - 1, np.inf, 1.0)), ["NaN or Inf (row 352,"]),
    "no .npy": ("V.txt", lambda p: p.write_text("1 2 3"), [".npy", "file.h5:/name"]),
    "an HDF5 file without a name": ("V.h5", hdf5, ["file.h5:/name"]),
    "no such dataset": ("V.h5:/W", hdf5, ["V.h5 has no dataset /W"]),
    "a group": ("V.h5:/g", hdf5, ["/g"]),
    "a short dataset": ("V.h5:/g/short", hdf5, ["352 rows"]),
    "a dataset with NaN": ("V.h5:/g/nan", hdf5, ["NaN or Inf (row 350,"]),
}


@pytest.mark.parametrize("name", ["multiply", "solve"])
@pytest.mark.parametrize("fault", VECTORS)
def test_bad_vectors(fault, name, case, shared_tmp):
    spec, make, words = VECTORS[fault]
    if make is not None:
        on_root(lambda: make(shared_tmp / spec.partition(":")[0]) and None)
    before, option = listing(shared_tmp), "--input" if name == "multiply" else "--rhs"
    more = () if name == "multiply" else ("--damping", "0.1")
    refused(drive(name, case.F, option, f"{shared_tmp}/{spec}", "--output", shared_tmp / "U.npy", *more), words)
    assert listing(shared_tmp) == before


@pytest.mark.parametrize(
    "output, words",
    [
        ("U", [".npy", "file.h5:/name"]),
        ("", [".npy"]),
        (".", [".npy"]),
        ("nowhere/U.npy", ["not a directory"]),
        ("folder.npy", ["directory"]),
        ("F.h5:/U", ["factor file"]),
        ("V.npy:/U", ["V.npy"]),
    ],
)
def test_bad_output_of_vectors(output, words, case, shared_tmp, monkeypatch):
    """Found before the work begins."""
    on_root(lambda: shutil.copy(case.F, shared_tmp / "F.h5") and None)
    on_root(lambda: np.save(shared_tmp / "V.npy", case.V))
    on_root(lambda: (shared_tmp / "folder.npy").mkdir())
    monkeypatch.chdir(shared_tmp)
    before = listing(shared_tmp)
    for name, *more in (("multiply", "--input"), ("solve", "--damping", "0.1", "--rhs")):
        run = drive(name, "F.h5", *more, "V.npy", "--output", output)
        refused(run, words)
        assert "multiply …" not in run.err and "Woodbury" not in run.err
    assert listing(shared_tmp) == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), ["--damping"]),
        (("--damping", "-1e-3"), ["≥ 0"]),
        (("--damping", "nan"), ["≥ 0"]),
        (("--damping", "inf"), ["≥ 0"]),
        (("--damping", "lmin"), ["0.01*lmax"]),
        (("--damping", "0"), ["singular"]),
        (("--damping", "0.1", "--rtol", "0"), ["rtol"]),
        (("--damping", "0.1", "--rtol", "-1e-8"), ["rtol"]),
        (("--damping", "0.1", "--rtol", "nan"), ["rtol"]),
        (("--damping", "0.1", "--refine", "inexact"), ["inexact"]),
        (("--damping", "0.1", "--refine", "exact", "-ksp_type", "nonsense"), ["nonsense"]),
        (("--damping", "0.1", "--refine", "exact", "-ksp_max_it", "many"), ["many"]),
        (("--damping", "0.1", "--backend", "abacus"), ["abacus"]),
    ],
)
def test_bad_arguments_of_solve(arguments, words, case, shared_tmp):
    refused(drive("solve", case.F, "--rhs", case.folder / "V.npy", "--output", shared_tmp / "X.npy", *arguments), words)
    assert listing(shared_tmp) == []


def test_options_of_one_dash_that_nothing_uses_are_told(case, shared_tmp):
    """`-exact` is an option for PETSc, not --exact."""
    V = case.folder / "V.npy"
    run = ok(drive("multiply", case.F, "--input", V, "--output", shared_tmp / "U.npy", "-exact"))
    assert len(run.warnings) == 1 and "-exact" in run.warnings[0]
    solve = ("solve", case.F, "--rhs", V, "--output", shared_tmp / "X.npy", "--damping", "0.1", "-ksp_type", "cg")
    run = ok(drive(*solve))
    assert len(run.warnings) == 1 and "-ksp_type cg" in run.warnings[0]
    assert not ok(drive(*solve, "--refine", "exact")).warnings


def test_arguments_in_the_wrong_order(case, shared_tmp):
    """The vector in the factor file's place, and a factor file as the job."""
    refused(drive("multiply", case.folder / "V.npy", "--input", case.F, "--output", shared_tmp / "U.npy"), ["F.h5", ".npy"])
    refused(drive("compress", case.F, "--output", shared_tmp / "G.h5"), ["F.h5"])
    assert listing(shared_tmp) == []


def test_what_was_there_before_stays(case, jobs, shared_tmp):
    """A failing run leaves an older result as it is."""
    F, U = shared_tmp / "F.h5", shared_tmp / "U.npy"
    on_root(lambda: (F.write_text("old factors"), np.save(U, [1.0])) and None)
    refused(drive("compress", jobs / "job.toml", "--output", F, "--set", "network.weights=gone.npz"), ["gone.npz"])
    refused(drive("multiply", case.F, "--input", shared_tmp / "V.npy", "--output", U), ["does not exist"])
    assert F.read_text() == "old factors" and np.load(U)[0] == 1.0 and listing(shared_tmp) == ["F.h5", "U.npy"]


def test_traceback_on_request(case, shared_tmp):
    refused(drive("multiply", case.F, "--input", "V.txt", "--output", shared_tmp / "U.npy", "--traceback"), ["V.txt"], trace=True)


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
@pytest.mark.parametrize("name, ranks", [("compress", 3), ("multiply", 3), ("solve", 1)])
def test_status_and_line_arrive_through_the_launcher(name, ranks, case, tmp_path):
    arguments = {
        "compress": ("nowhere.toml", "--output", tmp_path / "F.h5"),
        "multiply": (case.F, "--input", tmp_path / "V.npy", "--output", tmp_path / "U.npy"),
        "solve": (case.F, "--rhs", case.folder / "V.npy", "--output", tmp_path / "X.npy", "--damping", "-1"),
    }
    done = launch(ranks, "-m", f"hpcHess.{name}", *arguments[name])
    assert done.returncode == 2 and done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("hpcHess: error: ")]) == 1
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_good_input_is_taken(jobs, shared_tmp):
    """The job that all faults above were made from."""
    ok(drive("compress", jobs / "job.toml", "--output", shared_tmp / "F.h5"))
    assert listing(shared_tmp) == ["F.h5"]
