"""The curvature operator that a job file describes, or that a factor file was made from."""

import numpy as np

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.networks.network import Network
from hpcHess.networks.problem import load_problem
from hpcHess.parallel.agree import on_root
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.jobfile import Job


def operator_from_job(job, comm, dtype=np.float64, network=None):
    """(operator, problem) of a job; `network` given: not fitted again. Collective; raises InputError for bad input."""
    problem = load_problem(job, comm, network)
    return GaussNewton(problem.network, problem.inputs, problem.targets, comm=comm, dtype=dtype), problem


def operator_of_matrix(matrix, dtype=np.float64):
    """The uncompressed operator of the job recorded in a factor file. Collective.

    Raises InputError with the reason where the network or the data are gone or have changed since.
    """
    if not matrix.job_text:
        raise InputError("the factor file records no job")
    job = on_root(matrix.comm, Job.from_text, matrix.job_text, matrix.job_directory)
    network = None
    if matrix.network is not None:
        network = Network.from_arrays(matrix.network["arrays"], matrix.network["activation"], matrix.network["loss"])
    operator, problem = operator_from_job(job, matrix.comm, dtype, network)
    for what, key, digest in (("network", "network_hash", problem.network_digest), ("data", "data_hash", problem.data_digest)):
        if matrix.provenance.get(key) != digest:
            raise InputError(f"the {what} changed since the compression (their hashes differ)")
    return operator
