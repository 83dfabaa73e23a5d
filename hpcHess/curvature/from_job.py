"""The operator that a job file describes, or that a factor file was made from."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.fisher import EmpiricalFisher, Fisher, MonteCarloFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.hessian import Hessian
from hpcHess.curvature.quadrature import quadrature
from hpcHess.curvature.regularized import Regularized
from hpcHess.curvature.sampled import SampledEntries
from hpcHess.curvature.submatrix import PrincipalSubmatrix, checked_indices
from hpcHess.curvature.torch_job import torch_operator
from hpcHess.networks.network import Network
from hpcHess.networks.problem import load_problem, read_npy
from hpcHess.parallel.agree import on_root, together
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.jobfile import Job

KINDS = {"gauss-newton": GaussNewton, "fisher": Fisher, "mc-fisher": MonteCarloFisher, "opg": EmpiricalFisher, "hessian": Hessian}


@dataclass(frozen=True)
class Origin:
    """What an operator was made from.

    digests   of what was read, for the file's provenance: {"network_hash": …, "data_hash": …} or {"matrix_hash": …}; "parameters_hash"
    summary   for people
    fitted    the Network that the job had fitted, which no file holds; else None
    """

    digests: dict
    summary: str
    fitted: Network | None = None


def operator_from_job(job, comm, dtype=np.float64, network=None, progress=None, backend="auto"):
    """(operator, Origin) of a job, a network's on that backend; `network` given: not fitted again. Collective; raises InputError for bad input.

    Problem → kind, of curvature.layers → chosen samples (data.quadrature) → entries → curvature.parameters → l2. With data.quadrature the operator
    is that of the chosen samples: its `quadrature` says which and the error, its `full` is the operator on all of them, which the
    digests are of. Without, `quadrature` is None.
    """
    operator, origin = _whole_operator(job, comm, dtype, network, backend)
    if "matrix" in job.tables:
        return operator, origin
    asked = job["data"].get("quadrature")
    if asked is not None:
        chosen = quadrature(operator, **{"count" if isinstance(asked, int) else "rtol": asked}, progress=progress)
        operator = operator.reduced(chosen)
        origin = replace(origin, summary=f"{origin.summary}; {len(chosen.samples)} chosen and weighted, error {chosen.error:.2e}")
    return _with_parts(operator, origin, job)


def _whole_operator(job, comm, dtype, network, backend):
    """(operator on all samples, Origin) of all parameters or of curvature.layers. Collective."""
    if "matrix" in job.tables:
        operator = DenseMatrix(job.path("matrix", "file"), job["matrix"].get("n"), comm, dtype)
        return operator, Origin({"matrix_hash": operator.digest}, f"dense matrix {job['matrix']['file']}")
    if "torch" in job["network"]:
        operator, digests, summary = torch_operator(job, comm, dtype)
        return operator, Origin(digests, summary)
    problem, curvature = load_problem(job, comm, network), job["curvature"]
    options = {key: curvature[key] for key in ("draws", "seed")} if curvature["kind"] == "mc-fisher" else {}
    with together(comm):
        part = _chosen_layers(problem.network, curvature["layers"]) if "layers" in curvature else problem.network
    operator = KINDS[curvature["kind"]](part, problem.inputs, problem.targets, problem.weights, comm, dtype, backend, **options)
    digests = {"network_hash": problem.network_digest, "data_hash": problem.data_digest}
    summary = f"n = {operator.n_samples} samples, d = {operator.n_outputs} outputs"
    return operator, Origin(digests, summary, problem.network if "fit" in job["network"] else None)


def _chosen_layers(network, layers):
    """The network restricted to layers counted from 1, as job files count them."""
    wrong = next((each for each in layers if each > network.n_layers), None)
    if wrong is not None:
        raise InputError(f"curvature.layers must be of 1 … {network.n_layers}, the network's layers, not {wrong}")
    return network.restricted([each - 1 for each in layers])


def _with_parts(operator, origin, job):
    """(operator, Origin) with curvature.entries, curvature.parameters and curvature.l2. Collective."""
    comm, curvature, path = operator.comm, job["curvature"], job.path("curvature", "parameters")
    if curvature["entries"] == "sampled":
        operator = SampledEntries(operator, curvature["samples_per_entry"], curvature.get("entries_error", 0.1), curvature["seed"])
        origin = replace(origin, summary=f"{origin.summary}, entries from {operator.entry_draws or 'all'} samples a block")
    if path is not None:
        indices = on_root(comm, lambda: checked_indices(read_npy(path), operator.shape[0], path))
        digest = hashlib.sha256(np.ascontiguousarray(indices, "<i8").data).hexdigest()
        summary = f"{origin.summary}, {len(indices)} of {operator.shape[0]} parameters"
        operator, origin = PrincipalSubmatrix(operator, indices), replace(origin, digests=origin.digests | {"parameters_hash": digest}, summary=summary)
    if curvature["l2"]:
        operator, origin = Regularized(operator, curvature["l2"]), replace(origin, summary=f"{origin.summary}, l2 = {curvature['l2']:g}")
    return operator, origin


def files_of_matrix(matrix):
    """Names of the files that the job recorded in a factor file reads, a dataset's as file.h5:/name: not to be replaced. Not collective."""
    return Job.from_text(matrix.job_text, matrix.job_directory).files if matrix.job_text else []


def operator_of_matrix(matrix, dtype=np.float64, backend="auto"):
    """The uncompressed operator of the job recorded in a factor file, on all samples. Collective.

    Raises InputError with the reason where the files that it was made from are gone or have changed since.
    """
    if not matrix.job_text:
        raise InputError("the factor file records no job")
    return recorded_operator(matrix.comm, matrix.job_text, matrix.job_directory, matrix.network, matrix.provenance, dtype, backend)


def recorded_operator(comm, job_text, job_directory, network, provenance, dtype=np.float64, backend="auto"):
    """`operator_of_matrix` from what a factor file records: the job, a fitted network (arguments of `Network.from_arrays`, or None), digests."""
    job = on_root(comm, Job.from_text, job_text, job_directory)
    network = None if network is None else Network.from_arrays(**network)
    operator, origin = _whole_operator(job, comm, dtype, network, backend)
    if "matrix" not in job.tables:
        operator, origin = _with_parts(operator, origin, job)
    for key, digest in origin.digests.items():
        if provenance.get(key) != digest:
            raise InputError(f"the {key.removesuffix('_hash')} changed since the compression (their hashes differ): bring it back, or compress again")
    return operator
