"""The exact Hessian of a multilayer perceptron's loss."""

import numpy as np
from mpi4py import MPI

from hpcHess import backend as backends
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.gradients import Gradients
from hpcHess.curvature.hessian_entries import HessianEntries
from hpcHess.curvature.hessian_kernel import HessianKernel
from hpcHess.curvature.hessian_products import HessianProducts
from hpcHess.parallel.agree import together
from hpcHess.parallel.operator import SummedOperator
from hpcHess.runtime.errors import InputError


class Hessian(SummedOperator):
    r"""The Hessian of the loss, mean over the samples (w_i = 1/n) or with weights:

    .. math:: H = \sum_{i=1}^n w_i \frac{\partial^2 f(z_i, y_i)}{\partial\theta^2} = \sum_i w_i \Big( J_i^T Q_i J_i
              + \sum_e \frac{\partial f}{\partial z_{ie}} \frac{\partial^2 z_{ie}}{\partial\theta^2} \Big) \in R^{N \times N}

    symmetric, not definite: the Gauss–Newton matrix (`GaussNewton`) and the curvature of the network itself. Parameters in PyTorch's order, of
    the network's chosen layers alone (`Network.restricted`). Where an activation has a kink, the Hessian is that of the pieces, s'' = 0, as in
    automatic differentiation. Products: Pearlmutter, Neural Computation 1994; entries: Bishop, Neural Computation 1992.

    targets   [n] labels or [n, d] values, needed
    Other arguments, and errors, as `GaussNewton`. Making it is collective over `comm`.

    `partial_probe`, `input_groups` and `neuron_groups`, of which trees are made, are those of the Gauss–Newton part: a matrix that is
    not semidefinite has no vectors whose inner products are its entries. They order parameters and nothing else.
    """

    quadrature, indefinite = None, True
    without_samples = "the exact Hessian is not definite, no Gram matrix of its samples' factors (gauss-newton, fisher, opg are)"

    def __init__(self, network, inputs, targets=None, weights=None, comm=MPI.COMM_WORLD, dtype=np.float64, backend="auto"):
        with together(comm):
            arrays = backends.get(backend) if isinstance(backend, str) else backend
        self._gram = _GramPart(network, inputs, targets, weights, comm, dtype, arrays)
        samples = self._gram.samples
        self.comm, self.network, self.dtype, self.mine = comm, network, self._gram.dtype, self._gram.mine
        self.n_params, self.n_samples, self.n_outputs = network.n_params, samples.n, network.n_outputs
        self._gradients = self._gram.gradients
        with together(comm):
            if not self._gradients.finite(self.mine):
                raise InputError(f"the gradients overflow on these samples in {self.dtype}: scale the targets, the inputs or the weights")
        self._products = HessianProducts(network, samples, self._gradients, self.mine, arrays)
        self._kernel = HessianKernel(network, samples, self._gradients, comm)
        self._entries = HessianEntries(network, samples, self._gradients, self._kernel, arrays)
        self.alive = self._alive()

    def __repr__(self):
        return f"Hessian({self.network!r}, {self.n_samples} samples, {self.dtype})"

    @property
    def full(self):
        """The operator itself, of all samples."""
        return self

    def partial_matmat(self, V):
        """The share of this rank's samples of HV: [N, k] → [N, k], row-major; the sum over ranks is HV. Not collective."""
        return self._products.matmat(V)

    def diagonal(self):
        """H_jj = Σ_i w_i x_iq² B_i(p, p), [N], exact, sums in float64. Collective."""
        return (self._gram.by_parameter(self._squares, np.float64, MPI.SUM) / self.n_samples).astype(self.dtype)

    def entries(self, I, J):
        """Exact H[I, J], [|I|, |J|], for int64 parameter indices. Not collective."""
        return self._entries.block(I, J)

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H[I_b, J_b] for flat index arrays cut at the starts. Not collective."""
        return self._entries.batch(I, starts_I, J, starts_J)

    def partial_probe(self, k, seed):
        """The Gauss–Newton part's (`GaussNewton.partial_probe`). Not collective."""
        return self._gram.partial_probe(k, seed)

    def input_groups(self, n_columns, seed):
        """Each parameter's input and the inputs' vectors (`GaussNewton.input_groups`). Not collective."""
        return self._gram.input_groups(n_columns, seed)

    def neuron_groups(self, most):
        """Each parameter's neuron and the neurons' mean kernel, the Gauss–Newton part's (`GaussNewton.neuron_groups`). Not collective."""
        return self._gram.neuron_groups(most)

    def _squares(self, layer, piece):
        """Σ_i x_iq² B_i(p, p), [d_ℓ, d_{ℓ−1} + 1]."""
        samples = self._gram.samples
        B = samples.own_kernel(layer, piece) + self._kernel.signed_squares(layer, piece)
        return B @ np.square(samples.inputs(layer)[:, piece], dtype=np.float64).T

    def _alive(self):
        """Parameters (ℓ, p, q) of which some sample has a term of the row by structure, whatever its value: x_q ≠ 0 where a change of a_p reaches
        a Q, a t or, through its neuron's output, a δ; or δ_p ≠ 0 where lower parameters move x_q. Collective."""
        found = self._gram.by_parameter(self._meets, np.float32, MPI.MAX)
        return np.flatnonzero(found).astype(np.int64)

    def _meets(self, layer, piece):
        """Whether some sample has such a term, [d_ℓ, d_{ℓ−1} + 1] of 0 and 1."""
        samples, gradients = self._gram.samples, self._gradients
        inputs = (samples.inputs(layer)[:, piece] != 0).astype(np.float32)
        result = self._reaches(layer, piece).astype(np.float32) @ inputs.T
        if layer > self.network.chosen[0]:
            delta = (gradients.delta(layer)[:, piece] != 0).astype(np.float32)
            result[:, :-1] += delta @ self._moves(layer - 1, piece).astype(np.float32).T
        return (result > 0).astype(np.float32)

    def _reaches(self, layer, piece):
        """Whether a change of a_p changes some ∂f/∂a or meets some δ by way of x_p, bool [d_ℓ, m]."""
        samples, last = self._gram.samples, self.network.n_layers - 1
        bend = self._gradients.bend(layer)
        found = samples.active(last, piece) if layer == last else np.zeros((samples.widths[layer + 1], piece.stop - piece.start), bool)
        if layer < last:
            meets = _through(self.network.weights[layer + 1].T, self._reaches(layer + 1, piece))
            if layer + 1 in self.network.chosen:
                meets |= self._gradients.delta(layer + 1)[:, piece].any(axis=0)
            found = (samples.slope(layer)[:, piece] != 0) & meets
        return found if bend is None else found | (bend[:, piece] != 0)

    def _moves(self, layer, piece):
        """Whether chosen parameters up to a hidden layer move its x_q, bool [d_ℓ, m]."""
        samples = self._gram.samples
        moved = samples.parameter_inputs(layer)[:, piece].any(axis=0)  # [m]; of a layer that is not chosen False
        if layer > self.network.chosen[0]:
            moved = moved | _through(self.network.weights[layer], self._moves(layer - 1, piece))
        return (samples.slope(layer)[:, piece] != 0) & moved

    def close(self):
        """Free the host's shared memory; the operator cannot be used any more. Collective."""
        self._entries.close()
        self._gradients.close()
        self._gram.close()


class _GramPart(GaussNewton):
    """Σ w_i J_iᵀ Q_i J_i and the `gradients`, without a stored kernel, which would lie beside that of the Hessian."""

    _kernel_bytes = 0

    @staticmethod
    def _checked(network, inputs, targets):
        if targets is None:
            raise InputError("the exact Hessian needs the targets")
        return GaussNewton._checked(network, inputs, targets)

    def _samples(self, network, inputs, targets, weights, comm, dtype):
        self.gradients = Gradients(network, inputs, targets, weights, comm, dtype)
        return super()._samples(network, inputs, targets, weights, comm, dtype)


def _through(W, moved):
    """Whether some moved input has a weight that is not zero, bool [out, m] for [in, m]."""
    return (W != 0).astype(np.float32) @ moved.astype(np.float32) > 0
