"""What the exact formats of the samples would cost: their sizes are known."""

import numpy as np

from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.format import Prediction
from hpcHess.factored.form import numbers_a_sample
from hpcHess.parallel.ownership import row_starts


def form_numbers(facts):
    """Numbers of the factored form (`factored.form`), 0 for an operator without samples."""
    if not hasattr(facts.operator, "samples"):
        return 0.0
    network, constant = facts.network, facts.operator.samples.loss.constant
    return float(facts.n_samples * numbers_a_sample(network, constant) + sum(W.size for W in network.weights[network.chosen[0] + 1 :]))


def predict_none(facts):
    """Nothing to compress; solves are CG or MINRES with the exact operator. Not collective."""
    entries = form_numbers(facts)
    return Prediction(
        entries=entries,
        memory=entries * (facts.itemsize + 8),
        apply=facts.product_seconds,
        solve=facts.seconds_of_cg(facts.product_seconds),
        note=f"exact products, {'MINRES' if getattr(facts.operator, 'indefinite', False) else 'CG'}",
    )


def predict_data_woodbury(facts):
    """GGᵀ of M = n r rows, r the outputs less what softmax leaves out; Cholesky once a damping. Collective."""
    if not hasattr(facts.operator, "samples"):
        return Prediction(refused="indefinite" if getattr(facts.operator, "indefinite", False) else "no samples")
    rank = {"CrossEntropy": facts.n_outputs - 1, "OuterProduct": 1}.get(facts.operator.samples.loss.__name__, facts.n_outputs)
    rows, numbers, comm = float(facts.n_samples * rank), form_numbers(facts), facts.comm
    starts = row_starts(facts.n_samples, comm.size) * rank
    gram = rows * (rows + 1) / 2
    network = facts.network
    assembly = rows * facts.n_samples * (sum(network.inner) + rank * sum(network.widths[layer + 1] for layer in network.chosen))
    return Prediction(
        entries=numbers + gram,
        memory=numbers * (facts.itemsize + 8) + float(comm.allreduce(SymmetricBlocks.bytes_needed(comm, [int(rows)], np.float64, starts, factors=True))),
        compress=facts.seconds_of(2.0 * assembly),
        apply=facts.product_seconds,
        solve=2 * facts.product_seconds + facts.seconds_of(4.0 * rows**2) + facts.seconds_of(2.0 * rows**3 / 3) / facts.rhs_count,
        note=f"Gram matrix of {rows:,.0f} rows",
    )
