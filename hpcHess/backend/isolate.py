"""The far field of a node from products alone: combinations of the columns of Ω that vanish inside the node."""


def isolate(xp, omega, Y, starts):
    """Pieces Ω_i, Y_i [m_i, p], m_i ≤ p, of stacked rows → (R, F), both [Σ m, max m], rows padded with zeros.

    Householder QR of Ω_iᵀ = Q L: Y_i (I − QQᵀ) holds p − m_i samples of the far field, because Ω_i (I − QQᵀ) = 0 (Levitt & Martinsson,
    2024, §3); R_i [m_i, m_i] is its triangular factor, with the same R_iR_iᵀ. F_i = Y_i Ω_i^† = Y_i Q L⁻ᵀ [m_i, m_i].
    """
    sizes = [int(b) - int(a) for a, b in zip(starts[:-1], starts[1:])]
    R, F = (xp.zeros((len(omega), max(sizes, default=0)), Y.dtype) for _ in range(2))
    for m, at in zip(sizes, starts[:-1]):
        rows = slice(int(at), int(at) + m)
        if m:
            Q, L = xp.linalg.qr(omega[rows].T)
            inside = Y[rows] @ Q
            R[rows, :m] = xp.linalg.qr((Y[rows] - inside @ Q.T).T)[1].T
            F[rows, :m] = xp.linalg.solve(L, inside.T).T
    return R, F
