"""How the error is shared: shares add up, and sharing by storage stores less than sharing equally."""

import numpy as np
import pytest

from hpcHess.hierarchical import tolerance
from hpcHess.hierarchical.compress import compress
from hpcHess.hierarchical.tolerance import FIRST, Budget, equal_shares, shares_by_storage
from hpcHess.tree.interactions import far_fields, far_pairs, near_self
from tests.reference.dense_operator import DenseOperator, exponential_kernel


def hss(depth):
    return far_fields(far_pairs(near_self(depth), depth))


@pytest.mark.parametrize("depth", [1, 4])
def test_equal_shares(depth):
    shares = equal_shares(hss(depth))
    assert [len(part) for part in shares] == [1 << level for level in range(depth + 1)]
    assert np.isclose(sum(part.sum() for part in shares), 1) and shares[0] == 0


def test_shares_by_storage_add_up(comm):
    H = compress(DenseOperator(exponential_kernel(300), comm), rtol=1e-3, leaf_size=32)
    shares = shares_by_storage(H.levels)
    assert np.isclose(sum(part.sum() for part in shares), 1) and all(np.all(part > 0) for part in shares[1:])
    heaviest = max(range(1, len(shares)), key=lambda level: shares[level].max())
    assert H.levels[heaviest].ranks.max() == max(level.ranks.max() for level in H.levels[1:])


def test_tolerances_square_to_the_budget():
    budget = Budget(1e-2, 50.0, hss(3))
    assert np.isclose(2 * sum(np.sum(part**2) for part in budget.tolerances()), (FIRST * 1e-2 * 50.0) ** 2)


def test_a_missed_error_tightens_and_a_met_one_ends(comm):
    H = compress(DenseOperator(exponential_kernel(200), comm), rtol=1e-2, leaf_size=32)
    budget = Budget(1e-2, 1.0, hss(H.tree.depth))
    assert budget.learn(2e-2, 1.0, H.levels, False)
    assert budget.share < 0.5 * FIRST
    assert budget.learn(1.2e-2, 1.0, H.levels, False)
    assert not budget.learn(0.97e-2, 1.0, H.levels, False)
    saturated = Budget(1e-2, 1.0, hss(H.tree.depth))
    assert [saturated.learn(1.0, 1.0, H.levels, True) for _ in range(3)] == [True, True, False]


def test_a_step_that_changes_no_rank_is_followed_by_a_larger_one(comm):
    H = compress(DenseOperator(exponential_kernel(200), comm), rtol=1e-2, leaf_size=32)
    budget = Budget(1e-2, 1.0, hss(H.tree.depth))
    shares = []
    for _ in range(5):
        assert budget.learn(1.02e-2, 1.0, H.levels, False)
        shares.append(budget.share)
    assert shares[0] > 0.9 * FIRST and shares[-1] < 0.15 * FIRST


def test_sharing_by_storage_pays(comm, monkeypatch):
    operator = DenseOperator(exponential_kernel(900, 0.3, dimension=4), comm)
    options = {"rtol": 1e-1, "leaf_size": 24, "distance": "angle"}
    shared = compress(operator, **options).report
    monkeypatch.setattr(tolerance, "EXPONENT", 0.0)  # the same tolerance for all nodes
    equal = compress(operator, **options).report
    assert shared["rtol_met"] and equal["rtol_met"] and shared["storage_entries"] < 0.9 * equal["storage_entries"]
