"""The format low-rank, registered."""

from hpcHess.compressed.format import Format
from hpcHess.lowrank.compress import compress
from hpcHess.lowrank.file import read
from hpcHess.lowrank.predict import predict_low_rank


def describe(summary):
    """The rank, its eigenvalues, and how they were found."""
    first, last = (summary[f"eigenvalue_{which}"] for which in ("first", "last"))
    yield f"rank        {summary['rank']}, eigenvalues {first:.4g} … {last:.4g} (by magnitude)"
    yield f"method      {summary['method']}, {summary['exact_products']:,} exact products, a space of {summary['columns']:,} vectors"


LOW_RANK = Format("low-rank", "U Λ Uᵀ: leading eigenpairs of the whole matrix", compress, read, ("method", "max_rank"), describe, predict_low_rank)
