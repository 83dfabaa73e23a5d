"""Weights named as PyTorch's state_dict names them: fc1.weight [out, in], fc1.bias [out], layers.0.weight, module.encoder.2.weight, …

The order of the layers. Names that differ first in a number are in the order of the numbers (fc1, fc2; layers.0.a, layers.1.b). For the rest
the file's order counts where it has one (a state_dict keeps the order in which the module registers them); else that order which alone
chains the shapes. Never the alphabet: decoder comes after encoder.
"""

import re

from hpcHess.networks.layers import Dense, Layers
from hpcHess.runtime.errors import InputError

_STEPS = 10_000  # of the search for an order
_KEY = re.compile(r"(?:(.*)[./])?(weight|bias)")
_ADVICE = "files of weights hold linear layers alone, other modules go by network.torch (docs/TORCH.md)"
_KINDS = {  # last parts of the keys that tell a module's kind
    "batch normalization": r"running_mean|running_var|num_batches_tracked",
    "attention": r"in_proj_\w+|[qkv]_proj_weight|bias_[kv]",
    "recurrent": r"(weight|bias)_[ih]h_l\d+(_reverse)?|(weight|bias)_[ih]h",
    "parametrized, remove it before saving": r"weight_[gvu]|weight_orig|weight_mask|original\d*|_[uv]",
    "a scale": r"gamma|beta|scale|in_scale",
}


def from_state_dict(arrays, ordered, metadata=None):
    """The `Layers` of {name: ndarray}; `ordered`: whether the order of the keys is the file's; `metadata` {"activation": …, "output": …} or None.

    InputError: keys of other modules than linear layers, a bias without weights, no order or several that chain the shapes.
    """
    weights, biases = _paired(arrays)
    modules = _in_order(list(weights), {module: arrays[key].shape for module, key in weights.items()}, ordered, weights)
    dense = []
    for module in modules:
        weight, bias = weights[module], biases.get(module)
        dense.append(Dense(weight, bias, arrays[weight], None if bias is None else arrays[bias]))
    metadata = metadata or {}
    activations = [each.strip() for each in metadata["activation"].split(",")] if "activation" in metadata else None
    if activations and len(activations) == 1:
        activations *= len(dense) - 1
    if activations is not None and len(activations) != len(dense) - 1:
        raise InputError(f"its metadata name {len(activations)} activations, it has {len(dense) - 1} hidden layers")
    return Layers(dense, activations, metadata.get("output"), _unclear(modules))


def _paired(arrays):
    """({module: key of its weight}, {module: key of its bias})."""
    found, odd = {"weight": {}, "bias": {}}, {}
    for key, array in arrays.items():
        match = _KEY.fullmatch(key)
        module, part = (match[1] or "", match[2]) if match else (None, None)
        if match is None or (part == "weight" and array.ndim != 2):
            odd.setdefault(*_why(key, array, arrays))
        elif module in found[part]:
            raise InputError(f"{key} is there twice")
        else:
            found[part][module] = key
    if odd:
        some = ", ".join(f"{name} ({why})" for name, why in list(odd.items())[:4]) + (", …" if len(odd) > 4 else "")
        raise InputError(f"unsupported {'layer' if len(odd) == 1 else 'layers'} {some}: {_ADVICE}")
    alone = next((key for module, key in found["bias"].items() if module not in found["weight"]), None)
    if alone is not None:
        raise InputError(f"{alone} has no {alone[: -len('bias')]}weight: the file lacks it, or has a key of another network too many")
    if not found["weight"]:
        raise InputError("it holds no weights: the keys are like 0.weight, 0.bias, 2.weight or fc1.weight, …")
    return found["weight"], found["bias"]


def _why(key, array, arrays):
    """(module, what it seems to be) of a key that no linear layer has."""
    module, separator, part = re.fullmatch(r"(?:(.*)([./]))?(.*)", key, re.DOTALL).groups()
    module = module or ""
    siblings = [each[len(module + (separator or "")) :] for each in arrays if each.startswith(module + (separator or ""))]
    for kind, pattern in _KINDS.items():
        if any(re.fullmatch(pattern, each) for each in siblings) or re.fullmatch(pattern, part):
            return module or key, kind
    if part == "weight" and array.ndim in (3, 4, 5):
        return module or key, f"a convolution, weight {list(array.shape)}"
    if part == "weight":
        return module or key, f"a normalization or a slope, weight {list(array.shape)}"
    return key, "neither a weight nor a bias"


def _parts(module):
    """[(kind of name, numbers), …] of a dotted name."""
    return [(re.sub(r"\d+", "#", part), [int(each) for each in re.findall(r"\d+", part)]) for part in re.split(r"[./]", module)]


def _numbers_say(first, second):
    """Whether `first` stands before `second` by the first number in which they differ."""
    for (kind, numbers), (other, others) in zip(first, second):
        if kind != other:
            return False
        if numbers != others:
            return numbers < others
    return False


def _in_order(modules, shapes, ordered, keys):
    """The modules in the order of the layers."""
    parts = {module: _parts(module) for module in modules}
    before = {m: {k for k in modules if _numbers_say(parts[k], parts[m])} for m in modules}
    if ordered and _chain(modules, shapes) and all(before[m].isdisjoint(modules[at:]) for at, m in enumerate(modules)):
        return modules
    found = _orders(modules, shapes, before)
    shown = sorted(modules, key=lambda module: [(kind, numbers) for kind, numbers in parts[module]])
    if not found:
        some = ", ".join(f"{keys[module]} {list(shapes[module])}" for module in shown[:8]) + (", …" if len(shown) > 8 else "")
        raise InputError(f"shapes do not chain in any order that the names allow: {some}; a key is missing, or belongs to another network")
    if len(found) > 1:
        ways = " or ".join(" → ".join(order[:6]) for order in found)
        raise InputError(f"the order of the layers is not clear, {ways}: save it as .pt, which keeps the order, or with keys 0.weight, 2.weight, …")
    return found[0]


def _chain(order, shapes):
    return all(shapes[k][1] == shapes[m][0] for m, k in zip(order, order[1:]))


def _orders(modules, shapes, before):
    """At most two orders that chain the shapes and keep what must stand `before`."""
    found, stack, steps = [], [()], 0
    while stack and len(found) < 2:
        taken = stack.pop()
        if len(taken) == len(modules):
            found.append(list(taken))
            continue
        steps += 1
        if steps > _STEPS:
            raise InputError(f"the order of {len(modules)} layers is not clear: save it as .pt, or with keys 0.weight, 2.weight, …")
        for module in modules:
            if module not in taken and before[module].issubset(taken) and (not taken or shapes[taken[-1]][0] == shapes[module][1]):
                stack.append((*taken, module))
    return found


def _unclear(modules):
    """Why nobody can know the activation: nn.Sequential counts activations too, and neighbours have none between them."""
    numbers = [int(module) for module in modules if module.isdecimal()]
    if len(numbers) < len(modules):
        return None
    at = next((at for at in numbers if at + 1 in numbers), None)
    return None if at is None else f"layers {at} and {at + 1} are neighbours: give network.activation, their names leave no place for one"
