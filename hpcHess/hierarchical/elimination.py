"""Solver `elimination`: telescoping interpolative elimination, stable at small λ and for indefinite matrices.

With P = [I T] every node eliminates its redundant rows by a congruence of unit determinant (`backend.elimination`): no QR, no difference of
numbers of size 1/λ. The default.
"""

from hpcHess.hierarchical.factors import Factors


class InterpolativeElimination(Factors):
    """Factors of H̃ + λI by interpolative elimination."""

    solver = "elimination"

    @staticmethod
    def _step(backend, A, order, T, _state, delay):
        return backend.eliminate_assembled(A, order, T, delay)
