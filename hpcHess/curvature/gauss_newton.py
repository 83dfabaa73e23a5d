"""The Gauss–Newton matrix of a multilayer perceptron."""

import numpy as np
from mpi4py import MPI

from hpcHess import backend as backends
from hpcHess.curvature.entries import Entries
from hpcHess.curvature.kernel import Kernel
from hpcHess.curvature.products import Products
from hpcHess.curvature.samples import Samples
from hpcHess.networks.network import Network
from hpcHess.networks.problem import checked_data, checked_weights
from hpcHess.parallel.agree import together
from hpcHess.parallel.operator import SummedOperator, checked_dtype
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError

EXACT_INPUTS = 1024  # samples up to which inputs are compared without a projection
_SAMPLES = 4096  # of one step of the diagonal, at most, and
_NUMBERS = 1 << 24  # in one of its temporaries over the samples


class GaussNewton(SummedOperator):
    r"""The Gauss–Newton matrix (for cross-entropy: the Fisher matrix), mean over the samples (w_i = 1/n) or with weights:

    .. math:: H = \sum_{i=1}^n w_i J_i^T Q_i J_i \in R^{N \times N}, \quad J_i = \partial z_i / \partial\theta \in R^{d \times N},
              \quad Q_i = \partial^2 f / \partial z_i^2

    with Q = diag(p) − ppᵀ for cross-entropy on logits, Q = diag(σ(z)(1 − σ(z))) for binary cross-entropy on logits and Q = 2 I for ‖z − y‖²
    (both summed over outputs). Symmetric positive semidefinite; parameters in PyTorch's order, of the network's chosen layers alone
    (`Network.restricted`). Schraudolph, Neural Computation 2002; Martens, JMLR 2020, §8.

    network   `networks.network.Network`
    inputs    [n, d_0], whole on every rank (read-only shared memory is fine)
    targets   H does not depend on them; when given they are checked
    weights   w [n], ≥ 0, whole on every rank; None: 1/n
    dtype     of products and entries, float64 or float32
    backend   name or object of the arrays that products use

    Making it is collective over `comm`; what the network does with the samples lies once per host (`Samples`), samples are split
    over the ranks for products. Raises InputError for inputs or targets that do not fit (`networks.problem.checked_data`), for weights
    that are negative, not finite, all zero or not n.

    `quadrature`, `full`: of an operator made by `reduced` how its samples were chosen (`curvature.quadrature.Quadrature`) and the operator
    on all of them; else None and the operator itself.
    """

    _kernel_bytes = None  # at most, of the kernel stored; None: `kernel.STORED_BYTES`

    def __init__(self, network, inputs, targets=None, weights=None, comm=MPI.COMM_WORLD, dtype=np.float64, backend="auto"):
        with together(comm):
            dtype = checked_dtype(dtype)
            inputs, targets = self._checked(network, inputs, targets)
            weights = None if weights is None else checked_weights(weights, len(inputs))
            arrays = backends.get(backend) if isinstance(backend, str) else backend
        self._make(network, self._samples(network, inputs, targets, weights, comm, dtype), comm, arrays)
        self.quadrature, self._full = None, None

    @staticmethod
    def _checked(network, inputs, targets):
        """(inputs as float32 or float64 [n, d_0], targets); InputError where they do not fit the network."""
        if not isinstance(network, Network):
            raise InputError(f"the network must be an hpcHess.Network (read_network, Network.from_arrays), not {type(network).__name__}")
        if targets is None:  # any valid ones
            n = len(inputs) if np.ndim(inputs) else 0
            targets = np.zeros(n, np.int64) if network.loss == "cross-entropy" else np.zeros((n, network.n_outputs), np.float32)
        return checked_data(network, inputs, targets)

    def _samples(self, network, inputs, targets, weights, comm, dtype):
        """`Samples` of the curvature. Collective."""
        return Samples(network, inputs, comm, dtype, weights)

    @property
    def full(self):
        """The operator on all samples."""
        return self if self._full is None else self._full

    def reduced(self, quadrature):
        """The operator of a `Quadrature`'s samples and weights, Σ_k w_k H_{i_k} ≈ H, which lives beside this one, its `full`. Collective."""
        result = object.__new__(type(self))
        samples = self.samples.chosen(quadrature.samples, quadrature.weights, self.comm)
        result._make(self.network, samples, self.comm, self._products.backend)
        result.quadrature, result._full = quadrature, self
        return result

    def _make(self, network, samples, comm, arrays):
        """All but the checks. Collective."""
        self.comm, self.network, self.samples, self.dtype = comm, network, samples, samples.dtype
        self.n_params, self.n_samples, self.n_outputs = network.n_params, samples.n, network.n_outputs
        bounds = row_starts(self.n_samples, comm.size)
        self.mine = slice(int(bounds[comm.rank]), int(bounds[comm.rank + 1]))
        with together(comm):
            if not self.samples.finite(self.mine):
                raise InputError(f"the network overflows on these inputs in {self.dtype}: scale the inputs or the weights")
        self._products = Products(network, self.samples, self.mine, arrays)
        self._entries = Entries(network, self.samples, Kernel(self.samples, network.chosen, comm, self._kernel_bytes), arrays)
        self.alive = np.flatnonzero(self.by_parameter(self._sees, np.float32, MPI.MAX)).astype(np.int64)

    def __repr__(self):
        return f"{type(self).__name__}({self.network!r}, {self.n_samples} samples, {self.dtype})"

    def partial_matmat(self, V):
        """The share of this rank's samples of HV: [N, k] → [N, k], row-major; the sum over ranks is HV. Not collective."""
        return self._products.matmat(V)

    def diagonal(self):
        """H_jj = Σ_i w_i x_iq² κ_i(p, p), [N], exact, sums in float64. Collective."""
        return (self.by_parameter(self._squares, np.float64, MPI.SUM) / self.n_samples).astype(self.dtype)

    def entries(self, I, J):
        """Exact H[I, J], [|I|, |J|], for int64 parameter indices. Not collective."""
        return self._entries.block(I, J)

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H[I_b, J_b] for flat index arrays cut at the starts. Not collective."""
        return self._entries.batch(I, starts_I, J, starts_J)

    def partial_probe(self, k, seed):
        """The share of this rank's samples of Z = k^{-1/2} Σ_i √w_i J_iᵀ R_i ξ_i, [N, k], E ZZᵀ = H; the same Z for any number of ranks.

        Not collective.
        """
        return self._products.probe(k, seed)

    def probe(self, k, seed=0):
        """Z [N, k] with E ZZᵀ = H, whole on every rank: a Johnson–Lindenstrauss embedding of the Gram vectors. Collective."""
        return self.combined(self.partial_probe(k, seed))

    def input_groups(self, n_columns, seed):
        """(groups int64 [N], rows [#groups, …]): each parameter's input (a bias: its layer's constant 1), and the inputs' vectors over
        the samples, orthogonal between layers: x itself, [n], up to EXACT_INPUTS samples, else n_columns numbers a layer by a
        Gaussian projection, E⟨row_q, row_q'⟩ = Σ_i x_iq x_iq'; with weights x_i is √(n w_i) times that. Not collective;
        the same for any number of ranks.
        """
        samples, n = self.samples, self.n_samples
        exact = n <= EXACT_INPUTS
        width = n if exact else n_columns
        rows = np.zeros((len(samples.X), width * len(self.network.weights)))
        for layer, (first, last) in enumerate(zip(samples.row_starts[:-1], samples.row_starts[1:], strict=True)):
            part, X = rows[first:last, layer * width : (layer + 1) * width], samples.inputs(layer)
            for lo in range(0, n, _SAMPLES):
                hi = min(n, lo + _SAMPLES)
                if exact:
                    part[:, lo:hi] = X[:, lo:hi]
                else:
                    part += X[:, lo:hi] @ gaussian_rows(seed, f"inputs {layer}", lo, hi, range(width), self.dtype) / np.sqrt(width)
        return self._entries.locate(np.arange(self.n_params))[1], rows

    def neuron_groups(self, most):
        """(groups int64 [N], starts int64 [L + 1], chosen int64 [c], K [c, c]): each parameter's neuron, numbered through all layers that begin
        at `starts`, and the mean kernel K_pp' = Σ_i w_i κ_i(p, p') of all neurons, or of about `most` of them, evenly spaced in each
        chosen layer. Not collective; the same for any number of ranks.
        """
        starts = self.samples.neuron_starts
        share = max(2, most // self.samples.n_layers) if starts[-1] > most else int(starts[-1])
        chosen = [np.unique(np.linspace(a, b - 1, min(share, b - a)).astype(np.int64)) for a, b in (starts[at : at + 2] for at in self.network.chosen)]
        chosen = np.concatenate(chosen)
        return self._entries.locate(np.arange(self.n_params))[0], starts, chosen, self._entries.mean_kernel(chosen).astype(np.float64)

    def _sees(self, layer, piece):
        """Whether some sample has both x_iq ≠ 0 and C_i e_p ≠ 0, [d_ℓ, d_{ℓ−1} + 1] of 0 and 1."""
        meet = self.samples.active(layer, piece).astype(np.float32) @ (self.samples.inputs(layer)[:, piece] != 0).astype(np.float32).T
        return (meet > 0).astype(np.float32)

    def _squares(self, layer, piece):
        """Σ_i x_iq² κ_i(p, p), [d_ℓ, d_{ℓ−1} + 1]."""
        return self.samples.own_kernel(layer, piece) @ np.square(self.samples.inputs(layer)[:, piece], dtype=np.float64).T

    def by_parameter(self, part, dtype, operation):
        """`part(layer, piece)` [d_ℓ, d_{ℓ−1} + 1] combined (MPI.SUM or MPI.MAX) over all samples, in parameter order, [N]. Collective."""
        combine = np.add if operation == MPI.SUM else np.maximum
        result, step = [], max(1, min(_SAMPLES, _NUMBERS // (sum(self.network.widths) + 1)))
        for layer in self.network.chosen:
            W = self.network.weights[layer]
            total = np.zeros((W.shape[0], W.shape[1] + 1), dtype)
            for lo in range(self.mine.start, self.mine.stop, step):
                combine(total, part(layer, slice(lo, min(self.mine.stop, lo + step))), out=total)
            result.append(total[:, :-1].ravel())
            if self.network.has_bias[layer]:
                result.append(total[:, -1])
        return self.combined(np.concatenate(result), operation)

    def close(self):
        """Free the host's shared memory; the operator cannot be used any more. Collective."""
        self._entries.close()
        self.samples.close()
