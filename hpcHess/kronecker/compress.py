"""Compression to a sum of Kronecker products: spectra of all layer pairs, the choice of terms, the terms, and the comparison with K-FAC."""

from dataclasses import dataclass

import numpy as np

from hpcHess import backend as backends
from hpcHess.compressed.certificate import exact_error, reported
from hpcHess.compressed.options import check_common, stored_dtype
from hpcHess.kronecker.kfac import Kfac
from hpcHess.kronecker.layers import layers_of
from hpcHess.kronecker.matrix import KroneckerSum
from hpcHess.kronecker.selection import grown, squared_error
from hpcHess.kronecker.sides import Inputs, Kernels
from hpcHess.kronecker.spectra import GRAM_SAMPLES, Pair, spectra_of
from hpcHess.kronecker.terms import Terms
from hpcHess.parallel.agree import tell
from hpcHess.parallel.shared import HostArray
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.progress import Silent

SINGLE_RTOL = 3e-3  # from here on the products of the randomized route are in the samples' precision, their sums in float64
_NUMBERS = 1 << 25  # of the coordinates of terms in the making


def compress_kronecker(operator, rtol=1e-2, seed=0, dtype="auto", probes=32, backend="auto", progress=None, terms="auto", prepared=None):
    """`KroneckerSum` with ‖H̃ − H‖_F ≤ rtol ‖H‖_F of a network's Gram-type curvature operator; the error is exact, not estimated. Collective.

    terms    "auto": as many as rtol needs, by error removed per number stored over all layer pairs; an integer K: the best K of every
             pair; "kfac": K-FAC itself, one term for every layer. rtol then only says what `report["rtol_met"]` is judged by
    seed     of the randomized decompositions (more than `spectra.GRAM_SAMPLES` samples)
    prepared (layers, spectra) of `analysed` where they are at hand
    `probes` has no effect. Raises InputError for an operator without layers.
    """
    check_common(rtol, seed, probes, dtype)
    terms = checked_terms(terms)
    if not hasattr(operator, "samples") or not hasattr(operator, "network"):
        raise InputError(
            'format = "kronecker-sum" needs a network\'s layers: this operator (a matrix from a file, or products alone) has none; '
            'use format = "hss" or "low-rank"'
        )
    comm, progress = operator.comm, Silent() if progress is None else progress
    kernels, dtype = backends.get(backend), stored_dtype(dtype, rtol)
    with progress.phase("singular values"):
        layers, spectra = prepared or analysed(operator, rtol, seed)
        kfac = [Kfac(each.pair, comm, operator.mine, each.norm2) if each.pair.times == 1 else None for each in spectra]
        chosen = _chosen(spectra, kfac, terms, rtol)
    with progress.phase("terms"):
        made = [_made(comm, each, count, dtype) for each, count in zip(chosen.sources, chosen.counts, strict=True)]
    matrix = KroneckerSum(comm, kernels, operator.n_params, dtype, layers, made)
    matrix.operator = operator
    with progress.phase("spectral norms"):
        matrix.report = reported(matrix, exact_error(chosen.error), rtol, chosen.norm, operator, seed)
    matrix.report |= {"terms": terms, "dtype": dtype.name, "backend": kernels.name, "comparison": _comparison(spectra, kfac, chosen, matrix)}
    matrix.report |= {"pairs": _table(spectra, chosen), "timings": progress.timings.as_dict()}
    matrix.report["warnings"] += _warnings(matrix, spectra, chosen, terms, rtol, dtype)
    tell(comm, matrix.report["warnings"])
    return matrix


def analysed(operator, rtol, seed=0):
    """(layers, spectra of all their pairs that are not zero). Collective."""
    layers = layers_of(operator)
    return layers, spectra_of(pairs_of(operator, layers, rtol), operator.comm, operator.mine, seed)


def checked_terms(terms):
    """"auto", "kfac" or a positive integer (also as a string); InputError for another."""
    if isinstance(terms, str) and terms in ("auto", "kfac"):
        return terms
    try:
        count = int(terms)
        if count < 1 or count != float(terms):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f'terms must be "auto", "kfac" or a positive integer, not {terms!r}') from None
    return count


def pairs_of(operator, layers, rtol):
    """The `Pair`s ℓ ≤ ℓ' that are not zero, their products in float64, or float32 where that is the samples' and rtol allows it. Not collective."""
    samples, found = operator.samples, []
    single = rtol >= SINGLE_RTOL and samples.dtype == np.float32 and samples.n > GRAM_SAMPLES
    precision = np.float32 if single else np.float64
    for a, one in enumerate(layers):
        for b, other in list(enumerate(layers))[a:]:
            kernels = Kernels(samples, a, b, one.rows, other.rows, precision)
            inputs = Inputs(samples, a, b, one.columns, other.columns, precision)
            pair = Pair((a, b), kernels, inputs, samples)
            if not pair.empty:
                found.append(pair)
    return found


@dataclass
class _Chosen:
    """`counts` of terms from the `sources` (spectra or K-FAC), the relative error and ‖H‖_F."""

    sources: list
    counts: list
    error: float
    norm: float


def _chosen(spectra, kfac, terms, rtol):
    """Collective where spectra grow."""
    norm2 = sum(each.pair.times * each.norm2 for each in spectra)
    if terms == "kfac":
        error2 = sum(2 * each.norm2 if own is None else own.squared for each, own in zip(spectra, kfac, strict=True))
        kept = [(each, own) for each, own in zip(spectra, kfac, strict=True) if own is not None]
        return _Chosen(kept, [1] * len(kept), _relative(error2, norm2), np.sqrt(norm2))
    if terms == "auto":
        counts, error = grown(spectra, rtol)
    else:
        for each in spectra:
            while len(each.values) < terms and each.grow():
                pass
        counts = [min(terms, len(each.values)) for each in spectra]
        error = _relative(squared_error(spectra, counts), norm2)
    return _Chosen([(each, None) for each in spectra], list(map(int, counts)), float(error), float(np.sqrt(norm2)))


def _relative(square, norm2):
    return float(np.sqrt(square / norm2)) if norm2 else 0.0


def _made(comm, source, count, dtype):
    """The `Terms` of a pair: A_k carries σ_k, S_k is of norm 1. Collective."""
    spectrum, kfac = source
    pair = spectrum.pair
    kernels, inputs = pair.kernels, pair.inputs
    step, left, right = max(1, _NUMBERS // (kernels.D + inputs.D)), None, HostArray(comm, (count, *inputs.shape), dtype)
    for lo in range(0, count, step):
        hi = min(count, lo + step)
        a, s = (kfac.A, kfac.S) if kfac else spectrum.vectors(lo, hi)
        A = kernels.unpack(a if kfac else a * spectrum.values[lo:hi, None])
        left = HostArray(comm, (count, *A.shape[1:]), dtype) if left is None else left
        if right.host_comm.rank == 0:
            left.array[lo:hi], right.array[lo:hi] = A, inputs.unpack(s)
    for each in (left, right) if count else ():
        each.fence()
    shared = None if kernels.shared is None else kernels.shared.astype(dtype)
    return Terms(pair.layers, kernels.kind, kernels.shape, np.zeros((0, 1), dtype) if left is None else left.array, right.array, shared)


def _comparison(spectra, kfac, chosen, matrix):
    """Error and storage of K-FAC, of the best one term a layer, of the best one term a pair, and of what was chosen."""
    norm2, n2 = chosen.norm**2, float(matrix.n_params) ** 2
    offered = [min(1, len(each.values)) for each in spectra]
    diagonal = [count * (each.pair.times == 1) for each, count in zip(spectra, offered, strict=True)]
    kfac2 = sum(2 * each.norm2 if own is None else own.squared for each, own in zip(spectra, kfac, strict=True))
    found = {"kfac": (_relative(kfac2, norm2), stored_numbers(spectra, diagonal))}
    for name, counts in (("one term a layer", diagonal), ("one term a pair", offered)):
        found[name] = _relative(squared_error(spectra, counts), norm2), stored_numbers(spectra, counts)
    found["this"] = chosen.error, matrix.report["storage_entries"]
    return {name: {"error": error, "storage_percent": 100.0 * numbers / n2} for name, (error, numbers) in found.items()}


def stored_numbers(spectra, counts):
    """Numbers of so many terms of every spectrum, what they share included."""
    return sum(count * each.pair.term_numbers() + bool(count) * each.pair.shared_numbers() for each, count in zip(spectra, counts, strict=True))


def _table(spectra, chosen):
    """A row a pair: layers, route, terms taken and offered, numbers, the error that is left of it, relative to ‖H‖_F."""
    taken = {id(source): (count, kfac) for (source, kfac), count in zip(chosen.sources, chosen.counts, strict=True)}
    rows = []
    for each in spectra:
        count, kfac = taken.get(id(each), (0, None))
        left = each.pair.times * (each.tails[count] if kfac is None else kfac.squared)
        row = {"layers": list(each.pair.layers), "route": each.route, "terms": int(count), "offered": len(each.values)}
        rows.append(row | {"numbers": stored_numbers([each], [int(count)]), "error": _relative(left, chosen.norm**2)})
    return rows


def _warnings(matrix, spectra, chosen, terms, rtol, dtype):
    """What kept the tolerance from being met."""
    error, rounding = chosen.error, float(np.finfo(dtype).eps)
    if dtype == np.float32 and rtol < 100 * rounding:
        yield f"rtol {rtol:g} is near the rounding of float32, in which the terms are stored: use float64"
    if error <= rtol:
        return
    if terms == "auto":
        grams = ", ".join(str(tuple(each.pair.layers)) for each in spectra if each.route != "explicit")
        yield (
            f"rtol {rtol:g} not met: error {error:.3g} with all terms; singular values below {1e-7:g} of the largest are rounding in the layer "
            f"pairs {grams}: raise rtol"
        )
    else:
        yield f'rtol {rtol:g} not met: error {error:.3g} with terms = {terms}; use more terms, or terms = "auto"'
