"""A structured part before the tree: H̃ = S + (H − S)~, S a few eigenpairs or a few Kronecker terms a layer pair."""

import numpy as np

from hpcHess import backend as backends
from hpcHess.compressed.certificate import ErrorEstimate, certify, reported
from hpcHess.compressed.options import stored_dtype, without_samples
from hpcHess.formats.remainder import Remainder
from hpcHess.formats.sum import SumMatrix
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.lowrank.leading import leading
from hpcHess.runtime.errors import InputError

SIZES = {"low-rank": 32, "kronecker-sum": 1}  # eigenpairs; terms of every layer pair
_ANY = 0.999  # rtol of a part whose size is given: what is left of H is the tree's


def compress_structured(chosen, structured, size, operator, rtol, common, options):
    """S + the `chosen` format (a `Format`, hss or fmm) of H − S, with ‖H̃ − H‖_F ≤ rtol ‖H‖_F; auto: the smallest of the sums that this operator
    allows and the format alone, all made (report: `structured_tried`). Collective. InputError where the operator has no such part.
    """
    if structured != "auto":
        return _with_part(chosen, structured, size, operator, rtol, common, options)
    tried = {"none": chosen.compress(operator, rtol=rtol, **common, **options)}
    for name in SIZES:
        if name != "kronecker-sum" or hasattr(operator, "samples"):
            tried[name] = _with_part(chosen, name, size, operator, rtol, common, options)
    for name, each in tried.items():
        common["progress"].write(f"structured = {name}: {each.report['storage_percent']:.4g} % of N²{'' if each.report['rtol_met'] else ', rtol not met'}")
    best = min(tried.values(), key=lambda each: (not each.report["rtol_met"], each.report["storage_entries"]))
    best.report["structured_tried"] = {name: each.report["storage_percent"] for name, each in tried.items()}
    return best


def _with_part(chosen, structured, size, operator, rtol, common, options):
    progress, seed = common["progress"], common["seed"]
    with progress.phase("structured part"):
        part = _part(structured, size or SIZES[structured], operator, rtol, common)
        error, norm = certify(part, operator, common["probes"], seed, "structured part")
    if error.high <= rtol:
        progress.write(f"the {structured} part alone has an error of {error.value:.3g}: no tree is needed")
        part.report |= _report(part, error, rtol, norm, operator, seed, progress)
        return part
    rest = chosen.compress(Remainder(operator, part), rtol=rtol, norm=norm, **common, **options)
    matrix = SumMatrix([part, rest])
    matrix.operator = operator
    inner = rest.report
    reached = ErrorEstimate(**inner["error_estimate"])
    matrix.report = _report(matrix, reached, rtol, norm, operator, seed, progress, inner["error_spectral"])
    matrix.report |= {"structured": structured, "structured_error": error.value, "solver": inner.get("solver"), "warnings": inner["warnings"]}
    matrix.report |= {"exact_products": inner.get("exact_products", 0), "norm_remainder": float(error.value * norm.value)}
    return matrix


def _part(structured, size, operator, rtol, common):
    dtype = stored_dtype(common["dtype"], rtol)
    if structured == "kronecker-sum":
        if not hasattr(operator, "samples"):
            raise InputError(f'structured = "kronecker-sum" needs a network\'s layers and samples: {without_samples(operator)}; use structured = "low-rank"')
        return compress_kronecker(operator, _ANY, common["seed"], dtype.name, common["probes"], common["backend"], terms=int(size))
    return leading(operator, int(size), common["seed"], dtype, backends.get(common["backend"]))


def _report(matrix, error, rtol, norm, operator, seed, progress, spectral=None):
    found = reported(matrix, error, rtol, norm.value, operator, seed, spectral)
    return found | {"timings": progress.timings.as_dict(), "dtype": np.dtype(matrix.dtype).name}
