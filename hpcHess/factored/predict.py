"""What the exact formats of the samples would cost: their sizes are known."""

import numpy as np

from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.format import Prediction
from hpcHess.parallel.ownership import row_starts


def form_numbers(facts):
    """Numbers of the factored form (`factored.form`), 0 for an operator that is no network's."""
    if facts.widths is None:
        return 0.0
    widths, constant = facts.widths, getattr(facts.operator.samples.loss, "constant", False)
    a_sample = sum(widths[:-1]) + 1 + sum(widths[1:-1]) + (0 if constant else widths[-1])
    return float(facts.n_samples * a_sample + sum(a * b for a, b in zip(widths[1:-1], widths[2:], strict=True)))


def predict_none(facts):
    """Nothing to compress; solves are CG with the exact operator. Not collective."""
    entries = form_numbers(facts)
    return Prediction(
        entries=entries,
        memory=entries * (facts.itemsize + 8),
        apply=facts.product_seconds,
        solve=facts.seconds_of_cg(facts.product_seconds),
        note="exact products, CG",
    )


def predict_data_woodbury(facts):
    """GGᵀ of M = n r rows, r the outputs less what softmax leaves out; Cholesky once a damping. Collective."""
    if facts.widths is None:
        return Prediction(refused="no samples")
    rank = {"CrossEntropy": facts.n_outputs - 1, "OuterProduct": 1}.get(facts.operator.samples.loss.__name__, facts.n_outputs)
    rows, numbers, comm = float(facts.n_samples * rank), form_numbers(facts), facts.comm
    starts = row_starts(facts.n_samples, comm.size) * rank
    gram = rows * (rows + 1) / 2
    assembly = rows * facts.n_samples * (sum(facts.widths[:-1]) + rank * sum(facts.widths[1:]))
    return Prediction(
        entries=numbers + gram,
        memory=numbers * (facts.itemsize + 8) + float(comm.allreduce(SymmetricBlocks.bytes_needed(comm, [int(rows)], np.float64, starts, factors=True))),
        compress=facts.seconds_of(2.0 * assembly),
        apply=facts.product_seconds,
        solve=2 * facts.product_seconds + facts.seconds_of(4.0 * rows**2) + facts.seconds_of(2.0 * rows**3 / 3) / facts.rhs_count,
        note=f"Gram matrix of {rows:,.0f} rows",
    )
