"""Which terms of which pairs: by error removed per number stored, until the Frobenius error allows it."""

import numpy as np


def choose(spectra, rtol):
    """(terms of every spectrum [len], relative error, whether a spectrum must grow first): greedy, by times · σ² / numbers.

    A spectrum that can grow is asked to where all it offers is chosen and the error is still too large, or where its last term was.
    """
    total = sum(each.pair.times * each.norm2 for each in spectra)
    counts = np.zeros(len(spectra), np.int64)
    if total == 0:
        return counts, 0.0, []
    owner = np.concatenate([np.full(len(each.values), at) for at, each in enumerate(spectra)])
    gain = np.concatenate([each.pair.times * np.square(each.values) for each in spectra])
    price = np.concatenate([np.full(len(each.values), float(each.pair.term_numbers())) for each in spectra])
    order = np.argsort(-gain / price, kind="stable")
    left = sum(each.pair.times * each.tails[0] for each in spectra)
    after = left - np.cumsum(gain[order])
    allowed = (rtol * np.sqrt(total)) ** 2
    needed = int(np.searchsorted(-after, -allowed)) + 1 if left > allowed else 0
    # cumulative differences lose digits: settle the last terms by the tails themselves
    needed = min(needed, len(order))
    while True:
        counts = np.bincount(owner[order[:needed]].astype(np.int64), minlength=len(spectra))
        if squared_error(spectra, counts) <= allowed or needed == len(order):
            break
        needed += 1
    hungry = [at for at, each in enumerate(spectra) if each.route == "randomized" and counts[at] == len(each.values)]
    return counts, np.sqrt(squared_error(spectra, counts) / total), hungry


def squared_error(spectra, counts):
    """Σ times · ‖R − its first terms‖²."""
    return float(sum(each.pair.times * each.tails[count] for each, count in zip(spectra, counts, strict=True)))


def grown(spectra, rtol):
    """`choose` after every spectrum that needs to has grown: (counts, error). Collective."""
    while True:
        counts, error, hungry = choose(spectra, rtol)
        if not [at for at in hungry if spectra[at].grow()]:
            return counts, error
