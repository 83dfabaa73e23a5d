"""The README's case: storage, error and residuals of jobs/mnist.toml (needs HPCHESS_DATA; times are benchmarks' business)."""

from pathlib import Path

import numpy as np
import pytest

from hpcHess.curvature.from_job import operator_from_job
from hpcHess.hierarchical.compress import compress
from hpcHess.krylov.solve import column_norms, solve
from hpcHess.runtime.jobfile import load

JOB = Path(__file__).parents[1] / "jobs" / "mnist.toml"


def test_storage_error_and_residuals(comm, data_dir):
    pytest.importorskip("petsc4py")
    job = load(JOB)
    options = job["compress"]
    operator, origin = operator_from_job(job, comm, np.float32)
    H = compress(operator, **{key: options[key] for key in ("rtol", "leaf_size", "distance", "seed")})
    assert H.n_params == 16640 and H.report["rtol_met"] and H.report["storage_percent"] <= 1.5
    operator.close()
    exact, _ = operator_from_job(job, comm, np.float64, origin.fitted)
    n_local, damping = H.parameter_starts[comm.rank + 1] - H.parameter_starts[comm.rank], 1e-2 * H.report["lambda_max"]
    B = np.random.default_rng(comm.rank).standard_normal((n_local, 100))
    difference = column_norms(comm, H.matmat_rows(B) - exact.matmat_rows(B))
    assert np.linalg.norm(difference) <= 1e-2 * np.sqrt(100) * H.report["norm_frobenius"]
    factors, norms = H.factorize(damping), column_norms(comm, B)
    X = factors.solve_rows(B)
    assert np.max(column_norms(comm, B - H.matmat_rows(X) - damping * X) / norms) <= 1e-10
    found = solve(exact, B, damping, preconditioner=factors, rtol=1e-8)
    assert found.converged
    assert np.max(column_norms(comm, B - exact.matmat_rows(found.X_local) - damping * found.X_local) / norms) <= 1e-8
    exact.close()
