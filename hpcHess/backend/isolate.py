"""The far field of a node from products alone: combinations of the columns of Ω that vanish inside the node."""


def isolate(xp, omega, Y, starts):
    """Pieces Ω_i, Y_i [m_i, p], m_i ≤ p, of stacked rows → (R [Σ m, p − min m], F [Σ m, max m]), rows padded with zeros.

    Householder QR of Ω_iᵀ = [Q₁ Q₂] [L; 0]: R_i = Y_i Q₂ [m_i, p − m_i], of which Ω_i Q₂ = 0 (Levitt & Martinsson, 2024, §3), and
    F_i = Y_i Ω_i^† = Y_i Q₁ L⁻ᵀ [m_i, m_i].
    """
    p, sizes = omega.shape[1], [int(b) - int(a) for a, b in zip(starts[:-1], starts[1:])]
    R = xp.zeros((len(omega), p - min(sizes, default=p)), Y.dtype)
    F = xp.zeros((len(omega), max(sizes, default=0)), Y.dtype)
    for m, at in zip(sizes, starts[:-1]):
        rows = slice(int(at), int(at) + m)
        if m:
            Q, L = xp.linalg.qr(omega[rows].T, mode="complete")
            rotated = Y[rows] @ Q
            R[rows, : p - m] = rotated[:, m:]
            F[rows, :m] = xp.linalg.solve(L[:m], rotated[:, :m].T).T
    return R, F
