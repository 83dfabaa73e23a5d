"""What a low-rank matrix would cost, from the spectrum that stochastic Lanczos sees."""

import numpy as np

from hpcHess.compressed.facts import ROUGH, THOROUGH
from hpcHess.compressed.format import Prediction

ROUGH_SPREAD, SPREAD = 3.0, 2.0  # measured, the larger at low ranks (docs/MATHEMATICS.md, "The choice of the format")
NOISY, NOISY_SPREAD = 3e-4, 8.0  # rtol below which rounding of single precision products counts as eigenvalues
MARGIN = 3  # of the rank: the certificate must be met, not the mean
COLUMNS = 1.4  # of the Krylov space over the rank


def predict_low_rank(facts):
    """r by `Facts.rank`: n r − r(r − 1)/2 numbers; first from few Lanczos steps. Collective."""
    return _predicted(facts, ROUGH, ROUGH_SPREAD, lambda: _predicted(facts, THOROUGH, SPREAD))


def _predicted(facts, amount, spread, refine=None):
    n, rank = facts.n_alive, facts.rank(facts.rtol, amount)
    rank = min(n, int(np.ceil(1.05 * rank + MARGIN)))
    if facts.operator.dtype == np.float32 and facts.rtol < NOISY:
        spread = max(spread, NOISY_SPREAD)
    bound = facts.options.get("max_rank", 0)
    if bound and rank / spread > bound:
        return Prediction(refused=f"rank {rank} is needed, max_rank = {bound}")
    entries, columns = n * rank - rank * (rank - 1) / 2.0, COLUMNS * rank + 32
    basis = columns * facts.n_params * facts.operator.dtype.itemsize
    return Prediction(
        entries=entries,
        memory=(2.0 + spread) * basis + entries * facts.itemsize + 3 * 8.0 * facts.comm.size * columns**2,
        compress=columns * facts.product_seconds + facts.seconds_of(8.0 * n * columns**2 + 10.0 * facts.comm.size * columns**3),
        apply=facts.seconds_of_vector(entries),
        solve=facts.seconds_of_vector(entries),
        error=facts.rtol,
        spread=spread,
        note=f"rank {rank}",
        refine=refine,
        effort=1.5 * THOROUGH[0] * THOROUGH[1] * facts.product_seconds,
    )
