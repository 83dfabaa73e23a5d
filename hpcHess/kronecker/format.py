"""The format kronecker-sum, registered."""

from hpcHess.compressed.format import Format
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.file import read
from hpcHess.kronecker.predict import predict_kronecker


def describe(summary):
    """The terms of every layer pair, and the comparison with K-FAC."""
    yield f"terms       {summary.get('terms', 'auto')}: Σ A ⊗ S over pairs of layers, the error is exact"
    comparison = summary.get("comparison", {})
    for name, row in comparison.items():
        yield f"  {name:<18} error {row['error']:.3e} of ‖H‖_F, {row['storage_percent']:.4g} % of N²"
    if summary.get("pairs"):
        yield ""
        yield f"{'layers':>9} {'terms':>7} {'of':>7} {'numbers':>14} {'error left':>11}  by"
        for row in summary["pairs"]:
            layers = " × ".join(str(layer + 1) for layer in row["layers"])
            yield f"{layers:>9} {row['terms']:>7} {row['offered']:>7} {row['numbers']:>14,} {row['error']:>11.2e}  {row['route']}"


SUMMARY = "sums of Kronecker products of every pair of layers"
KRONECKER_SUM = Format("kronecker-sum", SUMMARY, compress_kronecker, read, ("terms",), describe, predict_kronecker)
