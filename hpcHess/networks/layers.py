"""What a file says of a network, and the network of it and of what the job says."""

from dataclasses import dataclass

import numpy as np

from hpcHess.networks.network import Network, checked_parameter
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import checked_activation

LOSS_OF = {"softmax": "cross-entropy", "log-softmax": "cross-entropy", "sigmoid": "binary-cross-entropy"}  # whose logits come before


@dataclass
class Dense:
    """One layer of weights: the names that the file gives to it, W [out, in], b [out] or None."""

    weight_name: str
    bias_name: str
    weight: object
    bias: object = None


@dataclass
class Layers:
    """The layers of a file in their order.

    dense        list of `Dense`, at least one
    activations  names for the hidden layers, or None where the file does not say
    output       name for the last layer, "softmax" and "log-softmax" too, or None likewise
    unclear      why the activation must be given by the job, or None
    """

    dense: list
    activations: list | None = None
    output: str | None = None
    unclear: str | None = None

    def network(self, activation, loss, output):
        """The Network; `activation`, `output`: the job's, None where it does not say. InputError: NaN, shapes that do not chain, contradictions."""
        for each in self.dense:
            each.weight = checked_parameter(each.weight_name, each.weight, 2)
            each.bias = None if each.bias is None else checked_parameter(each.bias_name, each.bias, 1)
        for before, each in zip(self.dense, self.dense[1:]):
            if each.weight.shape[1] != len(before.weight):
                shape, outputs = list(each.weight.shape), len(before.weight)
                raise InputError(f"shapes do not chain: {each.weight_name} is {shape}, but {before.weight_name} has {outputs} outputs")
        for each in self.dense:
            if each.bias is not None and len(each.bias) != len(each.weight):
                raise InputError(f"{each.bias_name} is {list(each.bias.shape)}, but {each.weight_name} is {list(each.weight.shape)}")
        if activation is None and self.activations is None and self.unclear:
            raise InputError(self.unclear)
        hidden = self._hidden(activation)
        return Network([each.weight for each in self.dense], [each.bias for each in self.dense], hidden, loss, self._output(output, loss))

    def _hidden(self, given):
        if self.activations is None:
            return "relu" if given is None else given
        found = [checked_activation(each, "the file's activation") for each in self.activations]
        if given is not None:
            asked = [given] * len(found) if isinstance(given, str) else list(given)
            if [checked_activation(each, "the activation") for each in asked] != found:
                raise InputError(f"the activation {_listed(given)} is asked for, but the file says {_listed(found)}")
        return found

    def _output(self, given, loss):
        found = self.output
        if found is None or LOSS_OF.get(found) == loss:
            return "identity" if given is None else given
        if found in LOSS_OF and loss != "squared-error" or found in ("softmax", "log-softmax"):
            more = " or squared-error" if found == "sigmoid" else ""
            raise InputError(f"the network ends with {found}, which does not fit the loss {loss}: its loss is {LOSS_OF[found]}{more}")
        found = checked_activation(found, "the file's output activation")
        if loss != "squared-error" and found != "identity":
            raise InputError(f"the network ends with {found}, which does not fit the loss {loss}, of logits: its loss is squared-error")
        if given is not None and checked_activation(given, "the output's activation") != found:
            raise InputError(f"the output activation {given} is asked for, but the file says {found}")
        return found


class Chain:
    """Collects a file's layers and activations one after another."""

    def __init__(self):
        self.dense, self._after = [], []

    def add(self, dense):
        """A layer of weights follows."""
        self.dense.append(dense)
        self._after.append(None)

    def activate(self, what, activation):
        """An activation follows; `what` names it in errors, "identity" counts as none. InputError: nothing or an activation stands before it."""
        if activation == "identity":
            return
        if not self.dense:
            raise InputError(f"unsupported: {what} stands before the first layer of weights")
        if self._after[-1] is not None:
            raise InputError(f"unsupported: {what} directly after {self._after[-1][0]}, two activations without weights between them")
        self._after[-1] = what, activation

    def layers(self):
        """The `Layers`. InputError: none, or a softmax between two layers of weights."""
        if not self.dense:
            raise InputError("it holds no layer of weights")
        wrong = next((each[0] for each in self._after[:-1] if each and each[1] in ("softmax", "log-softmax")), None)
        if wrong is not None:
            raise InputError(f"unsupported: {wrong} before the last layer of weights")
        names = ["identity" if each is None else each[1] for each in self._after]
        return Layers(self.dense, names[:-1], names[-1])


def leaky(slope):
    """The name of max(a, 0) + slope · min(a, 0); a slope that went through float32 gets its shortest decimals back."""
    single = np.float32(slope)
    slope = float(str(single)) if float(single) == slope else float(slope)
    return f"leaky-relu({slope!r})" if slope else "relu"


def _listed(names):
    different = list(dict.fromkeys([names] if isinstance(names, str) else names)) or ["none"]
    return different[0] if len(different) == 1 else ", ".join(names)
