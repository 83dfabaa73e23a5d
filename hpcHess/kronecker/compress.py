"""Compression to a sum of Kronecker products: spectra of all layer pairs, the choice of terms, the terms, and the comparison with K-FAC."""

from dataclasses import dataclass

import numpy as np

from hpcHess import backend as backends
from hpcHess.compressed.certificate import exact_error, reported
from hpcHess.compressed.options import check_common, stored_dtype, without_samples
from hpcHess.kronecker.kfac import Kfac
from hpcHess.kronecker.layers import layers_of
from hpcHess.kronecker.matrix import KroneckerSum
from hpcHess.kronecker.selection import grown, squared_error
from hpcHess.kronecker.sides import Inputs, Kernels
from hpcHess.kronecker.spectra import GRAM_SAMPLES, Pair, difference_of_squares, spectra_of
from hpcHess.kronecker.terms import Terms
from hpcHess.parallel.agree import tell
from hpcHess.parallel.shared import HostArray
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.progress import Silent

SINGLE_RTOL = 3e-3  # from here on the products of the randomized route are in the samples' precision, their sums in float64
ORTHOGONAL = 1.1  # factor for terms that are orthogonal to a few digits only
_NUMBERS = 1 << 25  # of the coordinates of terms in the making


def compress_kronecker(operator, rtol=1e-2, seed=0, dtype="auto", probes=32, backend="auto", progress=None, terms="auto", prepared=None):
    """`KroneckerSum` with ‖H̃ − H‖_F ≤ rtol ‖H‖_F of a network's Gram-type curvature operator; the error is exact, not estimated: `high` of it
    includes what rounding the terms to `dtype` may have added, and the digits of differences of squares. Collective.

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
            f'format = "kronecker-sum" needs a network\'s layers and samples: {without_samples(operator)}; use format = "hss" or "low-rank"'
        )
    comm, progress = operator.comm, Silent() if progress is None else progress
    kernels, dtype = backends.get(backend), stored_dtype(dtype, rtol)
    with progress.phase("singular values"):
        layers, spectra = prepared or analysed(operator, rtol, seed)
        kfac = [Kfac(each.pair, comm, operator.mine, each.norm2) if each.pair.times == 1 else None for each in spectra]
        chosen = _chosen(spectra, kfac, terms, rtol, dtype)
    with progress.phase("terms"):
        made = [_made(comm, each, count, dtype) for each, count in zip(chosen.sources, chosen.counts, strict=True)]
    matrix = KroneckerSum(comm, kernels, operator.n_params, dtype, layers, [terms_of_pair for terms_of_pair, _ in made])
    matrix.operator, rounding = operator, _rounding(chosen, [each for _, each in made])
    with progress.phase("spectral norms"):
        matrix.report = reported(matrix, _estimate(chosen, *rounding), rtol, chosen.norm, operator, seed)
    matrix.report |= {"terms": terms, "dtype": dtype.name, "backend": kernels.name, "comparison": _comparison(spectra, kfac, chosen, matrix)}
    matrix.report |= {"pairs": _table(spectra, chosen), "timings": progress.timings.as_dict()}
    matrix.report["warnings"] += _warnings(matrix.report, spectra, chosen, terms, rtol, dtype)
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
    """`counts` of terms from the `sources` (spectrum, its K-FAC or None), the relative error, how well its square is known, and ‖H‖_F."""

    sources: list
    counts: list
    error: float
    doubt: float
    norm: float


def _chosen(spectra, kfac, terms, rtol, dtype):
    """Collective where spectra grow."""
    norm2 = sum(each.pair.times * each.norm2 for each in spectra)
    if terms == "kfac":
        error2 = sum(2 * each.norm2 if own is None else own.squared for each, own in zip(spectra, kfac, strict=True))
        kept = [(each, own) for each, own in zip(spectra, kfac, strict=True) if own is not None]
        return _Chosen(kept, [1] * len(kept), _relative(error2, norm2), doubt_of([each for each, _ in kept], norm2, True), np.sqrt(norm2))
    if terms == "auto":
        counts, error = grown(spectra, aim(spectra, rtol, dtype))
    else:
        for each in spectra:
            while len(each.values) < terms and each.grow():
                pass
        counts = [min(terms, len(each.values)) for each in spectra]
        error = _relative(squared_error(spectra, counts), norm2)
    sources = [(each, None) for each in spectra]
    return _Chosen(sources, list(map(int, counts)), float(error), doubt_of(spectra, norm2), float(np.sqrt(norm2)))


def doubt_of(spectra, norm2, always=False):
    """What squares of the relative error are known to: those of the spectra, or (always) `DOUBT` ε ‖R‖² of all, relative to ‖H‖²."""
    found = sum(each.pair.times * (difference_of_squares(each.pair, each.norm2) if always else each.doubt) for each in spectra)
    return float(found / norm2) if norm2 else 0.0


def rounding_bound(dtype):
    """Of ‖H̃ − H‖_F / ‖H‖_F by rounding the terms from float64: three factors (S_k, v_k, shared) at most, half an ε each."""
    return 0.0 if np.dtype(dtype) == np.float64 else 1.5 * ORTHOGONAL * float(np.finfo(dtype).eps)


def aim(spectra, rtol, dtype):
    """The error that the choice of terms may leave, so that all of it stays ≤ rtol; rtol itself where that is out of reach."""
    rest = rtol - rounding_bound(dtype)
    square = rest**2 - doubt_of(spectra, sum(each.pair.times * each.norm2 for each in spectra))
    return float(np.sqrt(square)) if rest > 0 and square > 0 else rtol


def _rounding(chosen, each):
    """(root of the sum of squares, bound) of what rounding took off the terms of all pairs, relative to ‖H‖_F."""
    squares = np.zeros(2)
    for (spectrum, _), found in zip(chosen.sources, each, strict=True):
        squares += spectrum.pair.times * np.square(found)
    return tuple(np.sqrt(squares) / chosen.norm) if chosen.norm else (0.0, 0.0)


def _estimate(chosen, typical, bound):
    """`error_estimate`: terms left out and rounding are nearly orthogonal, in the interval they add up; `exact` where that is 1 %."""
    square = chosen.error**2
    value, high = np.hypot(chosen.error, typical), np.sqrt(square + chosen.doubt) + bound
    low = max(0.0, np.sqrt(max(0.0, square - chosen.doubt)) - bound)
    return exact_error(value) | {"low": float(low), "high": float(high), "exact": bool(high <= 1.01 * value)}


def _relative(square, norm2):
    return float(np.sqrt(square / norm2)) if norm2 else 0.0


def _made(comm, source, count, dtype):
    """(`Terms` of a pair, what rounding them took off: as of `_lost`): A_k carries σ_k, S_k is of norm 1. Collective."""
    spectrum, kfac = source
    pair = spectrum.pair
    kernels, inputs = pair.kernels, pair.inputs
    step, left, right = max(1, _NUMBERS // (kernels.D + inputs.D)), None, HostArray(comm, (count, *inputs.shape), dtype)
    shared, sizes = None if kernels.shared is None else kernels.shared.astype(dtype), [np.zeros((4, 0))]
    for lo in range(0, count, step):
        hi = min(count, lo + step)
        a, s = (kfac.A, kfac.S) if kfac else spectrum.vectors(lo, hi)
        A, S = kernels.unpack(a if kfac else a * spectrum.values[lo:hi, None]), inputs.unpack(s)
        left = HostArray(comm, (count, *A.shape[1:]), dtype) if left is None else left
        if right.host_comm.rank == 0:
            left.array[lo:hi], right.array[lo:hi] = A, S
            sizes.append(np.stack([*_left_norms(kernels, A, left.array[lo:hi], shared), *_norms(S, right.array[lo:hi])]))
    for each in (left, right) if count else ():
        each.fence()
    terms = Terms(pair.layers, kernels.kind, kernels.shape, np.zeros((0, 1), dtype) if left is None else left.array, right.array, shared)
    return terms, comm.bcast(_lost(*np.concatenate(sizes, axis=1)))


def _norms(A, kept):
    """(‖A_k‖, ‖A_k − what is kept of it‖), [k] each."""
    return [np.sqrt(np.square(each, dtype=np.float64).reshape(len(A), -1).sum(axis=1)) for each in (A, A - kept)]


def _left_norms(kernels, A, kept, shared):
    """The same of A_k = diag(v_k) G (`scaled`; a bound), a_k I (`identity`), diag(v_k) (`diagonal`) or A_k."""
    if kernels.kind != "scaled":
        return [each * (np.sqrt(kernels.shape[0]) if kernels.kind == "identity" else 1.0) for each in _norms(A, kept)]
    size, lost = _norms(kernels.shared, shared)
    return np.linalg.norm(A * size, axis=1), np.linalg.norm(np.abs(A - kept) * size + np.abs(kept) * lost, axis=1)


def _lost(A, dA, S, dS):
    """(root of the sum of squares, bound) of ‖Σ_k A_k ⊗ S_k − fl(A_k) ⊗ fl(S_k)‖_F from the norms of A_k, δA_k, S_k, δS_k.

    The sum is Σ δA_k ⊗ S_k + Σ A_k ⊗ δS_k − Σ δA_k ⊗ δS_k; in the first the S_k are orthogonal, in the second the A_k (or K = 1).
    """
    one, two = np.linalg.norm(dA * S), np.linalg.norm(A * dS)
    return float(np.hypot(one, two)), float(ORTHOGONAL * (one + two + dA @ dS))


def _comparison(spectra, kfac, chosen, matrix):
    """Error and storage of K-FAC, of the best one term a layer, of the best one term a pair, and of what was chosen."""
    norm2, n2 = chosen.norm**2, float(matrix.n_params) ** 2
    offered = [min(1, len(each.values)) for each in spectra]
    diagonal = [count * (each.pair.times == 1) for each, count in zip(spectra, offered, strict=True)]
    kfac2 = sum(2 * each.norm2 if own is None else own.squared for each, own in zip(spectra, kfac, strict=True))
    found = {"kfac": (_relative(kfac2, norm2), stored_numbers(spectra, diagonal))}
    for name, counts in (("one term a layer", diagonal), ("one term a pair", offered)):
        found[name] = _relative(squared_error(spectra, counts), norm2), stored_numbers(spectra, counts)
    found["this"] = matrix.report["error_estimate"]["value"], matrix.report["storage_entries"]
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


def _warnings(report, spectra, chosen, terms, rtol, dtype):
    """What kept the tolerance from being met."""
    error, rounding = report["error_estimate"]["high"], float(np.finfo(dtype).eps)
    if dtype == np.float32 and rtol < 100 * rounding:
        yield f"rtol {rtol:g} is near the rounding of float32, in which the terms are stored: use float64"
    if error <= rtol:
        return
    if chosen.error <= rtol:
        yield (
            f"rtol {rtol:g} not met: error up to {error:.3g}; the terms left out are {chosen.error:.3g}, but rounding to {dtype.name} and the digits "
            f"of squared norms ({np.sqrt(chosen.doubt):.1g}) are not below rtol: {'use float64' if dtype == np.float32 else 'raise rtol'}"
        )
    elif terms == "auto":
        grams = ", ".join(str(tuple(each.pair.layers)) for each in spectra if each.route != "explicit")
        yield (
            f"rtol {rtol:g} not met: error {error:.3g} with all terms; singular values below {1e-7:g} of the largest are rounding in the layer "
            f"pairs {grams}: raise rtol"
        )
    else:
        yield f'rtol {rtol:g} not met: error {error:.3g} with terms = {terms}; use more terms, or terms = "auto"'
