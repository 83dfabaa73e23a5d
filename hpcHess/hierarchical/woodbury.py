"""Solver `woodbury`: the plain Sherman–Morrison–Woodbury formula (Martinsson & Rokhlin, JCP 2005), to be compared with.

D̂ = (UᵀD⁻¹U)⁻¹, G = D⁻¹ − D⁻¹UD̂UᵀD⁻¹ (`backend.correction`) is a difference of numbers of size 1/λ and needs a regular D: digits are lost like
1/λ. `backward_error` tells how many are left, and a warning where they are few.
"""

from hpcHess.hierarchical.factors import Factors
from hpcHess.runtime.errors import InputError


class Woodbury(Factors):
    """Factors of H̃ + λI by the formula as textbooks write it."""

    solver = "woodbury"
    signed = False

    @staticmethod
    def _step(backend, A, order, T, _state, delay):
        return backend.correct(A.whole(backend), order, T)

    @staticmethod
    def _singular(damping):
        return InputError(
            f"the plain Woodbury formula meets a block that is singular to working precision at damping {damping:g}: use a larger "
            "damping, or the solver elimination"
        )
