r"""A definite preconditioner for H + λI that eliminates the last layers exactly.

The layers of a network are strongly coupled: what one layer's block of H holds, others' nearly cancel, so that block-diagonal preconditioners, K-FAC
among them, may need more iterations than none. With E the last layers and R the ones before,

    M = [I  H_RE P⁻¹] [D   ] [I         ]        P = H_EE + λI,   D = λI + Q ⊗ T ≈ H_RR + λI − H_RE P⁻¹ H_ER,
        [0      I   ] [   P] [P⁻¹H_ER  I]

exact but for D, and positive definite whatever D ≥ λI is: M⁻¹H has the eigenvalue 1 on E, the others are those of D⁻¹ times the Schur complement. E is

* the last layers that have at most `DENSE` parameters together: P by its eigendecomposition;
* else squared error's last layer, whose block is exactly I ⊗ S (S = (2/n) Σ h̃h̃ᵀ): all its outputs' many large eigenvalues at once;
* or the last layer of a loss with Q = diag(q) (binary cross-entropy), whose block is ⊕_p S_p, S_p = (1/n) Σ q_p h̃h̃ᵀ for every output p.

Q ⊗ T is the Schur complement's best Kronecker product (`precondition_schur`), made nonnegative, where E is squared error's last layer and R the one
before it; else D = λI. Layers that are constant (`Network.restricted`) have no parameters in E or R. Cf. the block tridiagonal approximation of Martens & Grosse, ICML 2015, §4.3, and variable projection (Golub & Pereyra 1973).
"""

import numpy as np

from hpcHess.kronecker.precondition_schur import NUMBERS, Complement
from hpcHess.kronecker.precondition_sweeps import Sweeps, layer_sizes
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.replicated import replicated

DENSE = 2048  # parameters
BLOCKS = 1 << 24  # numbers in all S_p
NEGLIGIBLE = 3e-2  # of λ: eigenvalues of Q ⊗ T below are left out of D, columns of T's eigenvectors at a time


def eliminable(operator):
    """Whether H has last layers to eliminate: a network's operator with samples, a small last layer or one whose outputs do not couple. Not collective."""
    return getattr(operator, "samples", None) is not None and _last_layers(operator) is not None


def _last_layers(operator, dense=DENSE):
    """(first layer of E, a chosen one, whether P is dense); None where there is no E."""
    sizes = layer_sizes(operator.network)
    first = len(sizes) - int(np.sum(np.cumsum(sizes[::-1]) <= dense))
    if any(sizes[first:]):
        return next(layer for layer in range(first, len(sizes)) if sizes[layer]), True
    samples, last = operator.samples, len(sizes) - 1
    by_outputs = samples.q is not None and samples.widths[-1] * len(samples.parameter_inputs(last)) ** 2 <= BLOCKS
    return (last, False) if sizes[-1] and (samples.loss.constant or by_outputs) else None


class Elimination:
    """What the preconditioners of all λ share: eigendecompositions of E's block (or of its blocks), the sweeps, the Schur complement's T_k. Collective.

    dtype    in which all but the eigendecompositions is computed
    dense    most parameters of the layers whose block is factored as it is
    """

    def __init__(self, operator, dtype=np.float32, dense=DENSE):
        self.comm, self.operator, self.dtype = operator.comm, operator, np.dtype(dtype)
        self.first, self.dense = _last_layers(operator, dense)
        samples, last = operator.samples, operator.samples.n_layers - 1
        alike = not self.dense and samples.loss.constant
        self.sweeps = Sweeps(operator, self.first, alike, dtype)
        self.sigma, self.V = self._eigen()
        fits = alike and last == 1 and self.sweeps.n_rest and len(self.sigma) * samples.widths[1] * len(samples.parameter_inputs(0)) <= NUMBERS
        self.complement = Complement(operator, self.sigma, self.V, dtype) if fits else None

    def _eigen(self):
        """(σ, V) float64 of H_EE, or of S where that is I ⊗ S, or of all S_p, [d, c] and [d, c, c]."""
        operator, comm = self.operator, self.comm
        if self.dense:
            block = comm.allreduce(Sweeps(operator, self.first, False, operator.dtype).last_block().astype(np.float64))
        else:
            h = operator.samples.parameter_inputs(operator.samples.n_layers - 1)[:, operator.mine].astype(np.float64)
            q = operator.samples.q
            if q is None:
                block = h @ h.T * 2
            else:
                block = np.array([(h * each) @ h.T for each in q[:, operator.mine].astype(np.float64)])
            block = comm.allreduce(block) / operator.n_samples
        sigma, V = replicated(comm, np.linalg.eigh, (block + np.swapaxes(block, -1, -2)) / 2)
        return np.maximum(sigma, 0), V

    def preconditioner(self, damping, matrix=None):
        """`Eliminated` for one λ > 0, for the compressed `matrix` where it is for one. Collective."""
        return Eliminated(self, damping, matrix)


class Eliminated:
    """M⁻¹ of one λ > 0, symmetric positive definite, float32 unless asked otherwise: a preconditioner for H + λI and what is near it.

    terms   (a [d], U [d, d], t [r], V [c, r]) of D = λI + U diag(a) Uᵀ ⊗ V diag(t) Vᵀ, a, t ≥ 0, or None: D = λI
    """

    solver, definite, backward_error = "last-layers", True, np.nan

    def __init__(self, shared, damping, matrix=None):
        self.comm, self.damping, self._shared = shared.comm, float(damping), shared
        self.matrix, self.dtype = matrix, shared.dtype
        self.terms = None if shared.complement is None else self._terms(*shared.complement.leading(damping))
        self._rows = shared.operator.parameter_starts

    def _terms(self, Q, P):
        (a, U), (t, V) = (replicated(self.comm, np.linalg.eigh, each) for each in (Q, P))
        a, t = np.maximum(a, 0), np.maximum(t, 0)
        kept = a.max() * t > NEGLIGIBLE * self.damping
        return a, U.astype(self.dtype), t[kept], np.ascontiguousarray(V[:, kept], self.dtype)

    def preconditioner(self):
        """Itself."""
        return self

    def solve_rows(self, B, absolute=False):
        """M⁻¹B in parameter rows, [n_local, k], in its own type. Collective.

        Sweeps are split over the ranks by samples, all else by columns of B.
        """
        comm, shared, split = self.comm, self._shared, self._shared.sweeps.n_rest
        whole = np.ascontiguousarray(gather_rows(comm, np.ascontiguousarray(B, self.dtype), self._rows).T)
        columns = row_starts(len(whole), comm.size)
        own = slice(*(int(at) for at in columns[comm.rank : comm.rank + 2]))
        if not split or shared.complement is not None:
            return self._own_rows(gather_rows(comm, self._by_columns(whole[own]), columns))
        Y = gather_rows(comm, self._last(whole[own, split:]), columns)
        remainder = whole[own, :split] - reduce_rows(comm, shared.sweeps.to_rest(Y), columns)
        rest = gather_rows(comm, self._rest(remainder), columns)
        remainder = whole[own, split:] - reduce_rows(comm, shared.sweeps.to_last(rest), columns)
        return self._own_rows(np.concatenate([rest, gather_rows(comm, self._last(remainder), columns)], axis=1))

    def _by_columns(self, R):
        """M⁻¹ of rows [k, N] where the coupling is at hand, or none. Not collective."""
        sweeps, complement, split = self._shared.sweeps, self._shared.complement, self._shared.sweeps.n_rest
        if not split:
            return self._last(R)
        X, moved = np.empty_like(R), np.empty((len(R), split), self.dtype)
        last = self._last(R[:, split:])
        sweeps.put(moved, 0, complement.to_rest(sweeps.part(last, 1)))
        X[:, :split] = self._rest(R[:, :split] - moved)
        sweeps.put(last, 1, complement.to_last(sweeps.part(X[:, :split], 0)))
        X[:, split:] = self._last(R[:, split:] - last)
        return X

    def _own_rows(self, X):
        lo, hi = self._rows[self.comm.rank : self.comm.rank + 2]
        return np.ascontiguousarray(X[:, lo:hi].T)

    def _last(self, R):
        """P⁻¹ of rows [k, N_E]."""
        shared = self._shared
        V, inverse = shared.V.astype(self.dtype), (1 / (shared.sigma + self.damping)).astype(self.dtype)
        if shared.dense:
            return ((R @ V) * inverse) @ V.T
        layer = shared.first
        G, result = shared.sweeps.part(R, layer), np.empty(R.shape, self.dtype)
        if V.ndim == 3:
            G = np.matmul(np.matmul(G.transpose(1, 0, 2), V) * inverse[:, None], V.transpose(0, 2, 1)).transpose(1, 0, 2)
        else:
            G = np.matmul(np.matmul(G, V) * inverse, V.T)
        shared.sweeps.put(result, layer, G)
        return result

    def _rest(self, R):
        """D⁻¹ of rows [k, N_R]."""
        result = R / self.dtype.type(self.damping)
        if self.terms is None:
            return result
        a, U, t, V = self.terms
        products = np.multiply.outer(a, t)
        share = (products / (self.damping * (products + self.damping))).astype(self.dtype)  # 1/λ − 1/(a t + λ)
        G, sweeps = self._shared.sweeps.part(R, 0), self._shared.sweeps
        small = np.matmul(U.T, np.matmul(G, V)) * share
        change, taken = np.empty_like(result), np.matmul(np.matmul(U, small), V.T)
        sweeps.put(change, 0, taken)
        return result - change
