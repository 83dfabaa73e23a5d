"""`hpcHess.compress`: one entry for all formats, their sums, the choice between them, and samples left out before."""

import warnings
from numbers import Integral, Real

import numpy as np

from hpcHess.compressed.certificate import Norm, certify, exact_error
from hpcHess.compressed.options import check_common
from hpcHess.compressed.regularized import RegularizedMatrix
from hpcHess.curvature.black_box import as_operator
from hpcHess.curvature.regularized import Regularized
from hpcHess.curvature.sampled import refuse_mixing
from hpcHess.formats.planner import check_memory, explained, facts_of, plan
from hpcHess.formats.registry import FORMATS, format_of
from hpcHess.formats.structured import compress_structured
from hpcHess.parallel.agree import tell
from hpcHess.parallel.memory import at_most
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import OBJECTIVES, ONLY, STRUCTURED, WORKLOADS
from hpcHess.runtime.progress import Silent

AUTO = "auto"


def compress(
    operator,
    rtol=1e-2,
    format="hss",
    *,
    seed=0,
    dtype="auto",
    probes=32,
    backend="auto",
    progress=None,
    structured="none",
    structured_size=0,
    objective="time",
    rhs_count=64,
    workload="solve",
    memory=0,
    **options,
):
    """H̃ with ‖H̃ − H‖_F ≤ rtol ‖H‖_F in a format of `formats.registry`, for an operator (docs/ARCHITECTURE.md, "Operators"), a SciPy LinearOperator, a PETSc Mat or
    a symmetric array (`curvature.black_box.as_operator`). Collective.

    rtol        relative to ‖H‖_F of the whole matrix; `report["error_estimate"]` says what was reached, `report["rtol_met"]` whether it was
    format      a name of `formats.registry.FORMATS`, or auto: predicted, chosen and explained by `formats.planner`
    seed        of all random numbers
    dtype       of what is stored: auto (float64 where rtol < 1e-5), float32, float64
    probes      fresh products of the certificate, where the error is not known exactly
    structured  of hss and fmm: low-rank or kronecker-sum, taken out before the tree; auto: where that stores less, by trial; `structured_size`
                eigenpairs or terms of a layer pair (0: the default of `formats.structured`)
    objective   of auto: time (compression + rhs_count × (apply or solve, by `workload`)) or storage
    memory      bytes that all ranks may take together, beyond the program and its data (about 0.3 GB a rank); 0: what their hosts have free. Blocks of
                products and the sketch are made to fit; where ranks are cut for it, a warning says so. What is predicted not to fit is refused before it
                starts; without `memory`, formats whose size takes a prediction (hss, fmm, low-rank, kronecker-sum) by name are not predicted first
    options     the other keys of [compress] (docs/JOBS.md); those of other formats have no effect. With auto, a network's distance = "parameter" (the
                default) gives way to "neuron"

    An operator of fewer samples (`curvature.quadrature`) is compressed to what its own error leaves of rtol; the certificate is of both errors, with
    products of all samples. Of a `curvature.regularized.Regularized` the matrix without l2·I is compressed, to rtol ‖H‖_F without it (stricter than with
    it for a semidefinite H), and the result is a `compressed.regularized.RegularizedMatrix`. Raises InputError for what is unknown, out of range, too large, or impossible for this operator.
    """
    check_common(rtol, seed, probes, dtype)
    _check_options(format, objective, structured, structured_size, memory, rhs_count, workload, options)
    progress = Silent() if progress is None else progress
    operator, l2 = as_operator(operator), 0.0
    if isinstance(operator, Regularized):
        operator, l2 = operator.unregularized, operator.l2
        progress.write(f"l2 = {l2:g} is added to what is compressed; rtol is relative to ‖H‖_F without it")
    _check_sampled(operator, format, structured, memory)
    common = {"seed": seed, "dtype": dtype, "probes": probes, "backend": backend, "progress": progress}
    if options.get("sampling") is None and format in ("hss", "fmm"):
        options["sampling"] = _sampling(operator, format, progress)
    if options.get("sampling") is None and format in ("hss", "fmm") and getattr(operator, "entry_draws", 0):
        progress.write('entries are sampled: sampling = "rows"')
        options["sampling"] = "rows"
    left = _left_of(rtol, getattr(operator, "quadrature", None))
    if left < rtol:
        progress.write(f"rtol {left:.3g} of {rtol:g} is left for the compression: the samples' own error is {operator.quadrature.error:.3g}")
    if format == AUTO and options.get("distance", "parameter") == "parameter" and hasattr(operator, "neuron_groups"):
        options["distance"] = "neuron"  # the default order is rarely the cheapest tree of a network
    facts = planned = None
    with at_most(operator.comm, memory):
        if format == AUTO or memory or FORMATS[format].cheap:
            with progress.phase("plan"):
                facts = facts_of(operator, left, dtype, rhs_count, workload, memory, options, seed)
                planned = plan(facts, objective) if format == AUTO else check_memory(format, facts)
        if format == AUTO:
            matrix = _smallest(planned, facts, operator, left, common, options)
        elif structured != "none" and format in ("hss", "fmm"):
            matrix = compress_structured(format_of(format), structured, structured_size, operator, left, common, _given(format, options))
        else:
            matrix = _made(format, planned, operator, left, common, options)
        if getattr(operator, "quadrature", None) is not None:
            with progress.phase("certificate of all samples"):
                _certify_both(matrix, operator, rtol, probes, seed)
    _check_finite(matrix)
    return RegularizedMatrix(matrix, l2) if l2 else matrix


def _check_sampled(operator, format, structured, memory):
    """InputError where predictions or a structured part would combine exact products with entries that are sampled (`curvature.sampled`)."""
    if format == AUTO:
        refuse_mixing(operator, 'format = "auto"', 'name a format (hss or fmm with sampling = "rows", dense, block-diagonal)')
    if structured != "none":
        refuse_mixing(operator, f'structured = "{structured}"', 'use structured = "none" with sampling = "rows"')
    if memory and format in ("hss", "fmm"):
        refuse_mixing(operator, f"the prediction of {format} for a given memory", "leave out the memory")


def _check_finite(matrix):
    """InputError where norms and the error, which saw all of H, are not finite: its products were not. Collective."""
    report = matrix.report
    numbers = [report["norm_frobenius"], report["lambda_max"], report["error_estimate"]["value"]]
    if not matrix.comm.bcast(bool(np.isfinite(numbers).all())):
        raise InputError(
            f"products with the operator are not finite, or too large for {matrix.dtype}: look for NaN in it, scale the network, the matrix or the data, "
            'or use dtype = "float64"'
        )


def _check_options(format, objective, structured, structured_size, memory, rhs_count, workload, options):
    """InputError for values and names that no format knows."""
    if format != AUTO:
        chosen = format_of(format)
        if chosen.compress is None:
            raise InputError(f"format = {format!r} is not asked for by name: it comes of format = \"hss\" with structured")
    for name, value, choices in (("objective", objective, OBJECTIVES), ("structured", structured, STRUCTURED), ("workload", workload, WORKLOADS)):
        if value not in choices:
            raise InputError(f"{name} must be {' or '.join(choices)}, not {value!r}")
    if structured != "none" and format not in ("hss", "fmm"):
        raise InputError(f'structured = "{structured}" goes with format = "hss" or "fmm", not with "{format}"')
    for name, value in (("structured_size", structured_size), ("memory", memory)):
        if not isinstance(value, Real) or not np.isfinite(value) or value < 0:
            raise InputError(f"{name} must be a number ≥ 0, not {value!r}")
    for name, (default, *formats) in ONLY.items():
        if options.get(name, default) != default and format not in (*formats, AUTO):
            raise InputError(f'{name} = {options[name]!r} is for format = "{formats[0]}", not "{format}"')
    if structured_size and structured == "none":
        raise InputError(f"structured_size = {structured_size} needs structured: low-rank, kronecker-sum or auto")
    if not isinstance(rhs_count, Integral) or not 1 <= rhs_count <= 10**15:
        raise InputError(f"rhs_count must be an integer of at least 1 (and at most 1e15), not {rhs_count!r}")
    known = {name for each in FORMATS.values() for name in each.options}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(f"unknown option {unknown[0]}: compress takes {', '.join(sorted(known))}")


def _sampling(operator, format, progress):
    """What skeletons are chosen from where nothing was asked for: what the operator allows; None: the format's default."""
    if hasattr(operator, "entries_batch"):
        if not getattr(operator, "entry_draws", 0):
            return None
        progress.write('entries are sampled, which exact products must not meet: sampling = "rows"')
        return "rows"
    if format == "fmm":
        raise InputError('format = "fmm" takes near blocks from entries, and this operator has none: use format = "hss" (or low-rank, dense, auto)')
    progress.write('this operator has no entries: sampling = "products"')
    return "products"


def _given(format, options):
    """The options that a format takes."""
    return {name: value for name, value in options.items() if name in FORMATS[format].options and value is not None}


def _made(format, prediction, operator, rtol, common, options):
    """The matrix in that format; what its prediction made is taken over."""
    prepared = {} if prediction is None or prediction.made is None else {"prepared": prediction.made}
    return FORMATS[format].compress(operator, rtol=rtol, **common, **_given(format, options), **prepared)


def _smallest(planned, facts, operator, rtol, common, options):
    """The first format of a `planner.Plan` that meets rtol; with objective = "storage" the smallest of those that may be. Collective."""
    explanation = list(explained(planned, facts))
    for line in explanation:
        common["progress"].write(line)
    tried, best, told, refused = {}, None, (), None
    for name in planned.order:
        if best is not None and best.report["rtol_met"] and not _may_be_smaller(planned, name, best):
            continue
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                matrix = _made(name, planned.predictions[name], operator, rtol, common, options)
        except InputError as error:  # the same on all ranks
            refused, tried[name] = error, {"refused": str(error)}
            common["progress"].write(f"auto: {name} is refused: {error}")
            continue
        report = matrix.report
        tried[name] = {"storage_percent": report["storage_percent"], "rtol_met": report["rtol_met"]}
        common["progress"].write(f"auto: {name} stores {report['storage_percent']:.4g} % of N²{'' if report['rtol_met'] else ', rtol not met'}")
        if best is None or _order(matrix) < _order(best):
            best, told = matrix, said
    if best is None:
        raise refused
    for each in told:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    best.report["plan"] = planned.as_dict() | {"tried": tried, "explanation": explanation, "chosen": best.format}
    best.report["timings"] = common["progress"].timings.as_dict()
    return best


def _order(matrix):
    """Matrices that meet rtol first, then by storage."""
    return not matrix.report["rtol_met"], matrix.report["storage_entries"]


def _may_be_smaller(planned, name, best):
    """Whether a rival of the first choice is still worth a try."""
    prediction = planned.predictions[name]
    return name in planned.rivals and prediction.entries / prediction.spread < best.report["storage_entries"]


def _left_of(rtol, quadrature):
    """The tolerance of the compression after a quadrature of the samples: (rtol − q) ‖H‖ / ‖H_q‖ with ‖H_q‖ ≤ (1 + q) ‖H‖."""
    if quadrature is None:
        return rtol
    if quadrature.error >= rtol:
        raise InputError(
            f"{len(quadrature.samples)} of {quadrature.n} samples have an error of {quadrature.error:.3g} already, which leaves nothing of rtol = "
            f"{rtol:g}: use more samples (data.quadrature), or raise rtol"
        )
    return (rtol - quadrature.error) / (1 + quadrature.error)


def _certify_both(matrix, operator, rtol, probes, seed):
    """The error against all samples in place of that against the chosen ones. Both are kept, their sum is a bound: the smaller upper end
    counts. Collective."""
    report, q = matrix.report, operator.quadrature
    inner, norm = report["error_estimate"], Norm(q.norm, q.norm, q.norm)  # known exactly
    bound = q.high + (1 + q.high) * inner["high"]
    if inner["high"] == 0:
        report["error_estimate"] = exact_error(q.error) | {"high": q.high, "exact": bool(q.high <= 1.01 * q.error)}
    else:
        found = certify(matrix, operator.full, probes, seed, "certificate of all samples", norm)[0].as_dict()
        report["error_estimate"] = found | {key: min(found[key], bound) for key in ("value", "low", "high")}
    report["quadrature"] = {"samples": len(q.samples), "of": q.n, "error": q.error, "compression": inner, "bound": bound}
    report["rtol"], report["norm_frobenius"] = float(rtol), norm.value
    report["rtol_met"] = bool(report["error_estimate"]["high"] <= rtol)
    if not report["rtol_met"]:
        reached = report["error_estimate"]
        line = f"rtol {rtol:g} not met with {len(q.samples)} of {q.n} samples: error {reached['value']:.3g}, at most {reached['high']:.3g}"
        report["warnings"].append(line)
        tell(matrix.comm, [line])
