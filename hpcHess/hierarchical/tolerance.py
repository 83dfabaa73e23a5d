"""How the allowed error is shared among the nodes, and when to stop sharing anew.

The nodes' errors add up in squares: ‖H̃ − H‖_F² ≈ 2 Σ_α ε_α². Storage is least, for tails that fall like powers of the rank,
where ε_α² ∝ the numbers stored for α (Lagrange). Measured, ε_α² ∝ (storage of α)^0.85 is better still, because a rank saved
below also narrows the nodes above (docs/MATHEMATICS.md). The storage is known after a first pass, which gives each level an equal part,
and better after a second.
"""

import numpy as np

from hpcHess.tree.interactions import far_fields

EXPONENT = 0.85
ATTEMPTS = 8
FIRST = 1.5  # of the share: about what the corrected tails overestimate, and a first pass need not be tight
LEARNING = 2  # attempts after which the shares are set by what was stored
AIM = 0.96  # of rtol, for the upper end of the interval
GOOD = 0.93  # an error above this part of rtol is used well enough


def equal_shares(has_far):
    """ε_α²·2/ε² for every node of every level: list over 0 … depth of float64 [2^level]; the sum over all nodes is 1.

    Nodes without a far field (`tree.interactions.far_fields`) have rank 0 and no share; the sum is 0 where no node has one.
    """
    levels = sum(bool(flags.any()) for flags in has_far)
    return [flags / (levels * max(1.0, flags.sum())) if levels else np.zeros(len(flags)) for flags in has_far]


def shares_by_storage(levels):
    """Shares ∝ (r(c − r) + ½ Σ r r_β over couplings)^0.85 from the ranks of a finished pass; rank 0 counts as 1; no far field, no share."""
    costs, has_far = [np.zeros(1)], far_fields([None, *(level.far.pairs for level in levels[1:])])
    for level in levels[1:]:
        ranks = np.maximum(level.ranks, 1).astype(np.float64)
        a, b = level.far.pairs.T
        coupled = np.bincount(a, ranks[b], len(ranks)) + np.bincount(b, ranks[a], len(ranks))
        costs.append(has_far[level.level] * (ranks * np.maximum(level.columns - ranks, 1) + 0.5 * ranks * coupled) ** EXPONENT)
    total = sum(float(cost.sum()) for cost in costs)
    return [cost / total if total else cost for cost in costs]


class Budget:
    """The tolerance of each attempt: `tolerances()`, then `learn(…)` what came of it, until it says stop.

    rtol is that of the whole matrix; `scale` ‖H‖_F; `has_far`: as of `tree.interactions.far_fields`.
    """

    def __init__(self, rtol, scale, has_far):
        self.rtol, self.scale, self.share, self.attempts = rtol, scale, FIRST, 0
        self.shares, self._high = equal_shares(has_far), None

    def tolerances(self):
        """Absolute tolerances of the nodes by level."""
        return [self.share * self.rtol * self.scale * np.sqrt(part / 2) for part in self.shares]

    def tighten(self, share, high):
        """After a certificate that missed rtol: scale down the share that led to it; False when there is no attempt left."""
        self.share = share * AIM * self.rtol / high
        return self.attempts < ATTEMPTS

    def learn(self, high, scale, levels, saturated):
        """Adapt to the upper end of the error's interval; True when another attempt is worthwhile."""
        self.attempts += 1
        stuck, self.scale, self._high = high == self._high, scale, high  # ranks are integers: a small step may change none
        met = high <= self.rtol
        if not any(part.any() for part in self.shares) or self.attempts == ATTEMPTS or (saturated and self.attempts > LEARNING):
            return False
        if met and self.attempts >= LEARNING and (high >= GOOD * self.rtol or self.attempts > LEARNING + 1):
            return False
        if self.attempts <= LEARNING:
            self.shares = shares_by_storage(levels)
        change = (AIM * self.rtol / high if high > 0 else 2.0) * (0.6 if stuck and not met else 1.0)
        self.share *= float(np.clip(change if met or self.attempts <= LEARNING else 0.97 * change, 0.05, 2.0))
        return True
