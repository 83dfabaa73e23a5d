"""mpiexec -n P python -m hpcHess.multiply F.h5 --input V.npy --output U.npy: the product of a stored matrix with vectors."""

import argparse

import numpy as np

from hpcHess.curvature.from_job import files_of_matrix, operator_of_matrix
from hpcHess.formats.file import load
from hpcHess.runtime.errors import DONE
from hpcHess.runtime.session import run_driver
from hpcHess.storage.vectors import check_finite, check_output, read_rows, write_rows


def build_parser():
    """Arguments of the driver."""
    parser = argparse.ArgumentParser(prog="hpcHess.multiply", description=__doc__)
    parser.add_argument("factors", metavar="F.h5", help="factor file of hpcHess.compress")
    parser.add_argument("--input", required=True, metavar="V", help="V.npy or file.h5:/name, [N] or [N, k], PyTorch parameter order")
    parser.add_argument("--output", required=True, metavar="U", help="where to write the product, as --input")
    parser.add_argument("--exact", action="store_true", help="multiply with the uncompressed operator of the recorded job, in float64")
    parser.add_argument("--backend", default="auto", choices=("auto", "numpy", "native", "cupy"), help="array backend")
    return parser


def main(session, args):
    """U = H̃V, or HV with --exact. Collective."""
    comm = session.comm
    check_output(args.output, comm, args.input)
    with session.phase("read"):
        matrix = load(args.factors, comm, args.backend)
        check_output(args.output, comm, files=files_of_matrix(matrix))
        V, flat = read_rows(args.input, comm, matrix.n_params, "input")
    operator = matrix
    if args.exact:
        with session.phase("network and data"):
            operator = operator_of_matrix(matrix, backend=args.backend)
            V = V.astype(np.float64, copy=False)
    with session.phase("multiply"):
        U = operator.matmat_rows(V)
    check_finite(U, comm, "product")
    write_rows(args.output, comm, U, flat, matrix.n_params)
    return DONE


if __name__ == "__main__":
    run_driver("multiply", build_parser, main)
