"""U = H̃ V from a factor file of the formats hss and fmm with h5py and NumPy alone: python docs/read_factor_file.py F.h5 V.npy U.npy (see FORMAT.md)."""

import sys

import h5py
import numpy as np


def flat(dataset):
    rest = [dataset[:]]

    def take(*shape):  # the next numbers of the dataset
        block, rest[0] = np.split(rest[0], [int(np.prod(shape))])
        return block.reshape(shape)

    return take


def multiply(file, X):
    """Y = H̃ X in tree order."""
    depth, rank, starts = int(file.attrs["depth"]), file["nodes/rank"][:], file["tree/leaf_starts"][:]
    first_leaf, n_nodes = 2**depth - 1, 2 ** (depth + 1) - 1
    leaf = [slice(starts[i], starts[i + 1]) for i in range(2**depth)]
    order, T, take_order, take_block = {}, {}, flat(file["nodes/order"]), flat(file["nodes/interpolation"])
    for id in range(1, n_nodes):  # P = [I T], every node but the root
        c = np.diff(starts)[id - first_leaf] if id >= first_leaf else rank[2 * id + 1] + rank[2 * id + 2]
        order[id], T[id] = take_order(c), take_block(rank[id], c - rank[id])
    Y, w, u = np.zeros_like(X), {}, {id: np.zeros((rank[id], X.shape[1])) for id in range(n_nodes)}
    for id in range(n_nodes - 1, 0, -1):  # nodes to skeletons, leaves first: w = P x
        x = X[leaf[id - first_leaf]] if id >= first_leaf else np.vstack([w[2 * id + 1], w[2 * id + 2]])
        w[id] = x[order[id][: rank[id]]] + T[id] @ x[order[id][rank[id] :]]
    take_block = flat(file["far/values"])
    for level, i, j in file["far/pairs"][:].reshape(-1, 3):  # skeletons to skeletons: u = B w
        a, b = 2**level - 1 + i, 2**level - 1 + j
        B = take_block(rank[a], rank[b])
        u[a], u[b] = u[a] + B @ w[b], u[b] + B.T @ w[a]
    for id in range(1, n_nodes):  # skeletons to nodes, root first: y = Pᵀ u
        y = np.empty((len(order[id]), X.shape[1]))
        y[order[id]] = np.vstack([u[id], T[id].T @ u[id]])
        if id >= first_leaf:
            Y[leaf[id - first_leaf]] = y
        else:
            u[2 * id + 1] += y[: rank[2 * id + 1]]
            u[2 * id + 2] += y[rank[2 * id + 1] :]
    take_block = flat(file["near/values"])
    for i, j in file["near/pairs"][:].reshape(-1, 2):  # leaves to leaves: y = D x
        D = np.zeros((len(X[leaf[i]]), len(X[leaf[j]])))
        stored = np.tri(*D.shape, dtype=bool) if i == j else np.ones(D.shape, dtype=bool)
        D[stored] = take_block(stored.sum())
        Y[leaf[i]] += D @ X[leaf[j]]
        Y[leaf[j]] += (np.tril(D, -1) if i == j else D).T @ X[leaf[i]]
    return Y


V = np.load(sys.argv[2]).astype(np.float64)
file = h5py.File(sys.argv[1], "r")
U = float(file.attrs.get("l2", 0)) * V  # a multiple of the identity; parameters outside the tree have no more
tree = file["tree/permutation"][:]
U[tree] += multiply(file, V[tree].reshape(len(tree), -1)).reshape(V[tree].shape)
np.save(sys.argv[3], U)
