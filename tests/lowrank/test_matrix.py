"""What a low-rank matrix answers, against dense float64 algebra on the same H̃: products, norms, entries, solves, files, devices."""

import warnings
from functools import cache

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from hpcHess import backend as backends
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.formats.compress import compress
from hpcHess.formats.file import load
from hpcHess.info import describe, summarize
from hpcHess.lowrank.basis import AliveProducts
from hpcHess.lowrank.compress import low_rank_matrix
from hpcHess.lowrank.interpolative import skeleton_rows
from hpcHess.runtime.errors import HpcHessWarning, InputError
from hpcHess.storage.factor_file import FactorFile
from tests.backend.device_arrays import DeviceBackend
from tests.lowrank.test_methods import DEAD, DECAY, N, SIGNS, symmetric


@cache
def matrix(form="interpolative", dtype="float64", indefinite=True):
    """(H̃, its dense form in float64)."""
    comm, A = MPI.COMM_WORLD, symmetric(DECAY * SIGNS if indefinite else DECAY)
    H = compress(DenseMatrix(A, comm=comm), 1e-2, "low-rank", dtype=dtype)
    if form == "orthonormal":
        operator, report = DenseMatrix(A, comm=comm), H.report
        products = AliveProducts(operator)
        values, vectors = np.linalg.eigh(A)
        order = np.argsort(-np.abs(values))[: H.rank]
        U = vectors[products.first : products.last, order][products.rows]
        H = low_rank_matrix(operator, products, U, values[order], H.backend, np.dtype(dtype), -1.0)  # no rounding is allowed
        H.report = report
    assert H.core.ndim == (2 if form == "interpolative" else 1) and H.dtype == dtype
    return H, H @ np.eye(N)


FORMS = pytest.mark.parametrize("form", ["interpolative", "orthonormal"])


@FORMS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forms_hold_the_eigenpairs(form, dtype):
    H, D = matrix(form, dtype)
    values = np.linalg.eigvalsh(D)
    nonzero = values[np.argsort(-np.abs(values))][: H.rank]
    assert np.allclose(np.sort(nonzero), np.sort(H.eigenvalues), rtol=0, atol=1e-12 if dtype == "float64" else 1e-6)
    assert np.abs(values[np.argsort(-np.abs(values))][H.rank :]).max() <= 1e-13
    assert not D[DEAD].any() and not D[:, DEAD].any() and H.n_alive == N - len(DEAD)


@FORMS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norm_diagonal_trace(comm, form, dtype):
    H, D = matrix(form, dtype)
    assert np.isclose(H.norm_frobenius(), np.linalg.norm(D), rtol=1e-12)
    assert np.allclose(H.diagonal(), np.diagonal(D), rtol=0, atol=1e-13) and np.isclose(H.trace(), np.trace(D), rtol=1e-12)
    V = np.random.default_rng(0).standard_normal((N, 3))
    assert np.abs(H @ V - D @ V).max() <= 1e-12
    assert (H @ V.astype(np.float32)).dtype == H.dtype
    assert np.abs(H @ V[:, 0] - D @ V[:, 0]).max() <= 1e-12


@FORMS
def test_entries(comm, form):
    H, D = matrix(form)
    with pytest.raises(RuntimeError, match="gathered"):
        compress(DenseMatrix(symmetric(DECAY), comm=comm), 0.5, "low-rank").entries(np.arange(2), np.arange(2))
    H.gathered()
    rng = np.random.default_rng(comm.rank)
    I, J = rng.integers(0, N, 40), rng.integers(0, N, 29)
    assert np.abs(H.entries(I, J) - D[np.ix_(I, J)]).max() <= 1e-13
    starts_I, starts_J = np.array([0, 9, 18, 18, 40]), np.array([0, 7, 14, 15, 29])
    blocks = H.entries_batch(I, starts_I, J, starts_J)
    for b in range(4):
        want = D[np.ix_(I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]])]
        assert blocks[b].shape == want.shape and np.abs(blocks[b] - want).max(initial=0) <= 1e-13


@FORMS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [0.7, 1e-4, 1e-9])
def test_solve_logdet_inertia(comm, form, dtype, damping):
    H, D = matrix(form, dtype)
    D = (D + D.T) / 2 + damping * np.eye(N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        B = np.random.default_rng(1).standard_normal((N, 5))
        X, factors = H.solve(B, damping), H.factorize(damping)
    backward = np.linalg.norm(D @ X - B) / (np.linalg.norm(D, 2) * np.linalg.norm(X) + np.linalg.norm(B))
    assert backward <= 1e-14
    # H̃'s nullspace has exact eigenvalues λ, which a dense decomposition at small λ has not: log det from H̃'s own
    values = np.linalg.eigvalsh(D - damping * np.eye(N))
    values = np.append(values[np.argsort(-np.abs(values))][: H.rank], np.zeros(N - H.rank)) + damping
    sign, log_abs = H.logdet(damping)
    assert sign == np.prod(np.sign(values)) and np.isclose(log_abs, np.log(np.abs(values)).sum(), rtol=1e-10)
    assert H.inertia(damping) == (int((values > 0).sum()), int((values < 0).sum()))
    assert factors.solver == "woodbury" and factors.backward_error <= 1e-15 / damping + 1e-12


def test_positive_definite_preconditioner_of_an_indefinite_matrix(comm):
    H, D = matrix()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        factors = H.factorize(1e-2)
    assert factors.negative and not factors.definite
    S = np.concatenate(comm.allgather(factors.preconditioner().solve_rows(np.eye(N)[H.mine])))
    values, vectors = np.linalg.eigh((D + D.T) / 2 + 1e-2 * np.eye(N))
    assert np.allclose(S, (vectors / np.abs(values)) @ vectors.T, rtol=0, atol=1e-9)


def test_singular(comm):
    H, _ = matrix()
    with pytest.raises(InputError, match="singular"):
        H.solve(np.ones(N), 0.0)
    with pytest.raises(InputError, match="singular"):
        H.solve(np.ones(N), -float(H.factors(1.0)._theta[0]))
    for relative in (1e-18, 1e-16):  # λ is an eigenvalue of H̃ + λI
        with pytest.raises(InputError, match="singular to working precision .*: use a larger damping"):
            H.solve(np.ones(N), relative * abs(H.eigenvalues[0]))
    assert np.isfinite(H.solve(np.ones(N), 1e-12 * abs(H.eigenvalues[0]))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        full = compress(DenseMatrix(np.diag(np.arange(1.0, 21)), comm=comm), 1e-9, "low-rank")
        assert np.allclose(full.solve(np.eye(20), 0.0), np.diag(1 / np.arange(1.0, 21)), atol=1e-13)
    assert np.isclose(full.logdet(0.0)[1], np.log(np.arange(1.0, 21)).sum())


@FORMS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_file(comm, shared_tmp, form, dtype):
    H, D = matrix(form, dtype)
    path = shared_tmp / "low.h5"
    H.save(path)
    for group in (comm, comm.Split(comm.rank), comm.Split(comm.rank % 2)):
        again = load(path, group)
        assert again.report == H.report | {"timings": {}} or again.report["rank"] == H.rank
        assert type(again) is type(H) and again.dtype == H.dtype and again.core.ndim == H.core.ndim
        assert np.abs(again @ np.eye(N) - D).max() <= 1e-14 and np.array_equal(again.eigenvalues, H.eigenvalues)
        assert again.storage()["storage_entries"] == H.storage()["storage_entries"] and again.n_alive == H.n_alive
    with FactorFile(path, comm) as file:
        text = describe(summarize(file, True))
    assert f"rank        {H.rank}" in text and "method      randomized" in text


@FORMS
def test_the_file_by_its_specification_alone(comm, shared_tmp, form):
    """docs/FORMAT.md, "Low rank", with h5py and NumPy."""
    H, D = matrix(form, "float32")
    H.save(shared_tmp / "low.h5")
    if comm.rank == 0:
        with h5py.File(shared_tmp / "low.h5") as file:
            r = int(file.attrs["rank"])
            numbers, skeleton, coefficients, core = (file[f"lowrank/{name}"][:] for name in ("numbers", "skeleton", "coefficients", "core"))
        P = np.zeros((N, r))
        P[numbers] = coefficients.reshape(-1, r)
        P[skeleton] = np.eye(r)[: len(skeleton)]
        M = np.diag(core.astype(float)) if not len(skeleton) else np.zeros((r, r))
        if len(skeleton):
            M[np.tril_indices(r)] = core
            M = np.tril(M) + np.tril(M, -1).T
        assert len(coefficients) + len(core) == H.storage()["storage_entries"]
        assert np.abs(P @ M @ P.T - D).max() <= 1e-14


def test_on_arrays_that_refuse_implicit_conversion(comm, shared_tmp, monkeypatch):
    host, D = matrix()
    with monkeypatch.context() as patch:
        patch.setattr(backends, "get", lambda name="auto": DeviceBackend())
        device = compress(DenseMatrix(symmetric(DECAY * SIGNS), comm=comm), 1e-2, "low-rank", dtype="float64")
        device.save(shared_tmp / "device.h5")
        again = load(shared_tmp / "device.h5", comm)
    assert device.coefficients.__class__.__name__ == "DeviceArray"
    V = np.random.default_rng(0).standard_normal((N, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        for H in (device, again):
            assert np.abs(H @ V - D @ V).max() <= 1e-12
            assert np.abs(H.solve(V, 0.1) - host.solve(V, 0.1)).max() <= 1e-11
            assert np.isclose(H.norm_frobenius(), np.linalg.norm(D)) and np.allclose(H.diagonal(), np.diagonal(D))
            assert np.abs(H.gathered().entries(np.arange(9), np.arange(20)) - D[:9, :20]).max() <= 1e-12


@pytest.mark.parametrize("kind", ["gaussian", "spikes", "graded", "repeated"])
def test_skeleton_rows_keep_the_interpolation_small(comm, kind):
    """|T| stays within a modest bound, however U's rows lie; the choice is that of one rank."""
    rng, n, r = np.random.default_rng(3), 300, 150
    U = rng.standard_normal((n, r))
    if kind == "spikes":
        U[:40] *= 1e3
    if kind == "graded":
        U *= 10.0 ** -np.linspace(0, 6, n)[:, None]
    if kind == "repeated":
        U[150:] = U[:150]
    U = np.linalg.qr(U)[0]
    bounds = np.linspace(0, n, comm.size + 1).astype(int)
    mine = slice(bounds[comm.rank], bounds[comm.rank + 1])
    chosen = skeleton_rows(comm, U[mine], np.arange(n)[mine])
    assert len(np.unique(chosen)) == r and np.all(np.diff(chosen) > 0)
    assert np.abs(np.linalg.solve(U[chosen].T, U.T)).max() <= 20
    assert np.array_equal(chosen, skeleton_rows(MPI.COMM_SELF, U, np.arange(n)))
