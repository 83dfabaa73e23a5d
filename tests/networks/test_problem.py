"""Problems from jobs: the same network and data on every rank, and every mistake in them as an InputError on every rank."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from hpcHess.networks.network import Network
from hpcHess.networks.problem import checked_data, data_digest, load_problem, read_npy
from hpcHess.parallel.agree import on_root
from hpcHess.runtime import jobfile
from hpcHess.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILES = '[network]\nweights = "w.npz"\nactivation = "tanh"\n[data]\ninputs = "x.npy"\ntargets = "y.npy"\n'
FIT = '[network]\nactivation = "sigmoid"\n[network.fit]\nhidden = [4]\nepochs = 2\n[data]\ndataset = "digits"\nsamples = 50\n'


def network(loss="cross-entropy"):
    rng = np.random.default_rng(0)
    return Network([rng.standard_normal((4, 3)), rng.standard_normal((2, 4))], [rng.standard_normal(4), None], "tanh", loss)


def data(n=7):
    return np.random.default_rng(1).standard_normal((n, 3)), np.arange(n) % 2


@pytest.fixture
def job(comm, shared_tmp):
    """job(text, w=…, x=…, y=…): the Job of a text whose files rank 0 wrote. Collective."""

    def make(text=FILES, overrides=(), **arrays):
        def write():
            np.savez(shared_tmp / "w.npz", **arrays.pop("w", network().to_arrays()))
            X, y = data()
            for name, array in {"x": X, "y": y, **arrays}.items():
                np.save(shared_tmp / f"{name}.npy", array)
            (shared_tmp / "job.toml").write_text(text)
            return jobfile.load(shared_tmp / "job.toml", overrides)

        return on_root(comm, write)

    return make


def test_problem_of_files(job, comm):
    problem = load_problem(job(), comm)
    X, y = data()
    np.testing.assert_array_equal(problem.inputs, X)
    np.testing.assert_array_equal(problem.targets, y)
    assert problem.inputs.dtype == np.float64 and problem.targets.dtype == np.int64
    assert problem.network.digest() == problem.network_digest == network().digest()
    assert problem.data_digest == data_digest(X, y)
    assert len(set(comm.allgather((problem.network_digest, problem.data_digest, problem.network.digest())))) == 1
    for array in (problem.inputs, problem.targets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_samples_takes_the_first(job, comm):
    problem = load_problem(job(overrides=["data.samples=4"]), comm)
    np.testing.assert_array_equal(problem.inputs, data()[0][:4])
    np.testing.assert_array_equal(problem.targets, [0, 1, 0, 1])
    with pytest.raises(InputError, match="x.npy has 7 samples, 8 are asked for"):
        load_problem(job(overrides=["data.samples=8"]), comm)


def test_squared_error_and_single_precision(job, comm):
    X, Y = data()[0].astype(np.float32), np.asfortranarray(np.random.default_rng(2).standard_normal((7, 2)))
    problem = load_problem(job(overrides=["network.loss=squared-error"], x=X, y=Y), comm)
    np.testing.assert_array_equal(problem.targets, Y)
    assert problem.inputs.dtype == np.float32 and problem.targets.flags.c_contiguous
    assert problem.data_digest == data_digest(X.astype(np.float64), Y) != data_digest(X, np.abs(Y))


def test_autoencode(job, comm):
    text = '[network.fit]\nhidden = [2]\nepochs = 2\n[data]\ninputs = "x.npy"\ntask = "autoencode"\n'
    problem = load_problem(job(text), comm)
    assert problem.targets is problem.inputs and problem.network.widths == [3, 2, 3]
    assert problem.network.loss == "squared-error"


def test_fit(job, comm):
    problem = load_problem(job(FIT), comm)
    assert problem.network.widths == [64, 4, 10] and problem.network.activation == "sigmoid"
    assert problem.inputs.shape == (50, 64)
    assert len(set(comm.allgather(problem.network.digest()))) == 1
    given = Network([np.ones((10, 64))])
    restored = load_problem(job(FIT), comm, given if comm.rank == 0 else None)
    assert restored.network.digest() == given.digest() == restored.network_digest


def test_communicator_of_some_ranks(job, comm):
    made = job()
    part = comm.Split(comm.rank % 2, comm.rank)
    assert load_problem(made, part).network_digest == network().digest()
    part.Free()


def changed(array, at, value):
    array = np.array(array)
    array[at] = value
    return array


X, Y = data()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": X[:, :2]}, "x.npy: samples have 2 numbers, the network takes 3"),
        ({"x": changed(X, (3, 1), np.nan)}, r"x.npy is not finite: nan at \[3, 1\]"),
        ({"x": changed(X, (6, 2), -np.inf)}, r"x.npy is not finite: -inf at \[6, 2\]"),
        ({"x": X.ravel()}, r"x.npy must be \[n, width\], not the shape \[21\]"),
        ({"x": X[:0]}, r"x.npy is empty: \[0, 3\]"),
        ({"x": X.astype(complex)}, "x.npy holds complex128, not real"),
        ({"x": X.astype(str)}, "x.npy holds <U"),
        ({"x": X[:5]}, "y.npy has 7 samples, .*x.npy has 5"),
        ({"y": changed(Y, 3, 2)}, r"y.npy: label 2 of sample 3 .* is out of range, the network has 2 outputs"),
        ({"y": changed(Y, 0, -1)}, "label -1 of sample 0 .* is out of range"),
        ({"y": Y.astype(float)}, r"y.npy: cross-entropy needs integer labels \[n\], this is float64 of shape \[7\]"),
        ({"y": Y[:, None]}, r"integer labels \[n\], this is int64 of shape \[7, 1\]"),
        ({"y": changed(Y.astype(np.uint64), 2, 2**63)}, "label 9223372036854775808 is out of range"),
        ({"w": {"0.weight": np.ones((4, 3)), "2.weight": np.ones((2, 5))}}, "w.npz: shapes do not chain"),
        ({"w": {"0.weight": np.full((2, 3), np.inf)}}, "w.npz: 0.weight is not finite"),
    ],
)
def test_bad_arrays(job, comm, arrays, message):
    with pytest.raises(InputError, match=message):
        load_problem(job(**arrays), comm)


@pytest.mark.parametrize(
    "targets, message",
    [
        (np.ones((7, 3)), "y.npy: targets have 3 numbers, the network has 2 outputs"),
        (np.ones(7), r"y.npy must be \[n, width\]"),
        (changed(np.ones((7, 2)), (1, 1), np.nan), r"y.npy is not finite: nan at \[1, 1\]"),
        (np.ones((6, 2)), "y.npy has 6 samples"),
    ],
)
def test_bad_targets_of_squared_error(job, comm, targets, message):
    with pytest.raises(InputError, match=message):
        load_problem(job(overrides=["network.loss=squared-error"], y=targets), comm)


@pytest.mark.parametrize("key", ["network.weights", "data.inputs", "data.targets"])
def test_missing_files(job, comm, key):
    with pytest.raises(InputError, match="cannot read .*none.np.: there is no such file"):
        load_problem(job(overrides=[f"{key}=none.np{'z' if 'weights' in key else 'y'}"]), comm)


def test_bad_fits(job, comm):
    text = '[network.fit]\nhidden = [4]\n[data]\ninputs = "x.npy"\ntargets = "y.npy"\n'
    with pytest.raises(InputError, match="x.npy is not finite"):
        load_problem(job(text, x=changed(X, (0, 0), np.nan)), comm)
    with pytest.raises(InputError, match=r"all present \(wrong: 2, 3\)"):
        load_problem(job(text, y=changed(Y, 3, 4)), comm)


def test_damaged_npy(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    whole = path.read_bytes()
    for content in (b"", b"rubbish" * 100, whole[:90], whole[:-8]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot read .*x.npy"):
            read_npy(path)


def test_npy_of_objects_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a file was unpickled",)

    np.save(tmp_path / "x.npy", np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="x.npy: it .*holds Python objects"):
        read_npy(tmp_path / "x.npy")


def test_npz_is_no_npy(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.savez(file, X=X)
    with pytest.raises(InputError, match="several arrays"):
        read_npy(tmp_path / "x.npy")


def test_digest_of_data():
    first = data_digest(X, Y)
    assert len(first) == 64
    assert first == data_digest(np.asfortranarray(X), Y.astype(np.int32))
    others = [(-X, Y), (X, 1 - Y), (X, Y.astype(float)), (X.reshape(3, 7), Y), (X[:6], Y[:6]), (changed(X, (6, 2), X[6, 2] + 1e-15), Y)]
    assert len({first, *(data_digest(*other) for other in others)}) == 7


def test_checks_of_the_api_name_what_was_given():
    with pytest.raises(InputError, match="^inputs: samples have 2"):
        checked_data(network(), X[:, :2], Y)
    inputs, targets = checked_data(network("squared-error"), X.tolist(), np.ones((7, 2), int))
    assert inputs.dtype == targets.dtype == np.float64


def test_small_example(comm):
    """jobs/small.toml and the files of data/, whose checksums are recorded there."""
    for line in (ROOT / "data" / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split()
        assert hashlib.sha256((ROOT / "data" / name).read_bytes()).hexdigest() == sha256
    problem = load_problem(on_root(comm, jobfile.load, ROOT / "jobs" / "small.toml"), comm)
    assert problem.network.widths == [64, 16, 10] and problem.network.n_params == 1210
    W, b = problem.network.weights, problem.network.biases
    z = np.maximum(problem.inputs @ W[0].T + b[0], 0) @ W[1].T + b[1]
    assert (z.argmax(axis=1) == problem.targets).mean() > 0.9


def test_mnist_job(comm, data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip("HPCHESS_DATA has no mnist")
    problem = load_problem(on_root(comm, jobfile.load, ROOT / "jobs" / "mnist.toml", ["network.fit.epochs=1"]), comm)
    assert problem.network.widths == [784, 20, 30, 10] and problem.network.n_params == 16640 and len(problem.inputs) == 1000
