r"""The terms of one layer pair, Σ_k A_k ⊗ S_k, and their products with multivectors.

On matrices [W b] of the layers the product with Σ_k A_k ⊗ S_k is Σ_k A_k V S_kᵀ, and with its transpose Σ_k A_kᵀ V S_k: batched matrix products in
the cheaper of the two orders, (A_k V) S_kᵀ or A_k (V S_kᵀ), on multivectors [d, columns, c].
"""

import numpy as np

KINDS = ("full", "scaled", "identity", "diagonal")
_NUMBERS = 1 << 25  # in one temporary of a product


class Terms:
    """K terms of the layers ℓ ≤ ℓ', arrays on every host:

    kind     "full": left [K, d, d'] = A_k;  "scaled": left [K, d], A_k = diag(left_k) shared;  "identity": left [K], A_k = left_k I;
             "diagonal": left [K, d], A_k = diag(left_k), of ℓ = ℓ'
    right    [K, c, c'] = S_k
    shared   [d, d'] or None;  shape (d, d')
    Of ℓ = ℓ' all A_k and S_k are symmetric.
    """

    def __init__(self, layers, kind, shape, left, right, shared=None):
        self.layers, self.kind, self.shape = layers, kind, shape
        self.left, self.right, self.shared = left, right, shared
        self.symmetric = layers[0] == layers[1]
        self._held = {}  # (backend's name, first, last, dtype) → the arrays there

    def __len__(self):
        return len(self.right)

    def numbers(self):
        """Numbers stored: symmetric matrices once, n(n+1)/2."""
        _, c, c2 = self.right.shape
        left = int(np.prod(self.left.shape[1:], dtype=np.int64))
        if self.kind == "full" and self.symmetric:
            left = self.left.shape[1] * (self.left.shape[1] + 1) // 2
        right = c * (c + 1) // 2 if self.symmetric else c * c2
        return len(self) * (left + right) + (0 if self.shared is None or not len(self) else self.shared.size)

    def lefts(self, which=slice(None)):
        """A_k [k, d, d'] of some terms, formed."""
        left = self.left[which]
        if self.kind == "scaled":
            return left[:, :, None] * self.shared
        if self.kind == "diagonal":
            return left[:, :, None] * np.eye(self.shape[0], dtype=left.dtype)
        return left if self.kind == "full" else left[:, None, None] * np.eye(self.shape[0], dtype=left.dtype)

    def flops(self):
        """Of one term with one vector, both ways where ℓ ≠ ℓ'."""
        _, c, c2 = self.right.shape
        if self.kind == "identity":
            return 2 * self.shape[0] * c * c2
        if self.kind == "diagonal":
            return 2 * self.shape[0] * c * (c2 + 1)
        d, d2 = self.shape
        if self.kind == "scaled":
            return 4 * d * c * c2 + 4 * d * d2 * c2 // max(1, len(self))
        return 2 * min(d2 * c2 * c + d * d2 * c, d * d2 * c2 + d * c2 * c) * (1 if self.symmetric else 2)

    def add(self, backend, own, V, V2, U, U2):
        """U += Σ A_k V2 S_kᵀ and, of ℓ ≠ ℓ', U2 += Σ A_kᵀ V S_k, for the terms of the slice `own`; V, U [d, k, c], V2, U2 [d', k, c']."""
        xp, k = backend.xp, V.shape[1]
        d, d2, c, c2 = V.shape[0], V2.shape[0], V.shape[2], V2.shape[2]
        step = max(1, _NUMBERS // max(1, k * max(d, d2) * max(c, c2)))
        if self.kind in ("scaled", "diagonal"):
            step = own.stop - own.start if d * c * c2 <= _NUMBERS else max(1, _NUMBERS // max(1, k * d * max(c, c2)))
        for lo in range(own.start, own.stop, step):
            left, right, shared = self._on(backend, lo, min(own.stop, lo + step), V.dtype)
            if self.kind == "identity":
                S = xp.tensordot(left, right, axes=1)
                U += xp.matmul(V2.reshape(-1, c2), S.T).reshape(U.shape)
            elif self.kind == "diagonal":
                U += _scaled(xp, left, V2, xp.transpose(right, (0, 2, 1)))
            elif self.kind == "scaled":
                moved = xp.matmul(shared, V2.reshape(d2, -1)).reshape(d, k, c2)
                U += _scaled(xp, left, moved, xp.transpose(right, (0, 2, 1)))
                U2 += xp.matmul(shared.T, _scaled(xp, left, V, right).reshape(d, -1)).reshape(U2.shape)
            else:
                U += _full(xp, left, V2, xp.transpose(right, (0, 2, 1)))
                if not self.symmetric:
                    U2 += _full(xp, xp.transpose(left, (0, 2, 1)), V, right)

    def _on(self, backend, lo, hi, dtype):
        """(left, right, shared) of terms lo … hi − 1 on the backend; on a device they stay there."""
        key = backend.name, lo, hi, np.dtype(dtype)
        if key in self._held:
            return self._held[key]
        found = [None if each is None else backend.asarray(each, dtype) for each in (self.left[lo:hi], self.right[lo:hi], self.shared)]
        if backend.xp is not np:
            self._held[key] = found
        return found

    def diagonal(self, own):
        """Σ_k diag(A_k) diag(S_k)ᵀ, float64 [d, c], of a diagonal pair."""
        if self.kind == "identity":
            A = np.repeat(self.left[own, None], self.shape[0], axis=1)
        elif self.kind == "diagonal":
            A = self.left[own]
        else:
            A = np.einsum("kpp->kp", self.left[own])
        return A.astype(np.float64).T @ np.einsum("kqq->kq", self.right[own]).astype(np.float64)

    def squared_norm(self, own):
        """Σ_{k of own, l} ⟨A_k, A_l⟩⟨S_k, S_l⟩, float64: summed over all terms, ‖Σ A_k ⊗ S_k‖²_F."""
        if not len(self) or own.start >= own.stop:
            return 0.0
        if self.kind == "identity":
            left = self.left[:, None].astype(np.float64) * np.sqrt(self.shape[0])
        elif self.kind == "scaled":
            left = self.left * np.linalg.norm(self.shared.astype(np.float64), axis=1)
        else:
            left = self.left.reshape(len(self), -1)
        right = self.right.reshape(len(self), -1)
        total, step = np.zeros((own.stop - own.start, len(self))), max(1, _NUMBERS // len(self))
        for lo in range(0, right.shape[1], step):  # float64 in pieces
            part = right[:, lo : lo + step].astype(np.float64)
            total += part[own] @ part.T
        left = left.astype(np.float64)
        return float(((left[own] @ left.T) * total).sum())

    def entries(self, p, q, p2, q2):
        """H̃ at rows (p_i, q_i) and columns (p'_j, q'_j) of this pair, float64 [len(p), len(p2)]: Σ_k A_k[p, p'] S_k[q, q']."""
        rows, columns, found = (p[:, None], p2), (q[:, None], q2), np.zeros((len(p), len(p2)))
        for k in range(len(self)):
            if self.kind == "full":
                A = self.left[k][rows]
            elif self.kind == "scaled":
                A = self.left[k][p, None] * self.shared[rows]
            else:
                A = (self.left[k] if self.kind == "identity" else self.left[k][p, None]) * (rows[0] == rows[1])
            found += np.multiply(A, self.right[k][columns], dtype=np.float64)
        return found


def _full(xp, A, V, St):
    """Σ_k A_k V S_kᵀ for A [t, d, d'], V [d', k, c'], St = S_kᵀ [t, c', c]: [d, k, c]."""
    (t, d, d2), k, (_, c2, c) = A.shape, V.shape[1], St.shape
    if d2 * c2 * c + d * d2 * c <= d * d2 * c2 + d * c2 * c:
        Z = xp.matmul(V.reshape(1, d2 * k, c2), St).reshape(t * d2, k * c)
        return xp.matmul(xp.transpose(A, (1, 0, 2)).reshape(d, t * d2), Z).reshape(d, k, c)
    Z = xp.matmul(A.reshape(t * d, d2), V.reshape(d2, k * c2)).reshape(t, d * k, c2)
    return xp.sum(xp.matmul(Z, St), axis=0).reshape(d, k, c)


def _scaled(xp, v, V, S):
    """Σ_t diag(v_t) V S_t for v [t, d], V [d, k, c], S [t, c, c']: [d, k, c'], with Σ_t v_tp S_t of every row p where these are not too many."""
    t, (d, k, c), c2 = len(v), V.shape, S.shape[2]
    if d * c * c2 <= _NUMBERS:
        return xp.matmul(V, xp.matmul(v.T, S.reshape(t, c * c2)).reshape(d, c, c2))
    Z = V[:, :, None, :] * v.T[:, None, :, None]
    return xp.matmul(Z.reshape(d * k, t * c), S.reshape(t * c, -1)).reshape(d, k, -1)
