"""Sums of Kronecker products in factor files."""

import warnings

import h5py
import numpy as np
import pytest

from hpcHess.compressed.file import save
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.file import load
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.format import KRONECKER_SUM
from hpcHess.runtime.errors import HpcHessWarning
from tests.curvature import networks
from tests.curvature.test_gauss_newton import make, near
from tests.reference.dense_operator import dense


def compressed(operator, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        return compress_kronecker(operator, **keywords)


ASKED = [("autoencoder", "auto"), ("tanh classes, some biases", "auto"), ("relu classes", "kfac"), ("one layer, values", 1)]


@pytest.mark.parametrize("name, terms", ASKED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(name, terms, dtype, comm, shared_tmp):
    network, inputs = make(name)
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-2, terms=terms, dtype=dtype)
    save(K, shared_tmp / "F.h5")
    back = load(shared_tmp / "F.h5", comm)
    assert back.format == "kronecker-sum" and back.dtype == K.dtype and back.n_alive == K.n_alive
    assert np.array_equal(dense(back), dense(K)) if comm.size == 1 else np.allclose(dense(back), dense(K), rtol=1e-6)
    assert back.storage() == K.storage()
    assert back.report["error_estimate"] == K.report["error_estimate"] and back.report["pairs"] == K.report["pairs"]
    assert back.solvers == K.solvers


@pytest.mark.parametrize("name, layers", [("autoencoder", [0, 1]), ("autoencoder, binary", [0, 1]), ("values, deep, output tanh", [1, 3])])
def test_the_specification(name, layers, comm, shared_tmp):
    """The matrix from the datasets by docs/FORMAT.md alone: all four kinds of terms, layers that are constant."""
    network, inputs, *_ = make(name) if name == "autoencoder" else networks.make(name)
    network = network.restricted(layers)
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-2, dtype="float64")
    save(K, shared_tmp / "F.h5")
    near(_dense_of_file(shared_tmp / "F.h5"), dense(K), 1e-14)


def _dense_of_file(path):
    with h5py.File(path) as file:
        N = int(file.attrs["n_params"])
        get = {name: file[f"kronecker/{name}"][:] for name in ("layers", "rows", "columns", "pairs", "left", "right", "shared")}
    H, index, at = np.zeros((N, N)), [], dict.fromkeys(get, 0)

    def take(name, count):
        at[name] += count
        return get[name][at[name] - count : at[name]]

    def symmetric(flat, n):
        M = np.zeros((n, n))
        M[np.triu_indices(n)] = flat
        return M + np.triu(M, 1).T

    for start, out, inner, _, n_rows, n_columns in get["layers"].reshape(-1, 6):
        rows, columns = take("rows", n_rows), take("columns", n_columns)
        index.append([[start + (p * inner + q if q < inner else out * inner + p) for q in columns] for p in rows])
    index = [np.array(each) for each in index]
    for a, b, kind, count in get["pairs"].reshape(-1, 4):
        (d, c), (d2, c2) = index[a].shape, index[b].shape
        G = take("shared", d * d2).reshape(d, d2) if kind == 1 else None
        lefts, rights = [], []
        for _ in range(count):
            if kind == 0:
                lefts.append(symmetric(take("left", d * (d + 1) // 2), d) if a == b else take("left", d * d2).reshape(d, d2))
            elif kind == 2:
                lefts.append(take("left", 1)[0] * np.eye(d))
            else:
                lefts.append(np.diag(take("left", d)) @ (G if kind == 1 else np.eye(d)))
            rights.append(symmetric(take("right", c * (c + 1) // 2), c) if a == b else take("right", c * c2).reshape(c, c2))
        block = sum(np.kron(A, S) for A, S in zip(lefts, rights))
        H[np.ix_(index[a].ravel(), index[b].ravel())] = block
        H[np.ix_(index[b].ravel(), index[a].ravel())] = block.T
    return H


def test_the_description(comm):
    network, inputs = make("autoencoder")
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-2)
    lines = "\n".join(KRONECKER_SUM.describe(K.report))
    assert "kfac" in lines and "1 × 2" in lines and "explicit" in lines and f"{K.report['comparison']['this']['error']:.3e}" in lines
