"""A rank's share of the samples, from arrays, tensors or a map-style data set."""

import numpy as np
import torch

from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError

_TRIED = 16  # targets on which a loss is tried


class Samples:
    """Samples `rows` (a slice of all n) of one rank: `inputs` [m, …] and `targets` [m, …] or None, tensors of the host.

    data    (inputs, targets), arrays or tensors of n rows each, targets None where H does not depend on them; or a data set of n pairs,
            of which a rank reads its own alone
    Floating-point numbers come in `dtype`, as do bool and uint8 (pixels); other integers (labels, tokens) in int64. Making it is not collective;
    InputError: sizes that do not fit, not real numbers, inputs or targets that are not finite (the first sample is named).
    """

    def __init__(self, data, comm, dtype):
        pair = isinstance(data, tuple | list)
        if pair and len(data) != 2:
            raise InputError(f"data must be (inputs, targets) or a data set of such pairs, not {len(data)} arrays")
        if not pair and not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, np.ndarray | torch.Tensor):
            raise InputError(f"data must be (inputs, targets) or a map-style data set of such pairs, not {type(data).__name__}")
        self.n = _rows(data[0], "inputs") if pair else len(data)
        if self.n < 1:
            raise InputError("there are no samples")
        if pair and data[1] is not None and _rows(data[1], "targets") != self.n:
            raise InputError(f"there are {self.n} inputs and {_rows(data[1], 'targets')} targets")
        lo, hi = row_starts(self.n, comm.size)[comm.rank :][:2]
        self.rows = slice(int(lo), int(hi))
        if self.rows.stop == self.rows.start:  # more ranks than samples: one to measure shapes by, which counts for nothing
            self.rows, self.mine = slice(self.n - 1, self.n), 0
        else:
            self.mine = self.rows.stop - self.rows.start
        inputs, targets = _of_pair(data, self.rows) if pair else _of_set(data, self.rows)
        self.inputs = _tensor(inputs, dtype, "inputs", self.rows.start)
        self.targets = None if targets is None else _tensor(targets, dtype, "targets", self.rows.start)

    @property
    def first(self):
        """(inputs [1, …], targets [1, …] or None) of the first sample, tensors of their own."""
        return self.inputs[:1].clone(), None if self.targets is None else self.targets[:1].clone()

    def few(self, other):
        """(inputs [m, …], targets [m, …] or None), 2 ≤ m ≤ `_TRIED` + 4: samples spread over the share and over its targets as their sums order them,
        then `other`, a pair like `first` of another rank. InputError where shapes differ. Not collective."""
        m = len(self.inputs)
        at = {0, m // 2, m - 1}
        if self.targets is not None:
            different = np.unique(self.targets.reshape(m, -1).sum(dim=1, dtype=torch.float64).numpy(), return_index=True)[1]
            at.update(different[np.linspace(0, len(different) - 1, _TRIED).astype(int)].tolist())
        try:
            return tuple(None if mine is None else torch.cat([mine[sorted(at)], more]) for mine, more in zip((self.inputs, self.targets), other, strict=True))
        except RuntimeError:
            raise InputError("the items of the data set have different shapes") from None


def _rows(array, what):
    if np.ndim(array) == 0:
        raise InputError(f"{what} must be [n, …], not {type(array).__name__}")
    return len(array)


def _of_pair(data, rows):
    return data[0][rows], None if data[1] is None else data[1][rows]


def _of_set(data, rows):
    """Stacked items of a data set."""
    items = []
    for i in range(rows.start, rows.stop):
        item = data[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {i} of the data set must be a pair (input, target), not {type(item).__name__}")
        items.append([torch.as_tensor(np.asarray(each)) if not isinstance(each, torch.Tensor) else each for each in item])
    try:
        return tuple(torch.stack(each) for each in zip(*items, strict=True))
    except RuntimeError:
        raise InputError("the items of the data set have different shapes") from None


def _tensor(array, dtype, what, first):
    """The rows as a tensor of their own."""
    try:
        found = array.detach().cpu() if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))
    except (TypeError, ValueError):
        raise InputError(f"{what} must hold real numbers, not {np.asarray(array).dtype}") from None
    if found.is_complex():
        raise InputError(f"{what} must hold real numbers, not complex ones")
    number = found.is_floating_point() or found.dtype in (torch.bool, torch.uint8) and what == "inputs"
    found = found.to(dtype if number else torch.int64)
    if number:
        wrong = (~found.reshape(len(found), -1).isfinite().all(dim=1)).nonzero()
        if len(wrong):
            raise InputError(f"{what}: sample {first + int(wrong[0])} (counted from 0) is not finite")
    return found
