"""The operator that a job file describes, or that a factor file was made from."""

from dataclasses import dataclass, replace

import numpy as np

from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.fisher import EmpiricalFisher, Fisher, MonteCarloFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import quadrature
from hpcHess.networks.network import Network
from hpcHess.networks.problem import load_problem
from hpcHess.parallel.agree import on_root, together
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.jobfile import Job

KINDS = {"gauss-newton": GaussNewton, "fisher": Fisher, "mc-fisher": MonteCarloFisher, "opg": EmpiricalFisher}


@dataclass(frozen=True)
class Origin:
    """What an operator was made from.

    digests   of what was read, for the file's provenance: {"network_hash": …, "data_hash": …} or {"matrix_hash": …}
    summary   for people
    fitted    the Network that the job had fitted, which no file holds; else None
    """

    digests: dict
    summary: str
    fitted: Network | None = None


def operator_from_job(job, comm, dtype=np.float64, network=None, progress=None):
    """(operator, Origin) of a job; `network` given: not fitted again. Collective; raises InputError for bad input.

    With data.quadrature the operator is that of the chosen samples: its `quadrature` says which and the error, its `full` is the operator
    on all of them, which the digests are of. Without, `quadrature` is None.
    """
    operator, origin = _full_operator(job, comm, dtype, network)
    asked = job["data"].get("quadrature") if "data" in job.tables else None
    if asked is None:
        return operator, origin
    chosen = quadrature(operator, **{"count" if isinstance(asked, int) else "rtol": asked}, progress=progress)
    operator = operator.reduced(chosen)
    summary = f"{origin.summary}; {len(chosen.samples)} chosen and weighted, error {chosen.error:.2e}"
    return operator, replace(origin, summary=summary)


def _full_operator(job, comm, dtype, network):
    """(operator on all samples, Origin). Collective."""
    if "matrix" in job.tables:
        operator = DenseMatrix(job.path("matrix", "file"), job["matrix"].get("n"), comm, dtype)
        return operator, Origin({"matrix_hash": operator.digest}, f"dense matrix {job['matrix']['file']}")
    problem, curvature = load_problem(job, comm, network), job["curvature"]
    options = {key: curvature[key] for key in ("draws", "seed")} if curvature["kind"] == "mc-fisher" else {}
    with together(comm):
        part = problem.network.restricted([each - 1 for each in curvature["layers"]]) if "layers" in curvature else problem.network
    operator = KINDS[curvature["kind"]](part, problem.inputs, problem.targets, problem.weights, comm, dtype, **options)
    digests = {"network_hash": problem.network_digest, "data_hash": problem.data_digest}
    summary = f"n = {operator.n_samples} samples, d = {operator.n_outputs} outputs"
    return operator, Origin(digests, summary, problem.network if "fit" in job["network"] else None)


def files_of_matrix(matrix):
    """Names of the files that the job recorded in a factor file reads, a dataset's as file.h5:/name: not to be replaced. Not collective."""
    return Job.from_text(matrix.job_text, matrix.job_directory).files if matrix.job_text else []


def operator_of_matrix(matrix, dtype=np.float64):
    """The uncompressed operator of the job recorded in a factor file, on all samples. Collective.

    Raises InputError with the reason where the files that it was made from are gone or have changed since.
    """
    if not matrix.job_text:
        raise InputError("the factor file records no job")
    job = on_root(matrix.comm, Job.from_text, matrix.job_text, matrix.job_directory)
    network = None
    if matrix.network is not None:
        stored = matrix.network
        network = Network.from_arrays(stored["arrays"], stored["activation"], stored["loss"], stored.get("output", "identity"))
    operator, origin = _full_operator(job, matrix.comm, dtype, network)
    for key, digest in origin.digests.items():
        if matrix.provenance.get(key) != digest:
            raise InputError(f"the {key.removesuffix('_hash')} changed since the compression (their hashes differ)")
    return operator
