"""The cases of the published tables: jobs of jobs/ as they stand there, what is measured of each, and what others have published."""

from dataclasses import dataclass
from pathlib import Path

JOBS = Path(__file__).parents[1] / "jobs"
COVERED = "2*error"  # damping 2 ‖H̃ − H‖₂: above the certified error

# C. Yu, S. Reiz, G. Biros and others: distributed GOFMM on 4 nodes × 48 Skylake cores
PUBLISHED = {
    "mnist-fmm-low": "19.17 %, 2e-2, 0.5 s",
    "mnist-fmm-high": "23.98 %, 1e-4, 2.8 s",
    "mnist-hss-low": "0.41 %, 9e-4, factors 0.1 s",
    "mnist-hss-high": "5.1 %, 1e-6, factors 2.5 s",
    "autoencoder-hss-low": "0.25 %, 1e-1, 2.8 s",
    "autoencoder-hss-high": "3.42 %, 9e-5, 37.9 s",
}
# GOFMM's newest source (C++/OpenMP) on a 2-core machine, 2 threads, κ = 32, angle distance, budget 0, tolerance 1e-5, rank = leaf size 256 or 512
GOFMM = {
    "gauss-newton-4096": "35 %, 4.0e-2, 1.3 s, 1.0 / 7.7 ms",
    "gauss-newton-8192": "34 %, 1.7e-2, 3.4 s, 3.9 / 33 ms",
    "gauss-newton-16384": "17 %, 7.5e-2, 7.7 s, 9.6 / 68 ms",
}
# the same: factors s, solve of 1 / 64 right-hand sides ms, λ = 10; and C. Yu, S. Reiz, G. Biros and others
SOLVED = {
    ("gauss-newton-4096", "ulv"): "GOFMM 0.21 s, 2.1 / 16 ms",
    ("gauss-newton-4096", "woodbury"): "GOFMM 0.15 s, 2.7 / 24 ms",
    ("gauss-newton-8192", "ulv"): "GOFMM 1.38 s, 12 / 59 ms",
    ("gauss-newton-8192", "woodbury"): "GOFMM 0.84 s, 19 / 81 ms",
    ("gauss-newton-16384", "ulv"): "GOFMM 2.34 s, 26 / 107 ms",
    ("gauss-newton-16384", "woodbury"): "GOFMM 1.71 s, 45 / 162 ms",
    ("mnist-hss-high", "woodbury"): "published 2.5 s (5.1 %, 1e-6)",
    ("mnist", "woodbury"): "published 0.1 s (0.41 %, 9e-4)",
    ("autoencoder-hss-low", "woodbury"): "published 0.3 s (error of the inverse 4e3)",
}


@dataclass(frozen=True)
class Solves:
    """Solves with H̃ + λI: `damping` as of `hpcHess.solve` or `COVERED`, the forms of the factors, most right-hand sides; the refinement
    against H + λI of so many of them to a residual.
    """

    damping: str = "0.01*lmax"
    solvers: tuple = ("elimination", "ulv", "woodbury")
    columns: int = 100
    refine_columns: int = 100
    refine_rtol: float = 1e-8


@dataclass(frozen=True)
class Case:
    """A row of the tables.

    table      compression, dense, or "" (solves alone)
    job        file of jobs/; `sets` are given to `hpcHess.compress --set`
    matrix     arguments of the module that makes the job's matrix, without --output; `file` its name in the folder of matrices
    repeats    compressions of which the median counts, as long as they take less than 20 s together
    limit      seconds that a compression may take
    layout     (ranks, threads) other than the command's
    measuring  further arguments of `tables_measure`
    """

    name: str
    table: str
    job: str
    sets: tuple = ()
    solves: Solves | None = None
    matrix: tuple = ()
    file: str = ""
    repeats: int = 3
    limit: float = 120.0
    layout: tuple | None = None
    optional: bool = False
    measuring: tuple = ()

    @property
    def beside(self):
        """What others have published, or ""."""
        return PUBLISHED.get(self.name) or GOFMM.get(self.name, "")


def _dense(n, **more):
    name = f"gauss-newton-{n}"
    maker = ("benchmarks.gauss_newton_matrix", "--n", str(n))
    more.setdefault("solves", Solves("10", columns=64, refine_columns=16))
    return Case(more.pop("name", name), "dense", f"{name}.toml", matrix=maker, file=f"GN{n}.f32", **more)


_COVERED = Solves(COVERED, ("woodbury", "elimination"), columns=64, refine_columns=8, refine_rtol=1e-4)
CASES = (
    Case("mnist-fmm-low", "compression", "mnist-fmm-low.toml", solves=Solves(solvers=("elimination",))),
    Case("mnist-hss-low", "compression", "mnist-hss-low.toml"),
    Case("mnist", "compression", "mnist.toml", solves=Solves()),
    _dense(4096),
    _dense(8192),
    _dense(16384),
    _dense(16384, name="gauss-newton-16384, 1 rank × 2 threads", layout=(1, 2), solves=None),
    Case("autoencoder-hss-low", "compression", "autoencoder-hss-low.toml", solves=_COVERED),
    Case("autoencoder-fmm-low", "compression", "autoencoder-fmm-low.toml", repeats=1),
    Case("mnist-hss-high", "compression", "mnist-hss-high.toml", solves=Solves(), repeats=1, limit=240.0),
    Case("mnist-fmm-high", "compression", "mnist-fmm-high.toml", repeats=1, limit=240.0),
    Case("autoencoder-hss-middle", "compression", "autoencoder-hss-middle.toml", solves=_COVERED, repeats=1, limit=240.0),
    Case("autoencoder-hss-high", "compression", "autoencoder-hss-high.toml", repeats=1, limit=7200.0, optional=True),
)

_SMALL = Solves(solvers=("elimination", "woodbury"), columns=10, refine_columns=10)
_BRIEF = ("--repeat", "2", "--brief")
QUICK = (
    Case("small-hss", "compression", "small.toml", solves=_SMALL, repeats=1, measuring=_BRIEF),
    Case("small-fmm", "compression", "small.toml", ("compress.format=fmm", "compress.budget=0.2"), _SMALL, repeats=1, measuring=_BRIEF),
    Case("kernel-512", "dense", "kernel.toml", matrix=("hpcHess.gallery", "K06", "--n", "512"), file="K06-512.npy", repeats=1, measuring=_BRIEF),
)
