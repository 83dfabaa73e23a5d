"""The batch scripts, run for real in a private one-node Slurm."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own jobs"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a private Slurm"),
]
RTOL, DAMPING = 1e-6, 1e-2

ENVIRONMENT = f"""
export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{ROOT}"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
"""
JOB = """
[network]
weights = "weights.npz"
loss = "squared-error"
[data]
inputs = "inputs.npy"
targets = "targets.npy"
[compress]
leaf_size = 32
rtol = 1e-3
"""


class Cluster:
    """A private Slurm in a folder, and jobs in it."""

    def __init__(self, folder):
        self.folder = folder
        mpi = ("OMPI_", "PMIX_", "PMI_", "ORTE_", "SLURM_", "HPCHESS_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(mpi)}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def script(self, name):
        return subprocess.run([ROOT / "slurm" / "test-cluster" / name, self.folder], capture_output=True, text=True, timeout=60)

    def submit(self, where, *arguments, **variables):
        """Job number of `sbatch arguments…` in folder `where`, `variables` exported."""
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
        command = ["sbatch", "--parsable", f"--export={exported}", "--time=00:05:00", *map(str, arguments)]
        run = subprocess.run(command, cwd=where, env=self.environment, capture_output=True, text=True, timeout=20)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def about(self, job):
        """scontrol's fields of a job."""
        command = ["scontrol", "--oneliner", "show", "job", job]
        shown = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=20)
        return dict(field.split("=", 1) for field in shown.stdout.split() if "=" in field)

    def end(self, job, seconds=80):
        """(state, exit code) of a job that ends within `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            about = self.about(job)
            if about["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
                return about["JobState"], about["ExitCode"]
            time.sleep(0.1)
        raise TimeoutError(f"job {job} is still {about['JobState']}: {about.get('Reason')}")


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            up = cluster.script("up.sh")
            assert up.returncode == 0, up.stderr
            yield cluster
        finally:
            down = cluster.script("down.sh")
        assert down.returncode == 0, down.stderr


@pytest.fixture
def case(tmp_path):
    """A folder with the job of a linear network z = Wx + b, ‖z − y‖² summed over outputs: its H is known.

    With the parameters W (row-major), b: H = (2/n) Σ_i ∇∇, I ⊗ xxᵀ for W and W, I ⊗ x for W and b, I for b and b.
    """
    rng = np.random.default_rng(0)
    n_samples, width, n_outputs = 40, 15, 8
    inputs = rng.standard_normal((n_samples, width)) * np.geomspace(1, 1e-2, width)
    np.savez(tmp_path / "weights.npz", **{"0.weight": rng.standard_normal((n_outputs, width)), "0.bias": np.zeros(n_outputs)})
    np.save(tmp_path / "inputs.npy", inputs)
    np.save(tmp_path / "targets.npy", rng.standard_normal((n_samples, n_outputs)))
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "environment.sh").write_text(ENVIRONMENT)
    one = np.eye(n_outputs)
    J = np.concatenate([np.concatenate([np.kron(one, x[None, :]), one], axis=1) for x in inputs])
    H = 2.0 / n_samples * J.T @ J
    B = rng.standard_normal((len(H), 3))
    np.save(tmp_path / "B.npy", B)
    return tmp_path, H, B


def test_compress_then_solve(cluster, case):
    """A job that depends on the other; the files are named by the jobs' numbers."""
    folder, H, B = case
    variables = {"HPCHESS_ENVIRONMENT": "environment.sh"}
    first = cluster.submit(folder, "--ntasks=2", ROOT / "slurm" / "compress.sbatch", "job.toml", **variables)
    factors = f"factors-{first}.h5"
    second = cluster.submit(
        folder, "--ntasks=2", f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes", ROOT / "slurm" / "solve.sbatch",
        factors, "--rhs", "B.npy", "--damping", DAMPING, "--refine", "exact", "--rtol", RTOL, **variables,
    )  # fmt: skip
    for job, name in ((first, "compress"), (second, "solve")):
        assert cluster.end(job) == ("COMPLETED", "0:0"), (folder / f"hpchess-{name}-{job}.err").read_text()
    assert factors in (folder / f"hpchess-compress-{first}.out").read_text()
    X = np.load(folder / f"solution-{second}.npy")
    assert (np.linalg.norm(B - H @ X - DAMPING * X, axis=0) <= RTOL * np.linalg.norm(B, axis=0)).all()


def test_parameters_in_variables_and_another_launcher(cluster, case):
    folder, H, B = case
    environment = {"HPCHESS_ENVIRONMENT": "environment.sh", "HPCHESS_LAUNCHER": "mpiexec"}
    first = cluster.submit(
        folder, "--ntasks=2", ROOT / "slurm" / "compress.sbatch", HPCHESS_JOB="job.toml", HPCHESS_OUTPUT="F.h5", **environment
    )
    assert cluster.end(first) == ("COMPLETED", "0:0")
    second = cluster.submit(
        folder, "--ntasks=2", ROOT / "slurm" / "solve.sbatch",
        HPCHESS_FACTORS="F.h5", HPCHESS_RHS="B.npy", HPCHESS_DAMPING=DAMPING, HPCHESS_OUTPUT="X.npy", **environment,
    )  # fmt: skip
    assert cluster.end(second) == ("COMPLETED", "0:0")
    expected = np.linalg.solve(H + DAMPING * np.eye(len(H)), B)
    # ‖X̃ − X‖ ≤ ‖(H+λI)⁻¹‖ ‖H̃ − H‖ ‖X̃‖, and ‖H̃ − H‖ ≤ rtol ‖H‖_F
    found = np.load(folder / "X.npy")
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(H) / DAMPING * np.linalg.norm(found)


def test_the_drivers_status_is_the_jobs(cluster, case):
    """Bad input: exit status 2, one line, no output file; what depends on the job does not run."""
    folder, _, _ = case
    job = cluster.submit(folder, "--ntasks=2", ROOT / "slurm" / "compress.sbatch", "missing.toml", HPCHESS_ENVIRONMENT="environment.sh")
    assert cluster.end(job) == ("FAILED", "2:0")
    errors = [line for line in (folder / f"hpchess-compress-{job}.err").read_text().splitlines() if line.startswith("hpcHess")]
    assert len(errors) == 1 and errors[0].startswith("hpcHess: error: ") and "missing.toml" in errors[0]
    assert not list(folder.glob("*.h5*"))
    after = cluster.submit(folder, "--kill-on-invalid-dep=yes", f"--dependency=afterok:{job}", ROOT / "slurm" / "solve.sbatch", "x")
    assert cluster.end(after)[0] == "CANCELLED"
