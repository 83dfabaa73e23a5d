"""Drivers as tests start them: in this process, on the ranks of the test run, or in processes of their own; and a small job.

As a program (`mpiexec -n P python -m tests.drivers.drive STEPS.json DONE.json`) it runs a list of drivers one after another on its ranks:
one start of mpiexec for many runs.
"""

import importlib
import io
import json
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from hpcHess.runtime.session import run_driver
from tests.reference.gauss_newton import gauss_newton
from tests.storage.launch import launch

COMM = MPI.COMM_WORLD


class Run(SimpleNamespace):
    """`status` and what all ranks said, in the ranks' order: `out`, `err`."""

    @property
    def errors(self):
        """The lines that tell an error."""
        return [line for line in self.err.splitlines() if line.startswith("hpcHess: error: ")]

    @property
    def warnings(self):
        return [line for line in self.err.splitlines() if line.startswith("hpcHess: warning: ")]

    def residual(self, kind):
        """The largest residual that `solve` printed, `kind` is compressed or exact."""
        line = next(line for line in self.out.splitlines() if line.startswith(f"{kind} residual"))
        return float(line.partition(": max ")[2].partition(",")[0])


def drive(name, *arguments):
    """Run `hpcHess.<name>` here. Collective over COMM_WORLD; the same `Run` on all ranks."""
    driver = importlib.import_module(f"hpcHess.{name}")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run_driver(name, driver.build_parser, driver.main, [str(each) for each in arguments])
        except SystemExit as left:
            status = left.code
    said = COMM.allgather((out.getvalue(), err.getvalue()))
    return Run(status=status, out="".join(each for each, _ in said), err="".join(each for _, each in said))


def drive_all(ranks, folder, steps):
    """[Run, …] of `steps` ([name, argument, …] each) on `ranks` ranks of their own, started once."""
    given, found = folder / f"steps-{ranks}.json", folder / f"runs-{ranks}.json"
    given.write_text(json.dumps([[str(each) for each in step] for step in steps]))
    done = launch(ranks, "-m", "tests.drivers.drive", given, found)
    assert done.returncode == 0, done.stderr
    return [Run(**each) for each in json.loads(found.read_text())]


def ok(run, status=0):
    """`run`, which must have left with `status`."""
    assert run.status == status, f"status {run.status}\n{run.out}{run.err}"
    return run


def on_root(make):
    """What `make()` returns on rank 0, on every rank. Collective."""
    result = error = None
    if COMM.rank == 0:
        try:
            result = make()
        except Exception as caught:
            error = caught
    error = COMM.bcast(None if error is None else repr(error))
    assert error is None, error
    return COMM.bcast(result)


def listing(folder):
    """Names of everything below `folder`. Collective."""
    return on_root(lambda: sorted(str(each.relative_to(folder)) for each in Path(folder).rglob("*")))


@contextmanager
def working_in(folder):
    """The working directory is `folder`."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


JOB = """
[network]
weights = "net.npz"
activation = "{activation}"
loss = "{loss}"

[data]
inputs = "inputs.npy"
targets = "targets.npy"

[compress]
leaf_size = 24
rtol = {rtol}
{more}
"""


def small_arrays(widths=(16, 12, 8, 5), n=60, loss="cross-entropy", seed=0):
    """(weights by name, inputs, targets); input 3 is zero in all samples, so its weights are dead."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for layer, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        arrays[f"{2 * layer}.weight"] = rng.standard_normal((after, before)) / np.sqrt(before)
        arrays[f"{2 * layer}.bias"] = rng.standard_normal(after) / 4
    x = rng.standard_normal((n, widths[0]))
    x[:, 3:4] = 0
    y = rng.integers(0, widths[-1], n) if loss == "cross-entropy" else rng.standard_normal((n, widths[-1]))
    return arrays, x, y


def write_job(folder, rtol=1e-3, activation="tanh", loss="cross-entropy", more="", **small):
    """A job of a network with weights, its files in `folder`; its path. One process."""
    arrays, x, y = small_arrays(loss=loss, **small)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "net.npz", **arrays)
    np.save(folder / "inputs.npy", x)
    np.save(folder / "targets.npy", y)
    (folder / "job.toml").write_text(JOB.format(rtol=rtol, activation=activation, loss=loss, more=more))
    return folder / "job.toml"


def dense(arrays, x, activation="tanh", loss="cross-entropy"):
    """H [N, N] of the reference, from arrays named as in a file of weights."""
    layers = sorted({int(name.partition(".")[0]) for name in arrays})
    weights, biases = ([arrays.get(f"{layer}.{part}") for layer in layers] for part in ("weight", "bias"))
    return gauss_newton(SimpleNamespace(weights=weights, biases=biases, activation=activation, loss=loss), x)


def relative(A, B):
    """‖A − B‖_F / ‖B‖_F."""
    return np.linalg.norm(np.asarray(A, np.float64) - B) / np.linalg.norm(B)


def residuals(A, X, B):
    """‖b − Ax‖ / ‖b‖ of every column."""
    return np.linalg.norm(B - A @ X, axis=0) / np.linalg.norm(B, axis=0)


def _program(steps, found):
    runs = [drive(*step) for step in json.loads(Path(steps).read_text())]
    if COMM.rank == 0:
        Path(found).write_text(json.dumps([vars(run) for run in runs]))


if __name__ == "__main__":
    _program(*sys.argv[1:])
