"""The figures: name, what is asked in words, the module that measures it, seconds at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`python -m benchmarks.figures NAME`: `module` has `measure(options) → rows` (`turns.row`), run in a process of its own for at most `limit` seconds."""

    name: str
    asked: str
    limit: int

    @property
    def module(self):
        """Dotted name."""
        return f"benchmarks.figures.{self.name.replace('-', '_')}"


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("products", "Hessian products with 64 vectors: 60 % of sgemm", 300),
        Figure("entries", "grouped entries of leaf blocks: 40 % of sgemm, 10 × the Gram route", 300),
        Figure("pivoted-qr", "truncated pivoted QR, 512 × 512 at rank 64: 5 × scipy.linalg.qr(pivoting=True)", 200),
        Figure("stored", "product H̃v: 70 % of triad bandwidth with 1 vector, 50 % of sgemm with 64", 400),
        Figure("woodbury", "Woodbury factor 40 % of dgemm; solve with 1: 60 % of triad bandwidth, with 64: 40 % of dgemm", 500),
        Figure("million", "1,000,000-parameter network, HSS at 1e-1: compressed in 90 s, in 12 GB", 400),
        Figure("growth", "N = 125k to 1M at fixed rank: time a parameter within 1.3 ×", 500),
        Figure("ranks", "2 ranks against 1, a thread each: 1.8 × where gemm-bound, 1.4 × where bandwidth-bound", 500),
        Figure("solves", "10,000 solves of (H + λI)x = b to 1e-6, λ = 1e-4 λ_max: 20 × CG with curvlinops' product", 500),
        Figure("compressed-product", "compressed against exact product, 64 vectors, error 1e-2: 3 × at n = 10,000, 15 × at 60,000", 600),
        Figure("dense-lapack", "plain dense BLAS and LAPACK on the same matrix: reported", 300),
        Figure("gpu", "a GPU against 2 cores: products 50 ×, compression 20 ×, solve 20 ×; 40 % of the device's ceilings", 300),
    )
}
