"""The formats none and data-woodbury: made, read, registered."""

import json

import numpy as np

from hpcHess import backend as backends
from hpcHess.compressed.certificate import certify, exact_error, reported
from hpcHess.compressed.file import stored_network
from hpcHess.compressed.format import Format
from hpcHess.compressed.options import without_samples
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.from_job import recorded_operator
from hpcHess.factored.form import FactoredForm
from hpcHess.factored.matrix import FactoredMatrix, OperatorMatrix
from hpcHess.factored.predict import predict_data_woodbury, predict_none
from hpcHess.factored.woodbury import DataWoodbury, assembled, read_gram
from hpcHess.parallel.agree import tell
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.progress import Silent


def make_none(operator, rtol, seed=0, dtype="auto", probes=32, backend="auto", progress=None):
    """A `FactoredMatrix` of a network's operator, any other as an `OperatorMatrix`: exact. Collective.

    dtype   of the factored form; auto: that of the operator. In float32 of a float64 operator the rounding's error is certified by probes.
    """
    progress, kernels = Silent() if progress is None else progress, backends.get(backend)
    if not hasattr(operator, "samples"):
        matrix = OperatorMatrix(operator, kernels)
    else:
        matrix = FactoredMatrix(FactoredForm.of_operator(operator, kernels, _dtype(operator, dtype)), len(operator.alive))
    return _finished(matrix, operator, rtol, seed, probes, kernels, progress)


def make_data_woodbury(operator, rtol, seed=0, dtype="auto", probes=32, backend="auto", progress=None):
    """A `DataWoodbury` of a network's operator: exact. Collective. InputError for other operators, and beyond the memory.

    dtype   of the factored form, as of `make_none`; the Gram matrix is in float64
    """
    progress, kernels = Silent() if progress is None else progress, backends.get(backend)
    if not hasattr(operator, "samples"):
        raise InputError(f'format = "data-woodbury" needs a network and its samples: {without_samples(operator)}; use format = "dense" or "low-rank"')
    form = FactoredForm.of_operator(operator, kernels, _dtype(operator, dtype))
    with progress.phase("Gram matrix", form.n) as steps:
        gram = assembled(form, kernels, steps)
    return _finished(DataWoodbury(form, len(operator.alive), gram), operator, rtol, seed, probes, kernels, progress)


def _dtype(operator, dtype):
    return operator.dtype if dtype == "auto" else np.dtype(dtype)


def _finished(matrix, operator, rtol, seed, probes, kernels, progress):
    """The matrix with its report. Collective."""
    matrix.operator = operator
    with progress.phase("certificate"):
        norm, error, spectral = matrix.norm_frobenius(), exact_error(0.0), 0.0
        if matrix.dtype.itemsize < operator.dtype.itemsize:
            error, spectral = certify(matrix, operator, probes, seed)[0], None
        matrix.report = reported(matrix, error, rtol, norm, operator, seed, spectral)
    matrix.report |= {"backend": kernels.name, "timings": progress.timings.as_dict()}
    if not matrix.report["rtol_met"]:
        matrix.report["warnings"] = [f"rtol {rtol:g} not met: single precision has an error of {error.high:.3g}; use float64"]
    tell(matrix.comm, matrix.report["warnings"])
    return matrix


def read_none(file, backend):
    """The matrix in an open factor file. Collective. InputError where the file that it refers to is gone or has changed."""
    given = file.attributes
    if given.get("operator_job"):
        operator = recorded_operator(file.comm, given["job"], given["job_directory"], stored_network(file), json.loads(given["provenance"]))
        return OperatorMatrix(getattr(operator, "unregularized", operator), backend)
    if "operator_file" not in given:
        return FactoredMatrix(FactoredForm.read(file, backend), given["n_alive"])
    operator = DenseMatrix(given["operator_file"], int(given["n_params"]), file.comm, np.float64)
    if operator.digest != given["operator_digest"]:
        raise InputError(f"{given['operator_file']}, which {file.path} refers to, has changed since (their hashes differ)")
    matrix = OperatorMatrix(operator, backend)
    return matrix


def read_data_woodbury(file, backend):
    """The matrix in an open factor file. Collective."""
    form = FactoredForm.read(file, backend)
    return DataWoodbury(form, file.attributes["n_alive"], read_gram(form, file, backend))


def describe(summary):
    """What is kept."""
    if summary.get("operator_job"):
        yield "refers to   what its job reads (nothing else is stored)"
    elif "operator_file" in summary:
        yield f"refers to   {summary['operator_file']} (nothing else is stored)"
    else:
        yield f"samples     {summary['n_samples']:,}, their inputs, slopes and outputs (exact products)"
    if "gram_rows" in summary:
        yield f"solves      by the samples' Gram matrix of {summary['gram_rows']:,} rows"


NONE = Format(
    "none",
    "the exact factored form of the samples, nothing compressed",
    make_none,
    read_none,
    (),
    describe,
    predict_none,
    approximates=False,
    cheap=True,
)
DATA_WOODBURY = Format(
    "data-woodbury",
    "the same with exact solves in the data space",
    make_data_woodbury,
    read_data_woodbury,
    (),
    describe,
    predict_data_woodbury,
    approximates=False,
    cheap=True,
)
