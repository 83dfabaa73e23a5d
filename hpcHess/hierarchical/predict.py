"""What HSS and FMM matrices would cost, from the ranks of a few far fields (`tree.auto`)."""

from hpcHess.compressed.format import Prediction
from hpcHess.tree.auto import predicted_storage
from hpcHess.tree.build import build_tree

SPREAD = 2.2  # measured: predictions of `tree.auto` against what was stored (docs/MATHEMATICS.md)
_PASSES = 3.0  # of the search for the tolerances


def predict_hss(facts):
    """Storage of the tree asked for; `Facts.rank` bounds the sketch."""
    operator = facts.operator
    if not hasattr(operator, "entries_batch"):
        return Prediction(refused="no entries to predict from (compress with sampling = products)")
    leaf_size, distance = facts.options.get("leaf_size", 64), facts.options.get("distance", "parameter")
    names = [distance] if distance != "auto" else ["neuron" if hasattr(operator, "neuron_groups") else "parameter"]
    trees = {name: build_tree(operator, leaf_size, name, facts.seed, facts.rtol) for name in names}
    name, entries = min(predicted_storage(operator, trees, facts.rtol, facts.seed).items(), key=lambda item: item[1])
    entries = float(entries)
    columns = max(2.0 * leaf_size, 2.5 * entries / facts.n_alive)
    flops = _PASSES * 4.0 * columns * entries
    return Prediction(
        entries=entries,
        memory=entries * facts.itemsize * 2 + 6.0 * operator.dtype.itemsize * facts.n_params * columns,
        compress=columns * facts.product_seconds + facts.seconds_of(flops) * 4,
        apply=facts.seconds_of_vector(entries),
        solve=facts.seconds_of(8.0 * entries, 16.0 * entries / 64),
        error=facts.rtol,
        spread=SPREAD,
        note=f"tree {name}",
    )
