"""The solver factors as docs/FORMAT.md describes them: solved with by loops in NumPy against a dense solve."""

import h5py
import numpy as np
import pytest

from hpcHess.hierarchical.file import load, save
from tests.reference.hss import ReferenceHSS, write_reference


class Stored:
    """(H̃ + λI)⁻¹ from the datasets alone; tree order."""

    def __init__(self, file):
        self.data = {}
        file.visititems(lambda name, item: self.data.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        self.depth, self.damping = int(file.attrs["depth"]), float(file.attrs["woodbury_damping"])
        self.first_leaf, self.n_nodes = 2**self.depth - 1, 2 ** (self.depth + 1) - 1
        self.rank, self.delta, self.starts = self.data["nodes/rank"], self.data["woodbury/delayed"], self.data["tree/leaf_starts"]
        self.nodes = [self._node(node) for node in range(self.n_nodes)]
        for name in ("W", "sign", "K", "V"):
            assert self.data[f"woodbury/{name}"].size == 0, name

    def take(self, name, *shape):
        block, self.data[name] = np.split(self.data[name], [int(np.prod(shape))])
        return block.reshape(shape)

    def _node(self, node):
        """Skeleton rows J, redundant rows R among [J_l, δ_l, J_r, δ_r], and the factors."""
        s, delta = self.rank[node], self.delta[node]
        if node >= self.first_leaf:
            c = self.starts[node - self.first_leaf + 1] - self.starts[node - self.first_leaf]
            place = np.arange(c)
        else:
            (sl, sr), (dl, dr) = self.rank[2 * node + 1 : 2 * node + 3], self.delta[2 * node + 1 : 2 * node + 3]
            c = sl + sr + dl + dr
            place = np.concatenate([np.arange(sl), sl + dl + np.arange(sr)])  # the columns of the basis among the rows
        own = len(place)
        order = self.take("nodes/order", own) if node else np.arange(own)
        T = np.zeros((s, c - s))
        T[:, : own - s] = self.take("nodes/interpolation", s, own - s) if node else 0
        J, R = place[order[:s]], np.concatenate([place[order[s:]], np.setdiff1d(np.arange(c), place)])
        r = c - s
        take = lambda name, *shape: self.take(f"woodbury/{name}", *shape)  # noqa: E731
        factors = take("W", r, r - delta), take("sign", r - delta)[:, None], take("K", s, r - delta), take("V", r, delta)
        return J, R, T, *factors

    def solve(self, B):
        kept, z = {}, {}
        for node in range(self.n_nodes - 1, -1, -1):
            J, R, T, W, sign, K, V = self.nodes[node]
            b = self._leaf(B, node) if node >= self.first_leaf else np.vstack([kept[2 * node + 1], kept[2 * node + 2]])
            b_R = b[R] - T.T @ b[J]
            z[node] = sign * (W.T @ b_R)
            kept[node] = np.vstack([b[J] - K @ z[node], V.T @ b_R])
        X = np.empty_like(B)
        for node in range(self.n_nodes):
            J, R, T, W, sign, K, V = self.nodes[node]
            x_J, x_delta = np.split(kept[node], [self.rank[node]])
            x = np.empty((len(J) + len(R), B.shape[1]))
            x[R] = W @ (z[node] - sign * (K.T @ x_J)) + V @ x_delta
            x[J] = x_J - T @ x[R]
            if node >= self.first_leaf:
                self._leaf(X, node)[...] = x
            else:
                kept[2 * node + 1], kept[2 * node + 2] = np.split(x, [self.rank[2 * node + 1] + self.delta[2 * node + 1]])
        return X

    def _leaf(self, B, node):
        return B[self.starts[node - self.first_leaf] : self.starts[node - self.first_leaf + 1]]


def singular_leaf(hss, damping):
    """Make X_RR of one leaf singular in two directions, with X_JR that is not: M (D + λI) Mᵀ = X, M = [I 0; −Tᵀ I]."""
    first = (1 << hss.depth) - 1
    leaf = int(np.argmax(hss.rank[first:]))
    s, order, T = hss.rank[first + leaf], hss.order[first + leaf], hss.T[first + leaf]
    X = np.random.default_rng(7).standard_normal((len(order),) * 2)
    X += X.T
    X[s : s + 2, s:] = X[s:, s : s + 2] = 0
    M = np.eye(len(order))
    M[s:, :s] = -T.T
    D = np.empty_like(X)
    D[np.ix_(order, order)] = np.linalg.solve(M, np.linalg.solve(M, X).T)
    hss.near[leaf, leaf] = (D + D.T) / 2 - damping * np.eye(len(order))
    hss.dense[np.ix_(hss.permutation, hss.permutation)] = hss._tree_matrix()


@pytest.mark.parametrize(("depth", "singular"), [(0, False), (1, False), (3, False), (2, True), (3, True)])
def test_solve_as_specified(comm, shared_tmp, depth, singular):
    """Indefinite matrices; where a leaf cannot eliminate some of its redundant directions they are delayed."""
    damping = 0.5
    hss = ReferenceHSS(n_params=90, n_dead=3, depth=depth, max_rank=4, seed=depth)
    if singular:
        singular_leaf(hss, damping)
    write_reference(hss, shared_tmp / "F.h5", comm)
    matrix = load(shared_tmp / "F.h5", comm)
    save(matrix, shared_tmp / "G.h5", factors=matrix.factorize(damping))
    if comm.rank != 0:
        return
    with h5py.File(shared_tmp / "G.h5", "r") as file:
        log_abs = file["woodbury/log_abs"][:].sum() + 3 * np.log(damping)
        negative, delayed, stored = file["woodbury/negative"][:].sum(), file["woodbury/delayed"][:].sum(), Stored(file)
    A = hss.dense + damping * np.eye(90)
    alive = hss.permutation
    B = np.random.default_rng(0).standard_normal((90, 2))
    expected = np.linalg.solve(A, B)[alive]
    assert np.abs(stored.solve(B[alive]) - expected).max() <= 1e-12 * np.linalg.cond(A) * np.abs(expected).max()
    assert np.isclose(log_abs, np.linalg.slogdet(A)[1], rtol=1e-10)
    assert negative == (np.linalg.eigvalsh(A) < 0).sum()
    assert (delayed >= 2) == singular
