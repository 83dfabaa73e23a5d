"""What a Kronecker sum would cost: exactly, from the singular values, which the compression then takes over; of many samples from some of them."""

import numpy as np

from hpcHess.compressed.format import Prediction
from hpcHess.curvature.quadrature import Quadrature
from hpcHess.kronecker.compress import analysed, stored_numbers
from hpcHess.kronecker.selection import choose
from hpcHess.kronecker.spectra import GRAM_SAMPLES
from hpcHess.parallel.random import scramble

SAMPLES = 2000  # that stand for more than GRAM_SAMPLES
SPREAD = 1.3  # of a prediction from them (docs/MATHEMATICS.md, "The choice of the format")
ITERATIONS = 75  # of CG with the leading terms as preconditioner, at λ = 1e-3 λ_max


def predict_kronecker(facts):
    """Singular values of all layer pairs, and the terms that rtol needs. Collective."""
    operator = facts.operator
    if not hasattr(operator, "samples"):
        return Prediction(refused="no layers")
    all_of_them = operator.n_samples <= GRAM_SAMPLES
    prepared = analysed(operator if all_of_them else some_samples(operator, facts.seed), facts.rtol, facts.seed)
    layers, spectra = prepared
    counts, error, _ = choose(spectra, facts.rtol)
    entries = float(stored_numbers(spectra, counts))
    flops = sum(count * _flops(each.pair) for each, count in zip(spectra, counts, strict=True))
    apply = facts.seconds_of(flops, facts.itemsize * entries / 64)
    widest = max((each.pair.kernels.D + each.pair.inputs.D for each in spectra), default=0)
    making = 2.0 * operator.n_samples * sum(count * (each.pair.kernels.D + each.pair.inputs.D) for each, count in zip(spectra, counts, strict=True))
    inverse = sum(4.0 * d * c * (d + c) for d, c in (layer.shape for layer in layers))
    return Prediction(
        entries=entries,
        memory=entries * (facts.itemsize + 8) + 8.0 * facts.comm.size * 4 * min(operator.n_samples, GRAM_SAMPLES) ** 2 + 64.0 * widest,
        compress=facts.seconds_of(making) + 4 * 8 * facts.product_seconds,
        apply=apply,
        solve=facts.seconds_of_cg(apply, facts.seconds_of(inverse), ITERATIONS),
        error=facts.rtol if error <= facts.rtol else float(error),
        spread=1.0 if all_of_them else SPREAD,
        note=f"{int(np.sum(counts))} terms" + ("" if all_of_them else f", from {SAMPLES} of the samples"),
        made=prepared if all_of_them else None,
    )


def some_samples(operator, seed):
    """The operator of `SAMPLES` random samples of equal weight. Collective."""
    n = operator.n_samples
    chosen = np.sort(np.argsort(scramble(np.arange(n), seed), kind="stable")[:SAMPLES])
    return operator.reduced(Quadrature(chosen, np.full(SAMPLES, 1 / SAMPLES), np.inf, np.nan, n))


def _flops(pair):
    """Of one term with one vector: the products from both sides."""
    (d, d2), (c, c2) = pair.kernels.shape, pair.inputs.shape
    return pair.times * 2.0 * min(d2 * c2 * c + d * d2 * c, d * d2 * c2 + d * c2 * c)
