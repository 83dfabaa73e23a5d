"""The exact factored form and its solves in the data space against NumPy: both losses, biases or none, gradients, weights, any number of ranks."""

import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature.black_box import BlackBox
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.fisher import EmpiricalFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.factored.form import FactoredForm
from hpcHess.factored.format import make_data_woodbury, make_none
from hpcHess.factored.gram import norm_from_gram
from hpcHess.formats.file import load
from hpcHess.networks.network import Network
from hpcHess.parallel import memory
from hpcHess.runtime.errors import InputError
from tests.reference.dense_operator import dense
from tests.reference.gauss_newton import gauss_newton

COMM = MPI.COMM_WORLD
KINDS = ["cross-entropy", "squared-error", "wide", "gradients", "weighted", "one layer"]
ALL = [(kind, biases) for kind in KINDS for biases in (True, False)]
make = {"none": make_none, "data-woodbury": make_data_woodbury}


@cache
def problem(kind, biases=True, dtype="float64"):
    """(operator, H); "wide": more outputs than the layer before has neurons."""
    rng, n = np.random.default_rng(5), 13
    widths = {"wide": (4, 5, 3, 6), "one layer": (6, 4)}.get(kind, (7, 5, 4, 3))
    shapes = list(zip(widths[1:], widths[:-1]))
    loss = "squared-error" if kind in ("squared-error", "wide") else "cross-entropy"
    network = Network([rng.standard_normal(s) for s in shapes], [rng.standard_normal(s[0]) for s in shapes] if biases else None, "tanh", loss)
    inputs, labels, weights = rng.standard_normal((n, widths[0])), rng.integers(0, widths[-1], n), rng.random(n)
    inputs[:, 1] = 0
    if kind == "weighted":
        H = sum(w * gauss_newton(network, x[None]) for w, x in zip(weights, inputs))
        return GaussNewton(network, inputs, weights=weights, comm=COMM, dtype=dtype), H
    if kind == "gradients":
        operator = EmpiricalFisher(network, inputs, labels, comm=COMM, dtype=dtype)
        return operator, operator.matmat(np.eye(network.n_params, dtype=dtype)).astype(np.float64)
    return GaussNewton(network, inputs, comm=COMM, dtype=dtype), gauss_newton(network, inputs)


@pytest.mark.parametrize("kind,biases", ALL)
@pytest.mark.parametrize("format", ["none", "data-woodbury"])
def test_everything_exact(format, kind, biases):
    """Products, diagonal, trace, norm, the report, solves to rounding or to the tolerance of CG."""
    operator, H = problem(kind, biases)
    M, n, scale = make[format](operator, 1e-2), len(H), np.abs(H).max()
    np.testing.assert_allclose(dense(M), H, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(M.diagonal(), np.diag(H), rtol=0, atol=1e-13 * scale)
    assert M.trace() == pytest.approx(np.trace(H), rel=1e-12) and M.norm_frobenius() == pytest.approx(np.linalg.norm(H), rel=1e-12)
    error = M.report["error_estimate"]
    assert error["exact"] and error["high"] == 0 and M.report["rtol_met"] and M.report["error_spectral"] == 0 and not M.report["warnings"]
    assert M.report["lambda_max"] == pytest.approx(np.linalg.norm(H, 2), rel=1e-4)
    damping, V = 1e-2 * np.linalg.norm(H, 2), np.random.default_rng(0).standard_normal((n, 3))
    damped = H + damping * np.eye(n)
    X = M.solve(V, damping)
    assert np.linalg.norm(damped @ X - V) <= (1e-9 if format == "none" else 1e-13) * np.linalg.norm(V)
    if format == "none":
        found, true = M.logdet(damping), np.linalg.slogdet(damped)[1]
        assert found[0] == 1 and abs(found[1] - true) <= 0.75 * (found.high - found.low) < 20, "three standard errors: one seed for all of these"
        with pytest.raises(InputError, match="no direct factors"):
            M.inertia(damping)
    else:
        assert M.logdet(damping) == pytest.approx(np.linalg.slogdet(damped), rel=1e-12) and M.inertia(damping) == (n, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_storage(shared_tmp, kind):
    """What is counted is what the file holds, dataset by dataset."""
    import h5py

    operator, _ = problem(kind)
    for format in make:
        M = make[format](operator, 1e-2, dtype="float32")
        M.save(shared_tmp / f"{format}.h5")
        with h5py.File(shared_tmp / f"{format}.h5") as file:
            datasets = [each for group in ("factored", "gram") for each in file.get(group, {}).values()]
            held = sum(len(each) for each in datasets)
            assert M.report["storage_bytes"] == sum(len(each) * each.dtype.itemsize for each in datasets)
        assert M.report["storage_entries"] == held and M.report["storage_percent"] == pytest.approx(100 * held / M.n_params**2)
    n, widths, d = operator.n_samples, operator.network.widths, operator.n_outputs
    r = {"squared-error": d, "wide": d, "gradients": 1}.get(kind, d - 1)
    assert held == n * (sum(widths[:-1]) + 1 + sum(widths[1:-1]) + (0 if kind in ("squared-error", "wide") else d)) + sum(
        a * b for a, b in zip(widths[1:-1], widths[2:])
    ) + n * r * (n * r + 1) // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["none", "data-woodbury"])
def test_file(shared_tmp, format, kind):
    """Without the job's files, on all ranks and on one, and the other way round."""
    operator, H = problem(kind)
    M = make[format](operator, 1e-2)
    M.save(shared_tmp / "F.h5")
    damping, b = 0.1 * M.report["lambda_max"], np.random.default_rng(1).standard_normal(len(H))
    for comm in (COMM, MPI.COMM_SELF):
        G = load(shared_tmp / "F.h5", comm)
        assert G.format == format and G.n_alive == M.n_alive and G.report["storage_entries"] == M.report["storage_entries"]
        np.testing.assert_allclose(dense(G), H, rtol=0, atol=1e-13 * np.abs(H).max())
        assert np.linalg.norm(H @ G.solve(b, damping) + damping * G.solve(b, damping) - b) <= 1e-9 * np.linalg.norm(b)
        np.testing.assert_allclose(G.diagonal(), np.diag(H), rtol=0, atol=1e-13 * np.abs(H).max())
    if COMM.rank == 0:
        G.save(shared_tmp / "G.h5")
    COMM.Barrier()
    np.testing.assert_allclose(dense(load(shared_tmp / "G.h5", COMM)), H, rtol=0, atol=1e-13 * np.abs(H).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_root(kind):
    """GᵀG = H by the sweeps; G Gᵀ by blocks is theirs; as many rows as Q has rank."""
    operator, H = problem(kind)
    M = make_data_woodbury(operator, 1e-2)
    form, n = M.form, len(H)
    G = form.root_products(np.eye(n))
    np.testing.assert_allclose(COMM.allreduce(G.T @ G), H, rtol=0, atol=1e-13 * np.abs(H).max())
    mine = np.eye(form.n * form.rank)[:, form.sample_starts[COMM.rank] * form.rank : form.sample_starts[COMM.rank + 1] * form.rank]
    np.testing.assert_allclose(form.root_transposed(np.eye(len(G))), G.T, rtol=0, atol=1e-13 * np.abs(G).max(initial=1e-300))
    whole = np.concatenate(COMM.allgather(G))
    K = M.gram.multiply(np.ascontiguousarray(mine.T))
    np.testing.assert_allclose(K, (whole @ whole.T)[mine.argmax(axis=0)], rtol=0, atol=1e-13 * np.abs(whole @ whole.T).max())
    assert norm_from_gram(form) == pytest.approx(np.linalg.norm(H), rel=1e-12)


def test_many_blocks(monkeypatch):
    """Blocks of few samples give the same."""
    import hpcHess.factored.form as module

    operator, H = problem("cross-entropy")
    monkeypatch.setattr(module, "_ROWS", 4)
    M = make_data_woodbury(operator, 1e-2)
    assert len(M.form.blocks()) >= 2 * (COMM.size < 3)
    assert norm_from_gram(M.form) == pytest.approx(np.linalg.norm(H), rel=1e-12) == M.norm_frobenius()
    np.testing.assert_allclose(M.diagonal(), np.diag(H), rtol=0, atol=1e-13 * np.abs(H).max())


@pytest.mark.parametrize("relative", [1e-4, 1e-7, 1e-10])
def test_small_damping(relative):
    """The plain formula loses 10 to 1000 times more digits than a dense solve; a step of refinement with the exact product takes that back."""
    operator, H = problem("wide")
    M, n = make_data_woodbury(operator, 1e-2), len(H)
    damping = relative * np.linalg.norm(H, 2)
    damped, B = H + damping * np.eye(n), np.random.default_rng(0).standard_normal((n, 4))
    left = lambda X: np.linalg.norm(damped @ X - B)  # noqa: E731
    factors = M.factors(damping)
    assert left(np.concatenate(COMM.allgather(factors.solve_rows(B[M.mine])))) <= 4 * left(np.linalg.solve(damped, B))
    assert factors.backward_error <= 10 * np.finfo(float).eps / relative
    G = np.concatenate(COMM.allgather(M.form.root_products(np.eye(n))))
    values = np.linalg.svd(G, compute_uv=False)
    expected = (n - len(values)) * np.log(damping) + np.log(damping + values**2).sum()
    assert M.logdet(damping)[1] == pytest.approx(expected, abs=n * np.finfo(float).eps * n / relative)


@pytest.mark.parametrize("format", ["none", "data-woodbury"])
@pytest.mark.parametrize("kind", ["cross-entropy", "squared-error"])
def test_single_precision(format, kind):
    """A form in float32: exact for an operator in float32; of one in float64 the rounding is certified. Solves are in float64 all the same."""
    operator, H = problem(kind)
    M = make[format](operator, 1e-3, dtype="float32")
    K, error = dense(M), M.report["error_estimate"]
    true = np.linalg.norm(K - H) / np.linalg.norm(H)
    assert M.dtype == np.float32 and 1e-9 < true < 1e-6 and error["low"] <= true <= error["high"] and M.report["rtol_met"]
    damping, b = 1e-3 * np.linalg.norm(H, 2), np.ones(len(H))
    assert np.linalg.norm(K @ M.solve(b, damping) + damping * M.solve(b, damping) - b) <= 1e-9 * np.linalg.norm(b)
    single = make[format](problem(kind, dtype="float32")[0], 1e-3)
    assert single.dtype == np.float32 and single.report["error_estimate"]["high"] == 0
    assert (single @ np.ones(len(H), np.float32)).dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not make[format](operator, 1e-9, dtype="float32").report["rtol_met"]


@pytest.mark.parametrize("kind", ["cross-entropy", "one layer", "weighted"])
def test_probabilities_stored_in_single_precision_add_up(kind):
    """The products in float64 of a form in float32 are those of a matrix: symmetric to rounding in float64, GᵀG of its root."""
    form = make_none(problem(kind, dtype="float32")[0], 1e-3).form
    N = form.network.n_params
    partial = form.products(np.float64).matmat(np.eye(N))
    G, H = form.root_products(np.eye(N)), COMM.allreduce(partial)
    assert form.dtype == np.float32 and COMM.allreduce(np.abs(form.outputs.astype(np.float64).sum(axis=0) - 1).max(initial=0)) > 1e-9
    np.testing.assert_allclose(H, H.T, rtol=0, atol=1e-14 * np.abs(H).max())
    np.testing.assert_allclose(COMM.allreduce(G.T @ G), H, rtol=0, atol=1e-13 * np.abs(H).max())


def indefinite(n=30):
    K = np.random.default_rng(2).standard_normal((n, n))
    K = K + K.T
    K[3], K[:, 3] = 0, 0
    return K


def test_other_operators(shared_tmp):
    """none of a matrix in a file refers to it; what is in no file cannot be saved."""
    K = indefinite()
    if COMM.rank == 0:
        np.save(shared_tmp / "K.npy", K)
    COMM.Barrier()
    b = np.ones(len(K))
    for operator in (DenseMatrix(shared_tmp / "K.npy", comm=COMM), DenseMatrix(K, comm=COMM), BlackBox(lambda V: K @ V, len(K), COMM)):
        M = make_none(operator, 1e-2)
        np.testing.assert_allclose(dense(M), K, rtol=0, atol=1e-14 * np.abs(K).max())
        np.testing.assert_allclose(M.diagonal(), np.diag(K), rtol=1e-13)
        assert M.norm_frobenius() == pytest.approx(np.linalg.norm(K), rel=1e-12) and M.n_alive == len(K) - 1
        assert M.report["storage_entries"] == 0 and M.report["error_estimate"]["high"] == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            X = M.solve(b, 0.5)
        assert np.linalg.norm(K @ X + 0.5 * X - b) <= 1e-9 * np.linalg.norm(b)
        if getattr(operator, "path", None) is None:
            with pytest.raises(InputError, match="in no file"):
                M.save(shared_tmp / "G.h5")
            assert not (shared_tmp / "G.h5").exists()
            with pytest.raises(InputError, match="needs a network"):
                make_data_woodbury(operator, 1e-2)
            continue
        M.save(shared_tmp / "F.h5")
        for comm in (COMM, MPI.COMM_SELF):
            np.testing.assert_array_equal(dense(load(shared_tmp / "F.h5", comm)), K)
    COMM.Barrier()
    if COMM.rank == 0:
        np.save(shared_tmp / "K.npy", 2 * K)
    COMM.Barrier()
    with pytest.raises(InputError, match="has changed"):
        load(shared_tmp / "F.h5", COMM)


def test_beyond_the_memory(monkeypatch):
    """One line with the numbers, before anything is made."""
    operator, _ = problem("cross-entropy")
    rows = operator.n_samples * (operator.n_outputs - 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * 8 * rows**2 - 1)
    with pytest.raises(InputError, match=f"data-woodbury of 13 samples .* {rows} rows, would take .* GiB free"):
        make_data_woodbury(operator, 1e-2)
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * 8 * rows**2)
    make_data_woodbury(operator, 1e-2)


def test_no_damping():
    M = make_data_woodbury(problem("cross-entropy")[0], 1e-2)
    with pytest.raises(InputError, match="λ > 0"):
        M.solve(np.ones(M.n_params), 0.0)


def test_damping_that_is_rounding():
    """GGᵀ is regular, and yet H + λI, of more rows, has the eigenvalue λ."""
    rng = np.random.default_rng(2)
    network = Network([rng.standard_normal(s) for s in ((5, 7), (4, 5), (3, 4))], None, "tanh", "squared-error")
    inputs = rng.standard_normal((4, 7))
    M, largest = make_data_woodbury(GaussNewton(network, inputs, comm=COMM), 1e-2), np.linalg.norm(gauss_newton(network, inputs), 2)
    assert M.gram.layout.n < M.n_params and np.linalg.cond(dense(M) + largest * np.eye(M.n_params)) < 3
    for relative in (1e-18, 1e-16):
        with pytest.raises(InputError, match="^H . λI is singular to working precision at damping .*: use a larger damping"):
            M.solve(np.ones(M.n_params), relative * largest)
    assert np.isfinite(M.solve(np.ones(M.n_params), 1e-10 * largest)).all()


def test_one_class():
    """H = 0: the softmax of one output does not move."""
    network = Network([np.ones((2, 3)), np.ones((1, 2))], None, "tanh", "cross-entropy")
    M = make_data_woodbury(GaussNewton(network, np.ones((4, 3)), comm=COMM), 1e-2)
    assert not dense(M).any() and M.norm_frobenius() == 0 and M.gram.layout.n == 0
    np.testing.assert_allclose(M.solve(np.ones(8), 0.5), 2 * np.ones(8))
    assert M.logdet(0.5)[1] == pytest.approx(8 * np.log(0.5))


def test_the_form_is_the_ranks_share():
    """Ranks without samples take part."""
    operator, H = problem("one layer")
    form = FactoredForm.of_operator(operator, make_none(operator, 0.1).backend, operator.dtype)
    assert COMM.allreduce(form.n_mine) == operator.n_samples
    network = operator.network
    few = GaussNewton(network, np.ones((2, network.n_inputs)), comm=COMM)
    M = make_data_woodbury(few, 1e-2)
    np.testing.assert_allclose(dense(M), gauss_newton(network, np.ones((2, network.n_inputs))), atol=1e-14)
    np.testing.assert_allclose(few.matmat(M.solve(np.ones(M.n_params), 0.1)) + 0.1 * M.solve(np.ones(M.n_params), 0.1), 1, atol=1e-12)
