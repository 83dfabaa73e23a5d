"""The formats hss and fmm, registered."""

from functools import partial

from hpcHess.compressed.format import Format
from hpcHess.hierarchical.compress import compress
from hpcHess.hierarchical.file import read
from hpcHess.hierarchical.predict import predict_fmm, predict_hss

_OPTIONS = ("leaf_size", "max_rank", "distance", "budget", "n_neighbors", "sampling", "solver")


def describe(summary):
    """Near lists, the preconditioner of an FMM matrix, and the table of the levels."""
    if summary["format"] == "fmm" and "n_neighbors" in summary:
        yield f"near lists  of {summary['n_neighbors']} neighbours, at most {summary['budget']:g} of the leaves before symmetrization"
    second = summary.get("preconditioner")
    if second is not None:
        reached, nodes = second.get("error_estimate", {}).get("value"), second.get("saturated_nodes", 0)
        reached = "unknown" if reached is None else f"{reached:.2g}"
        yield (
            f"solver      PETSc, preconditioned by an HSS matrix (error {reached} of ‖H‖_F) of {second['storage_entries']:,} further numbers, "
            f"{summary['preconditioner_percent']:.4g} % of N²{f'; the ranks of {nodes} nodes were cut' if nodes else ''}"
        )
    levels = summary.get("levels", [])
    counted = all("near_blocks" in row and "far_blocks" in row for row in levels)
    yield f"tree        depth {summary['depth']}, leaves ≤ {summary['leaf_size']}"
    yield ""
    yield f"{'level':>5} {'nodes':>8} {'rank min':>9} {'mean':>9} {'max':>6} {'bytes':>16}" + (f" {'near':>9} {'far':>9}" if counted else "")
    for row in levels:
        yield (
            f"{row['level']:>5} {row['nodes']:>8} {row['rank_min']:>9} {row['rank_mean']:>9.1f} {row['rank_max']:>6} {row['bytes']:>16,}"
            + (f" {row['near_blocks']:>9,} {row['far_blocks']:>9,}" if counted else "")
        )


HSS = Format("hss", "hierarchically semiseparable: dense leaves, nested low-rank couplings", partial(compress, format="hss"), read, _OPTIONS, describe, predict_hss)
FMM = Format("fmm", "the same with near lists", partial(compress, format="fmm"), read, _OPTIONS, describe, predict_fmm)
