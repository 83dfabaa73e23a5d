"""Compression: tree, near blocks, sketch, skeletons, verification, and again with a tighter tolerance when the error is missed."""

import numpy as np

from hpcHess import backend as backends
from hpcHess.hierarchical.coarse import coarse_hss, missed
from hpcHess.compressed.certificate import extreme_eigenvalues
from hpcHess.compressed.options import check_common, stored_dtype
from hpcHess.curvature.sampled import noise_of, refuse_mixing
from hpcHess.hierarchical.error import spectral_error
from hpcHess.hierarchical.search import Search, first_samples, prepared
from hpcHess.parallel.agree import tell
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import SAMPLINGS, SOLVERS
from hpcHess.runtime.progress import Silent
from hpcHess.tree.auto import cheapest_tree
from hpcHess.tree.build import build_tree
from hpcHess.tree.interactions import most_near, near_by_votes, near_self
from hpcHess.tree.neighbours import nearest_neighbours


def compress(
    operator,
    rtol=1e-2,
    leaf_size=64,
    max_rank=0,
    distance="parameter",
    seed=0,
    dtype="auto",
    probes=32,
    backend="auto",
    progress=None,
    format="hss",
    budget=None,
    n_neighbors=32,
    sampling="sketch",
    solver="elimination",
    norm=None,
):
    """H̃ with ‖H̃ − H‖_F ≤ rtol ‖H‖_F for a curvature operator (docs/ARCHITECTURE.md, "Operators"). Collective.

    rtol         relative to ‖H‖_F of the whole matrix; verified by `probes` ≥ 32 fresh Gaussian products, accepted where the
                 upper end of the 95 % interval is ≤ rtol; `report["rtol_met"]` says whether it was reached
    leaf_size    upper bound of a leaf's parameters; max_rank: 0 for no bound
    distance     of the tree: angle, kernel, input, neuron, parameter, random (`tree.build.build_tree`), or auto: the one that `tree.auto`
                 predicts to store least (report: distance_predictions, % of N²)
    dtype        of what is stored: auto (float64 where rtol < 1e-5), float32, float64
    format       hss, or fmm: near lists by the votes of n_neighbors nearest neighbours, at most budget · #leaves (default
                 0.03) near leaves a leaf before symmetrization; hss is budget = 0
    sampling     what skeletons are chosen from: sketch, rows (entries alone), products (no entries, hss only)
    solver       form of the Woodbury factors that `factorize` makes: elimination, ulv, woodbury
    norm         the `certificate.Norm` that rtol refers to where that is not the operator's own: of what a `formats.remainder` is left of
    The allowed error is shared among the nodes by `hierarchical.tolerance`. Raises InputError for values out of range.
    """
    check_common(rtol, seed, probes, dtype)
    _check(leaf_size, max_rank)
    budget = _checked_format(operator, format, budget, n_neighbors, sampling, solver)
    _check_sampled(operator, sampling, distance)
    progress = Silent() if progress is None else progress
    kernels, dtype = backends.get(backend), stored_dtype(dtype, rtol)
    with progress.phase("tree"):
        asked_distance, predictions = distance, {}
        if distance == "auto":
            distance, tree, predictions = cheapest_tree(operator, leaf_size, seed, rtol)
        else:
            tree = build_tree(operator, leaf_size, distance, seed, rtol)
    near, neighbours = near_self(tree.depth), None
    if most_near(tree.depth, budget) > 1:
        with progress.phase("neighbours"):
            neighbours = nearest_neighbours(operator, n_neighbors, distance if distance == "kernel" else "angle", seed)
            near = near_by_votes(operator.comm, tree, neighbours.parameters, neighbours.lists, budget)
    samples = first_samples(sampling, operator, tree, neighbours, leaf_size, seed, progress)
    skeletonizer = prepared(operator, tree, near, samples, kernels, dtype, progress)
    search = Search(skeletonizer, rtol, max_rank, probes, progress, norm)
    best, error = search.certified()
    if best.matrix.format == "hss":  # an FMM matrix's preconditioner is made from the same samples
        samples.sketch.release()
    with progress.phase("spectral norms"):
        extremes = extreme_eigenvalues(best.matrix, operator, seed)
        spectral = spectral_error(best.matrix, operator, *search.probes)
    matrix, coarse = best.matrix, None
    if matrix.format == "fmm":
        with progress.phase("preconditioner"):
            coarse = coarse_hss(skeletonizer, matrix, rtol, search.norm, search.probes, max_rank)
    matrix.operator = operator
    asked = {"rtol": float(rtol), "leaf_size": int(leaf_size), "max_rank": int(max_rank), "seed": int(seed), "budget": budget}
    asked |= {"n_neighbors": int(n_neighbors), "sampling": sampling, "solver": solver, "distance_asked": asked_distance}
    chosen = {"distance": distance, "backend": kernels.name, "error_spectral": spectral} | extremes
    chosen["distance_predictions"] = {name: 100.0 * value / float(operator.shape[0]) ** 2 for name, value in predictions.items()}
    matrix.report = asked | chosen | _reached(best, error, search, coarse) | {"timings": progress.timings.as_dict()}
    matrix.report["warnings"] = _warnings(error, rtol, best, max_rank, search, budget) + list(missed(coarse.report) if coarse else ())
    tell(operator.comm, matrix.report["warnings"])
    return matrix


def _reached(best, error, search, coarse):
    """The part of the report that says what came of the search, storage included."""
    samples = search.skeletonizer.samples
    found = {
        "rtol_met": bool(error.high <= search.rtol),
        "error_estimate": error.as_dict(),
        "norm_frobenius": search.norm.value,
        "sketch_columns": samples.sketch.n_columns,
        "exact_products": samples.sketch.n_products,
        "attempts": search.attempts,
        "format": best.matrix.format,
        **best.storage,
    }
    if coarse:
        found["preconditioner"] = coarse.report
        found["preconditioner_percent"] = 100.0 * coarse.report["storage_entries"] / float(best.matrix.n_params) ** 2
    return found


def _check(leaf_size, max_rank):
    if leaf_size < 2:
        raise InputError(f"leaf_size must be at least 2, not {leaf_size}")
    if max_rank < 0:
        raise InputError(f"max_rank must be ≥ 0 (0: no bound), not {max_rank}")


def _checked_format(operator, format, budget, n_neighbors, sampling, solver):
    """The budget in effect; InputError for contradictory options."""
    for name, value, choices in (("format", format, ("hss", "fmm")), ("sampling", sampling, SAMPLINGS), ("solver", solver, SOLVERS)):
        if value not in choices:
            raise InputError(f"{name} must be {' or '.join(choices)}, not {value!r}")
    if budget is None:
        budget = 0.03 if format == "fmm" else 0.0
    if not 0 <= budget <= 1:
        raise InputError(f"budget must lie between 0 and 1, not {budget}")
    if format == "hss" and budget:
        raise InputError(f'budget = {budget} contradicts format = "hss": use format = "fmm"')
    if n_neighbors < 1:
        raise InputError(f"n_neighbors must be at least 1, not {n_neighbors}")
    if sampling == "products" and format != "hss":
        raise InputError('sampling = "products" compresses to format = "hss" only')
    if sampling != "products" and not hasattr(operator, "entries_batch"):
        raise InputError(f'this operator has no entries: sampling = "{sampling}" needs them, use sampling = "products"')
    return float(budget)


def _check_sampled(operator, sampling, distance):
    """InputError where exact products would meet entries that are sampled (`curvature.sampled`): rows use entries alone, products none."""
    if sampling == "sketch":
        refuse_mixing(operator, 'sampling = "sketch"', 'use sampling = "rows", which takes entries alone')
    if distance == "auto":
        refuse_mixing(operator, 'distance = "auto"', "name a distance")


def _warnings(error, rtol, best, max_rank, search, budget):
    """One line for everything that kept the tolerance from being met, or the matrix from being FMM."""
    found, saturation = [], best.saturation
    single = np.float32 in (best.matrix.dtype, search.skeletonizer.operator.dtype)
    if saturation.nodes:
        samples, worst = search.skeletonizer.samples, saturation.worst / (search.norm.value or 1)
        bound = f"max_rank = {max_rank}" if max_rank else f"what the memory allows ({samples.amount()})"
        found.append(
            f"rank saturation: {saturation.nodes} nodes on levels {sorted(saturation.levels)} reached {bound} before their tolerance "
            f"(largest remainder {f'{worst:.3g} ‖H‖_F' if np.isfinite(worst) else 'unknown, the samples are used up'})"
        )
    entries, n_alive = best.storage["storage_entries"], best.matrix.n_alive
    if best.matrix.tree.depth and entries >= n_alive * (n_alive + 1) // 2:
        why = "or leaf_size is too small" if best.matrix.format == "hss" else "is too small, or budget too large,"
        found.append(f"no compression: {entries:,} numbers, no fewer than the symmetric matrix has; rtol {rtol:g} {why} for it")
    if error.high > rtol:
        advice = "raise rtol"
        if saturation.nodes:
            advice = "raise max_rank" if max_rank else "use more hosts or ranks on other hosts, or raise rtol"
        elif single and rtol < 1e-5:
            advice = "single precision limits it: use float64"
        if search.skeletonizer.samples.by_entries:
            advice = noise_of(search.skeletonizer.operator, search.norm.value, rtol) or advice
        interval = f"{error.value:.3g} (95 % interval {error.low:.3g} … {error.high:.3g})"
        found.append(f"rtol {rtol:g} not met: error {interval} after {search.attempts} attempts; {advice}")
    depth = best.matrix.tree.depth
    if budget and depth and best.matrix.format == "hss":
        found.append(f"budget {budget:g} of {1 << depth} leaves: no leaf is near but the leaf itself, so this is an HSS matrix; raise budget")
    return found
