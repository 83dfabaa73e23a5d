r"""K-FAC (Martens & Grosse, ICML 2015): A ⊗ S, A = E[κ], S = E[x̃ x̃ᵀ], for every layer, as if both were independent, and its exact error.

With weights w_i of the samples A = Σ w_i κ_i / Σ w_i is a mean, and S = Σ w_i x̃_i x̃_iᵀ carries the weight.

‖H − ⊕ A_ℓ ⊗ S_ℓ‖² = Σ_ℓ (‖R_ℓ‖² − 2 (1/n) Σ_i ⟨κ_i, A⟩⟨x̃_i x̃_iᵀ, S⟩ + ‖A‖²‖S‖²) + 2 Σ_{ℓ<ℓ'} ‖R_ℓℓ'‖².
"""

import numpy as np

from hpcHess.kronecker.spectra import summed
from hpcHess.parallel.agree import together


class Kfac:
    """The one term of a diagonal pair: `vectors()` → (coordinates of A [1, D], of S [1, D]) and `squared`, ‖R − A ⊗ S‖². Collective."""

    def __init__(self, pair, comm, mine, norm2):
        samples, n = pair.samples, float(pair.n)
        A, S, total = np.zeros((1, pair.kernels.D)), np.zeros((1, pair.inputs.D)), 0.0
        with together(comm):
            for block in pair.blocks(mine):
                weights = np.square(samples.inputs(0)[-1, block], dtype=np.float64)[:, None]  # n w_i, by which x̃_i x̃_iᵀ is scaled
                total += float(weights.sum())
                A += pair.kernels.combine(weights, block)
                S += pair.inputs.combine(np.ones((len(block), 1)), block)
        A, S = summed(comm, A) / (comm.allreduce(total) or 1.0), summed(comm, S) / n
        inner = 0.0
        with together(comm):
            for block in pair.blocks(mine):
                inner += float((pair.kernels.inner(A, block) * pair.inputs.inner(S, block)).sum(dtype=np.float64))
        self.A, self.S, self.norm2 = A, S, norm2
        self.squared = max(0.0, norm2 - 2 * comm.allreduce(inner) / n + float((A * A).sum() * (S * S).sum()))
