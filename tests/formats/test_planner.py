"""The choice between formats: predictions against what then happened, the choice against all formats made, memory, and what is told."""

import json
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.compressed.facts import Facts
from hpcHess.compressed.format import Prediction
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats import planner
from hpcHess.formats.compress import compress
from hpcHess.formats.planner import Plan, cost_of, explained, facts_of, plan, predictions_of
from hpcHess.formats.registry import FORMATS
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.reference.dense_operator import DenseOperator, gaussian_kernel

COMM = MPI.COMM_WORLD
SIZES = {"block-diagonal", "dense", "none", "data-woodbury"}  # formats whose size needs no spectrum


def network(widths, loss, samples, seed=0):
    """The operator of a random network, its inputs of decaying variance."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(widths[:-1], widths[1:])]
    x = rng.standard_normal((samples, widths[0])) * 0.8 ** np.arange(widths[0])
    return GaussNewton(Network(weights, [np.zeros(len(W)) for W in weights], "tanh", loss), x, comm=COMM)


@cache
def classifier():
    return network((20, 12, 10, 4), "cross-entropy", 60)


@cache
def autoencoder():
    return network((24, 6, 24), "squared-error", 60)


def made(operator, rtol, name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        return compress(operator, rtol, name, leaf_size=24, **{"distance": "neuron"} | options)


@pytest.mark.parametrize("operator", [classifier, autoencoder])
@pytest.mark.parametrize("rtol", [1e-1, 1e-3])
def test_predictions_come_true(operator, rtol):
    """Bytes within 10 % where sizes follow from what is known, within its own spread where ranks are estimated."""
    facts = facts_of(operator(), rtol, "auto", options={"leaf_size": 24, "distance": "neuron"})
    predicted = predictions_of(facts)
    assert set(predicted) == {name for name, each in FORMATS.items() if each.predict is not None} >= SIZES | {"hss", "low-rank", "kronecker-sum"}
    for name, each in predicted.items():
        if each.refused:
            assert name == "fmm"
            continue
        while each.refine is not None:
            each = each.refine()
        happened = made(operator(), rtol, name).report["storage_entries"]
        spread = max(1.1, each.spread)
        assert happened / spread <= each.entries <= spread * happened + 1, (name, each.entries, happened)
        assert (each.spread == 1) == (name in SIZES | {"kronecker-sum"})
        if name in SIZES:
            assert happened == pytest.approx(each.entries)


@pytest.mark.parametrize("operator", [classifier, autoencoder])
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
def test_auto_stores_no_more_than_any_format(operator, rtol):
    singles = {name: made(operator(), rtol, name) for name, each in FORMATS.items() if each.approximates and each.predict is not None}
    least = min(each.report["storage_entries"] for each in singles.values() if each.report["rtol_met"])
    H = made(operator(), rtol, "auto", objective="storage")
    assert H.report["rtol_met"] and H.report["storage_entries"] <= 1.05 * least
    assert H.report["plan"]["chosen"] == H.format in H.report["plan"]["tried"]


def test_auto_goes_on_where_the_first_choice_misses_or_is_refused(monkeypatch):
    """A prediction that was too hopeful, a method that does not fit the matrix."""
    operator = classifier()
    hopeful = replace(FORMATS["block-diagonal"], predict=lambda facts: Prediction(entries=1.0))
    refused = replace(FORMATS["low-rank"], predict=lambda facts: Prediction(entries=2.0), compress=refuse)
    monkeypatch.setitem(FORMATS, "block-diagonal", hopeful)
    monkeypatch.setitem(FORMATS, "low-rank", refused)
    for objective in ("time", "storage"):
        H = made(operator, 1e-2, "auto", objective=objective)
        tried = H.report["plan"]["tried"]
        assert H.report["rtol_met"] and not tried["block-diagonal"]["rtol_met"] and tried["low-rank"] == {"refused": "not this one"}
        json.dumps(H.report, allow_nan=False)


def test_ranks_that_differ_in_a_prediction_choose_alike(monkeypatch):
    """Ranks whose BLAS differ would else make different formats, and hang."""
    off = lambda facts: Prediction(entries=1.0 if COMM.rank else 1e9)  # noqa: E731
    monkeypatch.setitem(FORMATS, "dense", replace(FORMATS["dense"], predict=off))
    found = COMM.allgather(predictions_of(facts_of(classifier(), 1e-2, "auto"))["dense"].entries)
    assert set(found) == {1e9}


def refuse(operator, **options):
    raise InputError("not this one")


def test_block_diagonal_is_predicted_to_miss():
    facts = facts_of(classifier(), 1e-2, "auto")
    error = FORMATS["block-diagonal"].predict(facts).error
    assert error == pytest.approx(made(classifier(), 1e-2, "block-diagonal").report["error_estimate"]["value"], rel=0.3) and error > 1e-2


def test_costs_and_rivals():
    """Storage counts numbers; time counts the compression and every right-hand side. Rivals are those whose predictions overlap."""
    facts = facts_of(classifier(), 1e-2, "auto", rhs_count=10, workload="multiply")
    one = Prediction(entries=100, compress=3.0, apply=0.5, solve=7.0)
    assert cost_of(one, facts, "storage") == 100 and cost_of(one, facts, "time") == pytest.approx(8.0)
    assert cost_of(one, facts_of(classifier(), 1e-2, "auto", rhs_count=2), "time") == pytest.approx(17.0)
    table = {"hss": Prediction(entries=100, spread=2.0), "low-rank": Prediction(entries=210, spread=1.1), "dense": Prediction(entries=150)}
    assert Plan("storage", ("hss", "dense", "low-rank"), table, 0.0, 1).rivals == ("dense", "low-rank")
    assert Plan("time", ("hss", "dense", "low-rank"), table, 0.0, 1).rivals == ()


def test_one_product_needs_no_compression_and_many_do():
    """One right-hand side to multiply: the exact form; so many that any compression pays: none of the slow ones."""
    few = plan(facts_of(autoencoder(), 1e-1, "auto", rhs_count=1, workload="multiply"), "time")
    many = facts_of(autoencoder(), 1e-1, "auto", rhs_count=10**9, workload="multiply")
    assert few.first == "none"
    best = plan(many, "time")
    assert best.predictions[best.first].apply == min(best.predictions[name].apply for name in best.order)


def test_what_does_not_fit_the_memory_stops_before_it_starts():
    with pytest.raises(InputError, match="dense needs about .* but 0.001 MB may be used: raise --memory"):
        compress(classifier(), format="dense", memory=1000)
    with pytest.raises(InputError, match="data-woodbury needs about .*Gram matrix of 180 rows"):
        compress(classifier(), format="data-woodbury", memory=1000)
    with pytest.raises(InputError, match="no format can serve with 0.001 MB of memory: hss: needs"):
        compress(classifier(), format="auto", memory=1000)
    assert made(classifier(), 1e-2, "dense", memory=10**9).format == "dense"


def test_memory_of_the_host_counts_where_none_is_given(monkeypatch):
    monkeypatch.setattr("hpcHess.parallel.memory.free_bytes", lambda: 3000 * COMM.size)
    with pytest.raises(InputError, match="may be used|would take"):
        compress(classifier(), format="dense")


def test_the_explanation_names_every_format_and_the_reasons():
    facts = facts_of(classifier(), 1e-3, "auto", rhs_count=7)
    chosen = plan(facts, "storage")
    lines = list(explained(chosen, facts))
    assert "least storage for rtol 0.001, 7 right-hand sides to solve for" in lines[0]
    for name in chosen.predictions:
        assert sum(line.split()[0] == name for line in lines[2:]) == 1
    assert any("block-diagonal" in line and "expected, asked 0.001" in line for line in lines)
    assert any("dense" in line and "exact: not judged by storage" in line for line in lines)


def test_the_rank_is_read_off_the_spectrum():
    """A spectrum that is known: 2^-k, k = 0 … ; the rank at a tolerance is that of the tail."""
    n = 200
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    values = 0.7 ** np.arange(n)
    operator = DenseOperator((Q * values) @ Q.T, COMM)
    facts = Facts(operator, 1e-3, 4, 1, "solve", 1 << 30)
    for rtol in (1e-1, 1e-2, 1e-3):
        tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1] / np.sum(values**2))
        assert facts.rank(rtol) == pytest.approx(int(np.argmax(tails <= rtol)), rel=0.3, abs=2)


def test_matrices_without_layers_or_entries():
    H = compress(DenseOperator(gaussian_kernel(150), COMM), 1e-4, "auto", objective="storage", leaf_size=16)
    assert H.format in ("hss", "fmm", "low-rank") and H.report["plan"]["predictions"]["kronecker-sum"]["refused"] == "no layers"


@pytest.mark.parametrize("wrong", [{"rhs_count": 0}, {"workload": "divide"}, {"structured_size": 4}])
def test_bad_input(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        compress(classifier(), **wrong)
    assert planner.available_memory(COMM, 77) == 77
