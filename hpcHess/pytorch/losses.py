"""Losses of PyTorch modules as functions of the outputs: sums over samples, and the models of which they are the negative log-likelihood."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import LOSSES


@dataclass(frozen=True)
class Loss:
    """f(z, y) of one sample, summed over the samples of a batch.

    total   (z [m, …], y [m, …]) → Σ_i f(z_i, y_i)
    family  "classes" (softmax over dimension 1), "bernoulli" (σ(z_e), independent) or "gaussian" (N(z, I)): the model p(y | z) of the
            Fisher matrices; None: the loss is of none of them
    mean    the user's function, the mean over a batch, where the loss is one; else None
    """

    name: str
    total: Callable
    family: str | None
    mean: Callable | None = None

    def likelihood(self, z, y):
        """−Σ_i log p(y_i | z_i) + const, summed over everything else too: the loss's own scaling does not count."""
        if self.family == "classes":
            return functional.cross_entropy(z, y, reduction="sum")
        if self.family == "bernoulli":
            return functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
        return torch.square(z - y).sum() / 2

    def ready(self, z, y, first):
        """Targets y of the samples `first`, … as the loss takes them for outputs z, any for None; InputError where they do not fit. Not collective."""
        if self.family == "classes":
            self._check_logits(z)
        if y is None:
            if self.family is None:
                raise InputError(f"the loss {self.name} needs the targets")
            return z.new_zeros((len(z), *z.shape[2:]), dtype=torch.int64) if self.family == "classes" else torch.zeros_like(z)
        if self.mean is not None and self.family is None:
            return y
        if self.family == "classes":
            return self._labels(z, y, first)
        if y.ndim == 1 and z.shape == (len(y), 1):
            y = y[:, None]
        if y.shape != z.shape:
            raise InputError(f"{self.name}: the module's outputs are {list(z.shape[1:])} a sample, the targets {list(y.shape[1:])}")
        y = y.to(z.dtype)
        if self.family == "bernoulli" and not bool(((y >= 0) & (y <= 1)).all()):
            raise InputError(f"{self.name} needs targets in 0 … 1")
        return y

    def _check_logits(self, z):
        if z.ndim < 2 or (self.mean is None and z.ndim != 2):
            raise InputError(f"{self.name} needs outputs [n, classes], the module gives {list(z.shape[1:])} a sample")

    def _labels(self, z, y, first):
        if y.is_floating_point() or y.shape != (len(z), *z.shape[2:]):
            wanted = ", ".join(["n", *map(str, z.shape[2:])])
            raise InputError(f"{self.name} needs integer labels [{wanted}], the targets are {str(y.dtype)[6:]} of {list(y.shape[1:])} a sample")
        wrong = ((y < 0) | (y >= z.shape[1])).nonzero()
        if len(wrong):
            label, sample = int(y[tuple(wrong[0])]), first + int(wrong[0, 0])
            raise InputError(f"label {label} of sample {sample} (counted from 0) is out of range, the module has {z.shape[1]} classes")
        return y


def _sum_of_squares(z, y):
    return torch.square(z - y).sum()


_NAMED = {
    "cross-entropy": Loss("cross-entropy", lambda z, y: functional.cross_entropy(z, y, reduction="sum"), "classes"),
    "binary-cross-entropy": Loss(
        "binary-cross-entropy", lambda z, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum"), "bernoulli"
    ),
    "squared-error": Loss("squared-error", _sum_of_squares, "gaussian"),
}
_FAMILIES = {nn.CrossEntropyLoss: "classes", nn.BCEWithLogitsLoss: "bernoulli", nn.MSELoss: "gaussian"}


def loss_of(given):
    """The `Loss` of a name of `runtime.schema.LOSSES`, of a loss module of PyTorch or of a function (outputs, targets) → mean over the batch.

    InputError: unknown names, modules that are no mean over the samples (reduction="sum", weights of classes).
    """
    if isinstance(given, str):
        if given not in _NAMED:
            raise InputError(f"loss must be {', '.join(LOSSES)}, a loss module of PyTorch or a function, not {given!r}")
        return _NAMED[given]
    if not callable(given) or isinstance(given, type):
        raise InputError(f"loss must be a name, a loss module (nn.CrossEntropyLoss()) or a function f(outputs, targets), not {given!r}")
    name, family = getattr(given, "__name__", type(given).__name__), _FAMILIES.get(type(given))
    if getattr(given, "reduction", "mean") != "mean":
        raise InputError(f'{name}(reduction="{given.reduction}") is no mean over the samples, which H is: use reduction="mean"')
    if isinstance(given, nn.CrossEntropyLoss):
        if given.weight is not None:
            raise InputError(f"{name} with weights of the classes divides by their sum over the batch, no mean over the samples: use weights=w[labels]")
        if given.label_smoothing:
            family = None
    elif getattr(given, "weight", None) is not None or getattr(given, "pos_weight", None) is not None:
        family = None  # no likelihood of the model
    if family in ("bernoulli", "gaussian"):  # the mean over the outputs too; PyTorch's own mse_loss cannot be differentiated forwards twice
        plain = _NAMED["binary-cross-entropy" if family == "bernoulli" else "squared-error"].total
        return Loss(name, lambda z, y: plain(z, y) * (len(z) / z.numel()), family, given)
    return Loss(name, lambda z, y: len(z) * given(z, y), family, given)


def check_mean(loss, z, y):
    """InputError where a function is not the mean over the samples of a batch, as tried on a few outputs z and their targets y. Not collective."""
    if loss.mean is None or not len(z):
        return
    ignored = getattr(loss.mean, "ignore_index", None)
    if ignored is not None and ignored >= 0:
        raise InputError(f"{loss.name} with ignore_index = {ignored} is no mean over the samples: leave those samples out")
    try:
        whole, single = loss.mean(z, y), [loss.mean(z[i : i + 1], y[i : i + 1]) for i in range(len(z))]
    except Exception as error:
        line = f"{error}".strip().splitlines()
        raise InputError(f"the loss {loss.name} fails on outputs {list(z.shape)} and targets {list(y.shape)}: {line[0] if line else error!r}") from error
    if not isinstance(whole, torch.Tensor) or whole.numel() != 1 or whole.ndim:
        raise InputError(f"the loss {loss.name} must give one number, the mean over the batch")
    expected = sum(single) / len(z)
    scale = sum(abs(each) for each in single) / len(z)
    if not bool(abs(whole - expected) <= 100 * len(z) * torch.finfo(z.dtype).eps * (scale + abs(whole))):
        raise InputError(
            f"the loss {loss.name} is no mean over the samples: {float(whole):.6g} for {len(z)} of them, where those alone have a mean of {float(expected):.6g}"
        )
