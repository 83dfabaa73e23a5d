"""What a Kronecker sum would cost: exactly, from the singular values, which the compression then takes over; of many samples from some of them."""

import numpy as np

from hpcHess.compressed.facts import ITERATIONS as CG_ITERATIONS
from hpcHess.compressed.format import Prediction
from hpcHess.curvature.quadrature import Quadrature
from hpcHess.kronecker.compress import aim, analysed, doubt_of, rounding_bound, stored_numbers
from hpcHess.kronecker.preconditioner import eliminable
from hpcHess.kronecker.selection import choose
from hpcHess.kronecker.spectra import GRAM_SAMPLES
from hpcHess.parallel.random import scramble

ROUGH, SAMPLES = 192, 2000  # samples that stand for all at first, and for more than GRAM_SAMPLES
ROUGH_SPREAD, SPREAD = 2.0, 1.3  # of predictions from them (docs/MATHEMATICS.md, "The choice of the format")
SAVED = {True: 0.15, False: 0.25}  # iterations with the last layers eliminated over those without: squared error, others (λ = 1e-3 λ_max)
EFFICIENCY = 0.25  # of the rate of large matrix products: terms are many and small, and Krylov vectors are float64 (measured)
APPLY = 0.5  # of an exact product, for that preconditioner


def predict_kronecker(facts):
    """Singular values of all layer pairs, of a few samples first, and the terms that rtol needs. Collective."""
    operator = facts.operator
    if not hasattr(operator, "samples"):
        return Prediction(refused="indefinite" if getattr(facts.operator, "indefinite", False) else "no layers")
    n = operator.n_samples

    def better():
        if n <= GRAM_SAMPLES:
            return _predicted(facts, operator, 1.0, "exact")
        return _predicted(facts, some_samples(operator, SAMPLES, facts.seed), SPREAD, f"from {SAMPLES} of the samples")

    if n <= ROUGH:
        return better()
    return _predicted(facts, some_samples(operator, ROUGH, facts.seed), ROUGH_SPREAD, f"from {ROUGH} of the samples", better)


def _predicted(facts, operator, spread, source, refine=None):
    prepared = analysed(operator, facts.rtol, facts.seed)
    spectra = prepared[1]
    dtype = np.dtype(np.float32 if facts.itemsize == 4 else np.float64)
    counts, error, _ = choose(spectra, aim(spectra, facts.rtol, dtype))
    reached = _reached(spectra, 0.0 if spread > 1 else error, dtype)
    entries, n = float(stored_numbers(spectra, counts)), facts.n_samples
    sizes = [each.pair.kernels.D + each.pair.inputs.D for each in spectra]
    flops = sum(count * _flops(each.pair) for each, count in zip(spectra, counts, strict=True))
    apply = facts.seconds_of(flops / EFFICIENCY, facts.itemsize * entries / 64)
    making = 2.0 * n * sum(count * size for count, size in zip(counts, sizes, strict=True))
    grams = 30.0 * len(spectra) * min(n, GRAM_SAMPLES) ** 3 * (spread > 1)
    return Prediction(
        entries=entries,
        memory=entries * (facts.itemsize + 8) + 32.0 * facts.comm.size * min(n, GRAM_SAMPLES) ** 2 + 64.0 * max(sizes, default=0),
        compress=facts.seconds_of(making + grams) + 32 * facts.product_seconds,
        apply=apply,
        solve=_solve_seconds(facts, apply),
        error=max(facts.rtol, reached),
        spread=spread,
        note=f"{int(np.sum(counts))} terms, {source}",
        refine=refine,
        effort=0.0 if refine is None else facts.seconds_of(100.0 * len(spectra) * min(n, GRAM_SAMPLES) ** 3),
        made=prepared if spread == 1 else None,
    )


def _reached(spectra, error, dtype):
    """The upper end of what is then reported: the terms left out, the digits of squared norms, and rounding to `dtype`."""
    doubt = doubt_of(spectra, sum(each.pair.times * each.norm2 for each in spectra))
    return float(np.sqrt(error**2 + doubt)) + rounding_bound(dtype)


def _solve_seconds(facts, apply):
    """CG with H̃, preconditioned by `preconditioner.Elimination` where there is one."""
    if not eliminable(facts.operator):
        return facts.seconds_of_cg(apply)
    saved = SAVED[bool(facts.operator.samples.loss.constant)]
    return facts.seconds_of_cg(apply, APPLY * facts.product_seconds, int(saved * CG_ITERATIONS))


def some_samples(operator, count, seed):
    """The operator of so many random samples of equal weight. Collective."""
    n = operator.n_samples
    chosen = np.sort(np.argsort(scramble(np.arange(n), seed), kind="stable")[:count])
    return operator.reduced(Quadrature(chosen, np.full(count, 1 / count), np.inf, np.nan, n))


def _flops(pair):
    """Of one term with one vector: the products from both sides."""
    (d, d2), (c, c2) = pair.kernels.shape, pair.inputs.shape
    return pair.times * 2.0 * min(d2 * c2 * c + d * d2 * c, d * d2 * c2 + d * c2 * c)
