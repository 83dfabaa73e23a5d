"""SLEPc's eigenpairs against dense decompositions."""

import numpy as np
import pytest

pytest.importorskip("slepc4py")

from hpcHess.krylov.eigen import largest_eigenpairs
from tests.krylov.test_krylov import Dense, gathered

N = 120


@pytest.mark.parametrize("known", [0, 5])
def test_largest_magnitude_with_deflation(comm, known):
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    spectrum = 0.8 ** np.arange(N) * (-1.0) ** np.arange(N)
    A = Dense((Q * spectrum) @ Q.T, comm)
    deflated = np.ascontiguousarray(Q[A.rows, :known])
    values, vectors = largest_eigenpairs(A, 6, 1e-10, start=np.ones(N)[A.rows], known=deflated)
    assert len(values) >= 6 and vectors.shape == (A.rows.stop - A.rows.start, len(values))
    assert np.allclose(values[:6], spectrum[known : known + 6], rtol=0, atol=1e-10)
    U = gathered(A, np.ascontiguousarray(vectors))
    assert np.linalg.norm(A.H @ U - U * values, axis=0).max() <= 1e-9
    assert np.abs(U.T @ U - np.eye(len(values))).max() <= 1e-12 and np.abs(Q[:, :known].T @ U).max(initial=0) <= 1e-10


def test_a_tolerance_is_absolute(comm):
    A = Dense(np.diag(1e6 * 0.5 ** np.arange(40)), comm)
    loose, tight = (largest_eigenpairs(A, 3, tolerance) for tolerance in (1e3, 1e-6))
    for (values, vectors), bound in ((loose, 1e3), (tight, 1e-6)):
        U = gathered(A, np.ascontiguousarray(vectors))
        assert np.linalg.norm(A.H @ U - U * values, axis=0).max() <= 2 * bound
