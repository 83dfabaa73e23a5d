"""hpcHess: structured compression of neural networks' curvature matrices over MPI.

    op = hpcHess.GaussNewton(network, inputs, targets, comm=comm)  # or DenseMatrix(K), BlackBox(matmat, n), petsc_operator(mat), …
    H = hpcHess.compress(op, rtol=1e-3, format="auto")  # or hss, fmm, kronecker-sum, low-rank, …
    H @ V;  H.solve(B, damping=…);  H.logdet(damping=…);  H.save(path);  hpcHess.load(path)

Names are imported at first use, so that `python -m hpcHess.<driver>` starts MPI in its own order.
"""

import importlib
import os

# Idle OpenMP threads soon sleep: by default they spin for 20 ms, in which the threads of BLAS want the cores (docs/PERFORMANCE.md)
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_HOMES = {
    "BlackBox": "hpcHess.curvature.black_box",
    "CompressedMatrix": "hpcHess.compressed.matrix",
    "DenseMatrix": "hpcHess.curvature.dense",
    "EmpiricalFisher": "hpcHess.curvature.fisher",
    "FactorFilePC": "hpcHess.formats.factor_pc",
    "Fisher": "hpcHess.curvature.fisher",
    "GaussNewton": "hpcHess.curvature.gauss_newton",
    "Hessian": "hpcHess.curvature.hessian",
    "HierarchicalMatrix": "hpcHess.hierarchical.matrix",
    "InputError": "hpcHess.runtime.errors",
    "MonteCarloFisher": "hpcHess.curvature.fisher",
    "Network": "hpcHess.networks.network",
    "PrincipalSubmatrix": "hpcHess.curvature.submatrix",
    "Regularized": "hpcHess.curvature.regularized",
    "SampledEntries": "hpcHess.curvature.sampled",
    "TorchCurvature": "hpcHess.pytorch.curvature",
    "compress": "hpcHess.formats.compress",
    "gallery": "hpcHess.gallery",
    "linear_operator": "hpcHess.curvature.black_box",
    "load": "hpcHess.formats.file",
    "petsc_mat": "hpcHess.krylov.shell",
    "petsc_operator": "hpcHess.krylov.shell",
    "petsc_pc": "hpcHess.formats.factor_pc",
    "quadrature": "hpcHess.curvature.quadrature",
    "read_network": "hpcHess.networks.weights",
}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'hpcHess' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    found = globals()[name] = module if _HOMES[name] == f"hpcHess.{name}" else getattr(module, name)
    return found


def __dir__():
    return sorted([*globals(), *__all__])
