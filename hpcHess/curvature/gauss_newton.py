"""The Gauss–Newton matrix of a multilayer perceptron."""

import numpy as np
from mpi4py import MPI

from hpcHess.curvature.entries import Entries
from hpcHess.curvature.products import partial_probe, partial_product
from hpcHess.curvature.samples import Samples
from hpcHess.parallel.agree import together
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError


class GaussNewton:
    r"""The Gauss–Newton matrix (for cross-entropy: the Fisher matrix), mean over the samples:

    .. math:: H = \frac1n \sum_{i=1}^n J_i^T Q_i J_i \in R^{N \times N}, \quad J_i = \partial z_i / \partial\theta \in R^{d \times N},
              \quad Q_i = \partial^2 f / \partial z_i^2

    with Q = diag(p) − ppᵀ for cross-entropy on logits and Q = 2 I for ‖z − y‖² (summed over outputs). Symmetric positive
    semidefinite; parameters in PyTorch's order. Schraudolph, Neural Computation 2002; Martens, JMLR 2020, §8.

    network   `networks.network.Network`
    inputs    [n, d_0], whole on every rank (read-only shared memory is fine)
    targets   not needed: H does not depend on them
    dtype     of products and entries, float64 or float32
    Making it is collective over `comm`; the samples' activations lie once per host, samples are split over the ranks for products.
    Raises InputError for inputs of the wrong width.
    """

    def __init__(self, network, inputs, targets=None, comm=MPI.COMM_WORLD, dtype=np.float64):
        self.comm, self.network, self.dtype = comm, network, np.dtype(dtype)
        with together(comm):
            if np.ndim(inputs) != 2 or np.shape(inputs)[1] != network.n_inputs or not len(inputs):
                raise InputError(f"inputs of shape {np.shape(inputs)} do not fit a network of {network.n_inputs} inputs")
            if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
                raise InputError(f"dtype must be float32 or float64, not {dtype}")
        self.n_params, self.n_samples, self.n_outputs = network.n_params, len(inputs), network.n_outputs
        self.samples = Samples(network, inputs, comm, self.dtype)
        self._entries = Entries(self.samples)
        bounds = row_starts(self.n_samples, comm.size)
        self.rows = slice(int(bounds[comm.rank]), int(bounds[comm.rank + 1]))
        self.parameter_starts = row_starts(self.n_params, comm.size)
        self.alive = self._alive()

    @property
    def shape(self):
        """(N, N)."""
        return self.n_params, self.n_params

    def partial_matmat(self, V):
        """The share of this rank's samples of HV: [N, k] → [N, k]; the sum over ranks is HV. Not collective."""
        return partial_product(self.samples, self.rows, V)

    def matmat(self, V):
        """HV for V [N] or [N, k], whole on every rank, as is the result. Collective."""
        V = np.asarray(V)
        if V.shape[:1] != (self.n_params,) or V.ndim > 2:
            raise ValueError(f"a vector of shape {V.shape} does not fit a matrix of {self.n_params} parameters")
        lo, hi = self.parameter_starts[self.comm.rank : self.comm.rank + 2]
        rows = self.matmat_rows(V.reshape(self.n_params, -1)[lo:hi])
        return gather_rows(self.comm, rows, self.parameter_starts).reshape(V.shape)

    __matmul__ = matmat

    def matmat_rows(self, V):
        """HV in parameter rows (`parallel.ownership.row_starts`), [n_local, k] → [n_local, k]. Collective."""
        result, width = np.empty(V.shape, self.dtype), max(1, (1 << 28) // (self.n_params * self.dtype.itemsize))
        for a in range(0, V.shape[1], width):
            whole = gather_rows(self.comm, np.ascontiguousarray(V[:, a : a + width], self.dtype), self.parameter_starts)
            result[:, a : a + width] = reduce_rows(self.comm, self.partial_matmat(whole), self.parameter_starts)
        return result

    def diagonal(self):
        """H_jj = (1/n) Σ_i x_iq² κ_i(p, p), [N], exact. Collective."""
        parts = []
        for layer, X in enumerate(self.samples.inputs_t):
            D = self._entries.own_kernel(layer, self.rows) @ np.square(X[:, self.rows]).T / self.n_samples
            parts.append(D[:, :-1].ravel())
            if self.samples.biases[layer] is not None:
                parts.append(D[:, -1])
        result = np.concatenate(parts)
        self.comm.Allreduce(MPI.IN_PLACE, result)
        return result

    def entries(self, I, J):
        """Exact H[I, J], [|I|, |J|], for int64 parameter indices. Not collective."""
        return self._entries.block(I, J)

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H[I_b, J_b] for flat index arrays cut at the starts. Not collective."""
        return self._entries.batch(I, starts_I, J, starts_J)

    def partial_probe(self, k, seed):
        """The share of this rank's samples of Z = (nk)^{-1/2} Σ_i J_iᵀ R_i ξ_i, [N, k], E ZZᵀ = H; the same Z for any number of ranks.

        Not collective.
        """
        d = self.n_outputs

        def xi(block, columns):
            drawn = gaussian_rows(seed, "probe", block.start * d, block.stop * d, range(columns.start, columns.stop), np.float32)
            return drawn.reshape(block.stop - block.start, d, -1).transpose(0, 2, 1)

        return partial_probe(self.samples, self.rows, xi, k)

    def probe(self, k, seed=0):
        """Z [N, k] with E ZZᵀ = H, whole on every rank: a Johnson–Lindenstrauss embedding of the Gram vectors. Collective."""
        Z = np.ascontiguousarray(self.partial_probe(k, seed))
        self.comm.Allreduce(MPI.IN_PLACE, Z)
        return Z

    def _alive(self):
        """Parameters whose row is not zero by structure: some sample has both x_iq ≠ 0 and C_i e_p ≠ 0. Sorted int64."""
        parts = []
        for layer, X in enumerate(self.samples.inputs_t):
            M, g = self.samples.M[layer], self.samples.g[layer]
            sees = np.any(M[:, :, self.rows] != 0, axis=1) if g is None else (g[:, self.rows] != 0) & np.any(M != 0, axis=1)[:, None]
            meet = sees.astype(np.float32) @ (X[:, self.rows] != 0).astype(np.float32).T > 0
            parts.append(meet[:, :-1].ravel())
            if self.samples.biases[layer] is not None:
                parts.append(meet[:, -1])
        alive = np.concatenate(parts)
        self.comm.Allreduce(MPI.IN_PLACE, alive, MPI.LOR)
        return np.flatnonzero(alive).astype(np.int64)

    def close(self):
        """Free the host's shared memory. Collective."""
        self.samples.close()
