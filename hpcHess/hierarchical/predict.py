"""What HSS and FMM matrices would cost, from the ranks of a few far fields (`tree.auto`)."""

from dataclasses import replace

from hpcHess.compressed.format import Prediction
from hpcHess.tree.auto import ROUNDS, predicted_storage
from hpcHess.tree.build import build_tree
from hpcHess.tree.tree import depth_for

ROUGH, SPREAD = 4.0, 2.2  # measured: small nodes alone, and larger ones too, against what was stored (docs/MATHEMATICS.md)
FEW = ((256, 256, 1 << 17),)  # of `tree.auto.ROUNDS`: small nodes, few columns, few of the nodes
_PASSES = 3.0  # of the search for the tolerances


def predict_hss(facts):
    """Storage of the tree asked for, or of the network-respecting one: what the leaves' own blocks need at least, then estimates from small nodes,
    then from larger ones. Collective.
    """
    operator = facts.operator
    if not hasattr(operator, "entries_batch"):
        return Prediction(refused="no entries to predict from (compress with sampling = products)")
    leaf_size, distance = facts.options.get("leaf_size", 64), facts.options.get("distance", "parameter")
    if distance == "auto":
        distance = "neuron" if hasattr(operator, "neuron_groups") else "parameter"
    made = []

    def tree():
        if not made:
            made.append(build_tree(operator, leaf_size, distance, facts.seed, facts.rtol))
        return made[0]

    def thorough():
        return _predicted(facts, distance, tree(), [*ROUNDS], SPREAD)

    def rough():
        return replace(_predicted(facts, distance, tree(), FEW, ROUGH), refine=thorough, effort=_effort(facts, ROUNDS[-1][1]))

    least = 0.5 * facts.n_alive**2 / 2 ** (depth_for(facts.n_alive, leaf_size) + 1)
    seconds = 2 * leaf_size * facts.product_seconds + facts.seconds_of(4.0 * leaf_size * facts.n_alive)
    return Prediction(least, compress=seconds, error=facts.rtol, bound=True, refine=rough, effort=_effort(facts, FEW[0][1]), note="its leaves alone")


def _effort(facts, columns):
    return 1.5 * columns * facts.product_seconds


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


def _predicted(facts, distance, tree, rounds, spread):
    operator = facts.operator
    entries = float(predicted_storage(operator, {distance: tree}, facts.rtol, facts.seed, rounds=rounds)[distance])
    columns = max(2.0 * tree.leaf_sizes.max(initial=1), 2.5 * entries / max(1, facts.n_alive))
    return Prediction(
        entries=entries,
        memory=entries * facts.itemsize * 2 + 2.5 * operator.dtype.itemsize * facts.n_params * columns,
        compress=columns * facts.product_seconds + facts.seconds_of(_PASSES * 16.0 * columns * entries),
        apply=facts.seconds_of_vector(entries),
        solve=facts.seconds_of(8.0 * entries, 16.0 * entries / 64),
        error=facts.rtol,
        spread=spread,
        note=f"tree {distance}",
    )
