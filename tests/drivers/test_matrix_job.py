"""Jobs of a dense matrix in a file: the whole way through the drivers, and what is refused."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from hpcHess import gallery
from tests.drivers.drive import drive, listing, ok, on_root, relative, residuals

N = 150


def job(folder, file="K.npy", more="", name="job.toml", rtol=1e-3):
    text = f'[matrix]\nfile = "{file}"\n{more}\n[compress]\nleaf_size = 20\nrtol = {rtol}\n'
    on_root(lambda: (folder / name).write_text(text) and None)
    return folder / name


@pytest.fixture(scope="module")
def dense_case(folder):
    """K12 in K.npy with two dead rows, F.h5, and vectors V.npy."""
    at = folder / "matrix"
    K = gallery.inverse_diffusion_2d(N, 1)
    K[[3, 77]] = K[:, [3, 77]] = 0
    V = np.random.default_rng(0).standard_normal((N, 3))
    on_root(lambda: at.mkdir() or np.save(at / "K.npy", K) or np.save(at / "V.npy", V))
    made = job(at)
    run = ok(drive("compress", made, "--output", at / "F.h5"))
    return SimpleNamespace(folder=at, job=made, F=at / "F.h5", K=K, V=V, run=run)


def test_compress_says_what_it_read(dense_case):
    assert "matrix: done" in dense_case.run.err and "network" not in dense_case.run.err
    assert f"N = {N} parameters ({N - 2} alive), dense matrix K.npy" in dense_case.run.err and "met" in dense_case.run.out


def test_info_knows_the_matrix(dense_case):
    text = ok(drive("info", dense_case.F)).out
    found = json.loads(ok(drive("info", dense_case.F, "--json")).out)
    digest = found["provenance"]["matrix_hash"]
    assert len(digest) == 64 and f"matrix      sha256 {digest}" in text and "network_hash" not in found["provenance"]
    assert found["job"].startswith('[matrix]\nfile = "K.npy"\n\n[compress]\n')


def test_products_compressed_and_exact(dense_case):
    at, U = dense_case.folder, dense_case.folder / "U.npy"
    ok(drive("multiply", dense_case.F, "--input", at / "V.npy", "--output", U))
    wanted = dense_case.K @ dense_case.V
    assert 1e-8 < relative(on_root(lambda: np.load(U)), wanted) < 1e-2
    ok(drive("multiply", dense_case.F, "--input", at / "V.npy", "--output", U, "--exact"))
    assert relative(on_root(lambda: np.load(U)), wanted) < 1e-13


def test_solves_against_the_exact_matrix(dense_case):
    pytest.importorskip("petsc4py")
    at, X = dense_case.folder, dense_case.folder / "X.npy"
    run = ok(drive("solve", dense_case.F, "--rhs", at / "V.npy", "--output", X, "--damping", "0.01*lmax", "--refine", "exact", "--rtol", 1e-9))
    damping = float(re.search(r"damping ([\d.e+-]+)", run.out)[1])
    assert residuals(dense_case.K + damping * np.eye(N), on_root(lambda: np.load(X)), dense_case.V).max() < 1e-5  # damping is printed to 6 digits
    assert run.residual("exact") <= 1e-9


@pytest.mark.parametrize("file, more", [("K.f32", f"n = {N}"), ("K.h5:/in/K", ""), ("K.npy", f"n = {N}")])
def test_other_files_give_the_same_matrix(dense_case, folder, file, more):
    at = folder / file.partition(":")[0]
    on_root(lambda: at.mkdir() or gallery.write_dense(f"{at}/{file}", dense_case.K.astype(np.float32)))
    ok(drive("compress", job(at, file, more), "--output", at / "F.h5"))
    ok(drive("multiply", at / "F.h5", "--input", dense_case.folder / "V.npy", "--output", at / "U.npy", "--exact"))
    assert relative(on_root(lambda: np.load(at / "U.npy")), dense_case.K.astype(np.float32) @ dense_case.V) < 1e-13


def test_a_changed_matrix_is_noticed(dense_case, folder):
    at, V = folder / "changed", dense_case.folder / "V.npy"
    K = dense_case.K.copy()
    on_root(lambda: at.mkdir() or np.save(at / "K.npy", K))
    ok(drive("compress", job(at), "--output", at / "F.h5"))
    K[9, 8] = K[8, 9] = np.nextafter(K[8, 9], 1)
    on_root(lambda: np.save(at / "K.npy", K))
    exact = ("multiply", at / "F.h5", "--input", V, "--output", at / "U.npy", "--exact")
    assert ok(drive(*exact), 2).errors == ["hpcHess: error: the matrix changed since the compression (their hashes differ): bring it back, or compress again"]
    on_root(lambda: (at / "K.npy").unlink())
    assert "does not exist" in ok(drive(*exact), 2).errors[0]
    run = ok(drive("solve", at / "F.h5", "--rhs", V, "--output", at / "X.npy", "--damping", 1.0))
    assert "exact residual: not available (matrix file" in run.out
    assert listing(at) == ["F.h5", "X.npy", "job.toml"]


def asymmetric(K):
    K[5, 4] *= 1.01
    return K


BAD = {
    "asymmetric": (lambda at, K: np.save(at / "K.npy", asymmetric(K)), "K.npy", "", "not symmetric: [5, 4]"),
    "not finite": (lambda at, K: np.save(at / "K.npy", np.where(K == K[9, 2], np.nan, K)), "K.npy", "", "not finite: nan at [2, 9]"),
    "wrong length": (lambda at, K: K.astype("f4").tofile(at / "K.f32"), "K.f32", "n = 151", "needs 91,204 bytes, it has 90,000"),
    "n missing": (lambda at, K: K.astype("f4").tofile(at / "K.f32"), "K.f32", "", "n = 150"),
    "n contradicts": (lambda at, K: np.save(at / "K.npy", K), "K.npy", "n = 149", "contradicts n = 149"),
    "no square": (lambda at, K: np.save(at / "K.npy", K[:9]), "K.npy", "", "not square"),
    "integers": (lambda at, K: np.save(at / "K.npy", K.astype(int)), "K.npy", "", "int64"),
    "missing": (lambda at, K: None, "K.npy", "", "does not exist"),
    "no dataset": (lambda at, K: None, "K.h5", "", "name the dataset"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files(dense_case, shared_tmp, what):
    make, file, more, words = BAD[what]
    on_root(lambda: make(shared_tmp, dense_case.K.copy()))
    given = job(shared_tmp, file, more)
    before = listing(shared_tmp)
    run = ok(drive("compress", given, "--output", shared_tmp / "F.h5"), 2)
    assert len(run.errors) == 1 and words in run.errors[0]
    assert listing(shared_tmp) == before


def test_outputs_that_would_replace_the_matrix(dense_case, folder):
    for file in ("K.h5:/K", "K.npy"):
        at = folder / f"same {file.partition(':')[0]}"
        on_root(lambda: at.mkdir() or gallery.write_dense(f"{at}/{file}", dense_case.K))  # noqa: B023
        run = ok(drive("compress", job(at, file), "--output", at / file.partition(":")[0]), 2)
        assert "would replace a file that the job reads" in run.errors[0]
        ok(drive("compress", job(at, file), "--output", at / "F.h5"))
        on_root(lambda: np.save(at / "b.npy", np.ones(len(dense_case.K))))  # noqa: B023
        for driver, source, more in (("multiply", "--input", ()), ("solve", "--rhs", ("--damping", "1"))):
            run = ok(drive(driver, at / "F.h5", source, at / "b.npy", "--output", f"{at}/{file}", *more), 2)
            assert len(run.errors) == 1 and f"would replace {at}/{file}, which is read" in run.errors[0]


def test_a_matrix_has_no_inputs(dense_case, shared_tmp):
    on_root(lambda: np.save(shared_tmp / "K.npy", dense_case.K))
    run = ok(drive("compress", job(shared_tmp), "--output", shared_tmp / "F.h5", "--set", "compress.distance=input"), 2)
    assert len(run.errors) == 1 and "input" in run.errors[0]


def test_a_zero_matrix(shared_tmp):
    on_root(lambda: np.save(shared_tmp / "K.npy", np.zeros((9, 9))))
    run = ok(drive("compress", job(shared_tmp), "--output", shared_tmp / "F.h5"))
    assert any("all parameters are dead: H = 0 (the matrix is zero)" in each for each in run.warnings)
