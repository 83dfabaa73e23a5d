"""What HSS and FMM matrices would cost, from the ranks of a few far fields (`tree.auto`)."""

from dataclasses import replace

from hpcHess.compressed.format import Prediction
from hpcHess.tree.auto import ROUNDS, predicted_storage
from hpcHess.tree.build import build_tree

ROUGH, SPREAD = 4.0, 2.2  # measured: small nodes alone, and larger ones too, against what was stored (docs/MATHEMATICS.md)
FEW = ((256, 256, 1 << 17),)  # of `tree.auto.ROUNDS`: small nodes, few columns, few of the nodes
_PASSES = 3.0  # of the search for the tolerances


def predict_hss(facts):
    """Storage of the tree asked for, or of the network-respecting one; first from small nodes alone. Collective."""
    operator = facts.operator
    if not hasattr(operator, "entries_batch"):
        return Prediction(refused="no entries to predict from (compress with sampling = products)")
    distance = facts.options.get("distance", "parameter")
    if distance == "auto":
        distance = "neuron" if hasattr(operator, "neuron_groups") else "parameter"
    tree = build_tree(operator, facts.options.get("leaf_size", 64), distance, facts.seed, facts.rtol)
    return _predicted(facts, distance, tree, FEW, ROUGH, lambda: _predicted(facts, distance, tree, [*ROUNDS], SPREAD))


def predict_fmm(facts):
    """As HSS, with more room for error: where near lists pay is not predicted. On networks they do not (measured, docs/MATHEMATICS.md). Collective."""
    if hasattr(facts.operator, "neuron_groups"):
        return Prediction(refused="near lists do not pay on networks")
    return _with_near_lists(predict_hss(facts))


def _with_near_lists(found):
    """The prediction of the HSS matrix, widened."""
    if found.refused:
        return found
    refine = None if found.refine is None else lambda: _with_near_lists(found.refine())
    return replace(found, spread=1.5 * found.spread, compress=2.0 * found.compress, solve=20.0 * found.solve, refine=refine, note=f"{found.note}, near lists")


def _predicted(facts, distance, tree, rounds, spread, refine=None):
    operator = facts.operator
    entries = float(predicted_storage(operator, {distance: tree}, facts.rtol, facts.seed, rounds=rounds)[distance])
    columns = max(2.0 * tree.leaf_sizes.max(initial=1), 2.5 * entries / max(1, facts.n_alive))
    return Prediction(
        entries=entries,
        memory=entries * facts.itemsize * 2 + 6.0 * operator.dtype.itemsize * facts.n_params * columns,
        compress=columns * facts.product_seconds + facts.seconds_of(_PASSES * 16.0 * columns * entries),
        apply=facts.seconds_of_vector(entries),
        solve=facts.seconds_of(8.0 * entries, 16.0 * entries / 64),
        error=facts.rtol,
        spread=spread,
        note=f"tree {distance}",
        refine=refine,
    )
