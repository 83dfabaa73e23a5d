r"""The best Kronecker product for the Schur complement of squared error's last layer in the block of the layer before it.

With S = (2/n) Σ h̃h̃ᵀ = V diag(σ) Vᵀ, the last layer's block is I ⊗ S, and with G = 2 W_LᵀW_L, D_i = diag(s'_i) the complement is

    H_11 − H_12 (I ⊗ (S + λI)⁻¹) H_21 = (1/n) Σ_i (D_i G D_i) ⊗ x̃_i x̃_iᵀ − Σ_k (σ_k + λ)⁻¹ Σ_pp' G_pp' (e_p e_p'ᵀ) ⊗ t_kp t_kp'ᵀ,
    T_k = (√2/n) Σ_i (v_kᵀh̃_i) s'_i x̃_iᵀ   [d, c], rows t_kp.

Rearranged (Van Loan & Pitsianis 1993) its leading singular pair (Q, P) is found by power iteration, Q ↔ P:

    P = (1/n) Σ_i (s'_iᵀ (G∘Q) s'_i) x̃_i x̃_iᵀ − Σ_k (σ_k + λ)⁻¹ T_kᵀ (G∘Q) T_k,
    Q = G ∘ [(1/n) Σ_i (x̃_iᵀ P x̃_i) s'_i s'_iᵀ − Σ_k (σ_k + λ)⁻¹ T_k P T_kᵀ].

T_k also are the coupling itself, whatever the number of samples: on matrices [W b], with W = W_L,

    H_21 v = √2 W Y Vᵀ,  Y_pk = Σ_q v_pq T_k,pq;      H_12 u = √2 Σ_k z_pk T_k,pq,  z = Wᵀ u V.
"""

import numpy as np
from mpi4py import MPI

NUMBERS = 1 << 27  # of all T_k together; beyond, there is no such product
_STEPS, _CHANGE = 20, 1e-2  # of the power iteration: the largest number, and the change of the norm at which it stops
_SAMPLES = 4096


class Complement:
    """T_k [c_L, d, c] whole on every rank, made once for all λ; σ [c_L], V of S. Making and `leading` are collective."""

    def __init__(self, operator, sigma, V, dtype):
        samples, self.comm, self.mine, self.sigma = operator.samples, operator.comm, operator.mine, sigma
        last = samples.n_layers - 1
        self.n, self._slope, self._x = samples.n, samples.slope(last - 1), samples.parameter_inputs(last - 1)
        self.W, self.V = operator.network.weights[last].astype(dtype), V.astype(dtype)
        self.G = (samples.M[last - 1] @ samples.M[last - 1].T).astype(dtype)
        self._by_neuron = np.zeros((len(self._slope), len(sigma), len(self._x)), dtype)
        self.T = self._by_neuron.transpose(1, 0, 2)
        for piece, s, x in self._pieces():
            coefficients = np.sqrt(2.0) / self.n * (V.T @ samples.parameter_inputs(last)[:, piece].astype(np.float64))
            for T, row in zip(self.T, coefficients.astype(dtype), strict=True):
                T += (s * row) @ x.T
        for T in self._by_neuron:
            self.comm.Allreduce(MPI.IN_PLACE, T)

    def _pieces(self):
        """(slice, s' [d, m], x̃ [c, m]) of the own samples."""
        for at in range(self.mine.start, self.mine.stop, _SAMPLES):
            piece = slice(at, min(self.mine.stop, at + _SAMPLES))
            yield piece, *(each[:, piece].astype(self.T.dtype, copy=False) for each in (self._slope, self._x))

    def to_last(self, G):
        """H_21 on [k, d, c] → [k, d_L, c_L]. Not collective."""
        Y = np.matmul(G.transpose(1, 0, 2), self._by_neuron.transpose(0, 2, 1))
        return np.matmul(self.W, np.matmul(Y, np.sqrt(2.0) * self.V.T).astype(Y.dtype).transpose(1, 0, 2))

    def to_rest(self, U):
        """H_12 on [k, d_L, c_L] → [k, d, c]. Not collective."""
        Z = np.matmul(np.matmul(np.sqrt(2.0) * self.W.T, U).astype(U.dtype), self.V)
        return np.matmul(Z.transpose(1, 0, 2), self._by_neuron).transpose(1, 0, 2)

    def leading(self, damping):
        """(Q [d, d], P [c, c]) float64, the leading Kronecker term Q ⊗ P of the Schur complement with λ, P's trace ≥ 0."""
        own = slice(*(len(self.T) * (self.comm.rank + at) // self.comm.size for at in (0, 1)))
        weights = (1 / np.sqrt(self.sigma[own] + damping)).astype(self.T.dtype)
        T = self.T[own] * weights[:, None, None]
        Q, before = np.eye(len(self.G)), 0.0
        for _ in range(_STEPS):
            P = self._inputs(T, Q)
            P /= np.linalg.norm(P) or 1.0
            Q = self._kernel(T, P)
            norm = float(np.linalg.norm(Q))
            if self.comm.bcast(abs(norm - before) <= _CHANGE * norm):
                break
            before = norm
        return (-Q, -P) if self.comm.bcast(np.trace(P) < 0) else (Q, P)

    def _inputs(self, T, Q):
        K = (self.G * Q).astype(T.dtype)
        P = np.zeros((T.shape[2], T.shape[2]), T.dtype)
        for _, s, x in self._pieces():
            P += (x * (np.einsum("pi,pi->i", s, K @ s) / self.n).astype(T.dtype)) @ x.T
        P -= np.matmul(K, T).reshape(-1, T.shape[2]).T @ T.reshape(-1, T.shape[2])
        return self._summed(P)

    def _kernel(self, T, P):
        P = P.astype(T.dtype)
        Q = np.zeros(self.G.shape, T.dtype)
        for _, s, x in self._pieces():
            Q += (s * (np.einsum("qi,qi->i", x, P @ x) / self.n).astype(T.dtype)) @ s.T
        Q -= np.matmul((T.reshape(-1, T.shape[2]) @ P).reshape(T.shape), T.transpose(0, 2, 1)).sum(axis=0)
        return self.G * self._summed(Q)

    def _summed(self, array):
        """The sum over ranks, symmetrized, float64."""
        array = array.astype(np.float64)
        self.comm.Allreduce(MPI.IN_PLACE, array)
        return (array + array.T) / 2
