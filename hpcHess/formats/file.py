"""Reading a compressed matrix of any format from its factor file (docs/FORMAT.md)."""

import json

from hpcHess import backend as backends
from hpcHess.compressed.file import stored_network
from hpcHess.compressed.regularized import RegularizedMatrix
from hpcHess.formats.registry import FORMATS
from hpcHess.runtime.errors import InputError
from hpcHess.storage.factor_file import FactorFile


def load(path, comm=None, backend="auto", verify=True):
    """The matrix in a factor file, on any number of ranks and of any format; COMM_WORLD by default. Collective.

    `.report`, `.provenance`, `.job_text`, `.job_directory`, `.network` (a dict of arrays with activation and loss where the job fitted the
    network, else None) are those of the file; stored factors are installed. Raises InputError for anything but a complete,
    intact factor file of a known version and format.
    """
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    kernels = backends.get(backend)
    with FactorFile(path, comm, verify=verify) as file:
        given = file.attributes
        if given["matrix_format"] not in FORMATS:
            raise InputError(f"{file.path} holds the format {given['matrix_format']!r}, which this version does not read")
        matrix = FORMATS[given["matrix_format"]].read(file, kernels)
        report = json.loads(given["report"])
        if "l2" in given:
            matrix = RegularizedMatrix.read(matrix, given["l2"], report)
        matrix.report, matrix.network = report, stored_network(file)
        matrix.provenance, matrix.job_text, matrix.job_directory = json.loads(given["provenance"]), given["job"], given["job_directory"]
    return matrix
