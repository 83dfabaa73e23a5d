"""The keys of job files: names, defaults, bounds, one line of documentation each, and the check of one value. `SCHEMA` is their only home."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

from hpcHess.runtime.errors import InputError

ACTIVATIONS = ("relu", "leaky-relu", "tanh", "sigmoid", "softplus", "gelu", "gelu-tanh", "silu", "identity")
LEAK = 0.01  # of leaky-relu, where it is not given as leaky-relu(0.2)
LOSSES = ("cross-entropy", "binary-cross-entropy", "squared-error")
KINDS = ("gauss-newton", "fisher", "mc-fisher", "opg", "hessian")
ENTRIES = ("exact", "sampled")
DATASETS = ("digits", "mnist", "adult")
DISTANCES = ("angle", "kernel", "input", "neuron", "parameter", "random", "auto")
SAMPLINGS = ("sketch", "rows", "products")
SOLVERS = ("elimination", "ulv", "woodbury")
FORMATS = ("hss", "fmm", "kronecker-sum", "low-rank", "block-diagonal", "dense", "data-woodbury", "none", "auto")
METHODS = ("randomized", "nystrom", "krylov")
BLOCKS = ("layer", "neuron")
STRUCTURED = ("none", "low-rank", "kronecker-sum", "auto")
OBJECTIVES = ("time", "storage")
WORKLOADS = ("solve", "multiply")
ONLY = {"terms": ("auto", "kronecker-sum"), "method": ("randomized", "low-rank"), "blocks": ("layer", "block-diagonal")}  # default, its formats
MIN_PROBES = 32

TEXT, INTEGER, NUMBER, INTEGERS = "text", "an integer", "a number", "a list of integers"
NAMES = "a name or a list of names"
TERMS = "\"auto\", \"kfac\" or an integer of at least 1"
COUNT_OR_ERROR = "an integer of at least 1 (how many) or a number larger than 0 and smaller than 1 (the error)"


@dataclass(frozen=True)
class Key:
    """One key of a table: what it holds (`TEXT`, …), its default (None: there is none), allowed values or bounds, documentation."""

    holds: str
    default: Any
    doc: str
    choices: tuple = ()
    least: int | None = None  # smallest integer allowed, in lists too
    within: tuple | None = None  # open interval of a number
    closed: bool = False  # whether the interval holds its ends


SCHEMA = {
    "network": {
        "weights": Key(TEXT, None, "file of weights: .npz, .safetensors, .h5, .pt, .onnx, … (docs/NETWORKS.md)"),
        "torch": Key(TEXT, None, "package.module:factory of a PyTorch module, instead of network.weights (docs/TORCH.md)"),
        "activation": Key(NAMES, None, "of the hidden layers, one or a list; default: what the file of weights says, else relu; leaky-relu(0.2): its slope", ACTIVATIONS),
        "output": Key(TEXT, None, "activation of the last layer, of squared-error only; default: what the file says, else identity", ACTIVATIONS),
        "loss": Key(TEXT, None, "default cross-entropy, for task autoencode squared-error; binary-cross-entropy: of logits, targets in 0 … 1", LOSSES),
    },
    "network.fit": {
        "hidden": Key(INTEGERS, None, "sizes of the hidden layers of a network to be fitted, instead of network.weights", least=1),
        "epochs": Key(INTEGER, 50, "passes over the samples", least=1),
        "seed": Key(INTEGER, 0, "of the initial weights and the batches", least=0),
    },
    "data": {
        "inputs": Key(TEXT, None, ".npy [n, width]"),
        "targets": Key(TEXT, None, ".npy: integer labels [n] for cross-entropy, else [n, outputs]; none for autoencode"),
        "dataset": Key(TEXT, None, "a known data set, instead of data.inputs and data.targets", DATASETS),
        "samples": Key(INTEGER, 0, "the first so many samples, 0: all", least=0),
        "weights": Key(TEXT, None, ".npy [n]: weights of the samples, ≥ 0, in place of 1/n each"),
        "quadrature": Key(COUNT_OR_ERROR, None, "so many of the samples, weighted, stand in for all; or, below 1, as many as this error needs"),
        "task": Key(TEXT, "classify", "autoencode: the targets are the inputs, the loss squared-error or binary-cross-entropy", ("classify", "autoencode")),
    },
    "curvature": {
        "kind": Key(TEXT, "gauss-newton", "which matrix; opg: outer products of the gradients; hessian: exact, indefinite", KINDS),
        "layers": Key(INTEGERS, None, "the block of these layers' parameters alone, counted from 1", least=1),
        "parameters": Key(TEXT, None, "the block of some parameters alone: .npy of their indices, int64, in parameter order"),
        "l2": Key(NUMBER, 0.0, "of a term l2/2 ‖θ‖² of the loss, which adds l2·I (all parameters, biases too)", within=(0, 1e300), closed=True),
        "draws": Key(INTEGER, 1, "mc-fisher: labels drawn from the model for each sample", least=1),
        "seed": Key(INTEGER, 0, "mc-fisher: of the labels; entries = sampled: of the draws", least=0),
        "entries": Key(TEXT, "exact", "how entries are evaluated (docs/ENTRIES.md)", ENTRIES),
        "samples_per_entry": Key(INTEGER, 0, "sampled: samples drawn for a block of entries; 0: as many as entries_error asks for", least=0),
        "entries_error": Key(NUMBER, None, "sampled: ε, the deviation of an entry relative to √(H_jj H_kk); default 0.1", within=(0, 1)),
    },
    "matrix": {
        "file": Key(TEXT, None, "instead of network and data: K.npy, K.h5:/K, or any other name: raw little-endian float32, row-major"),
        "n": Key(INTEGER, None, "number of rows, needed for raw files", least=1),
    },
    "compress": {
        "format": Key(TEXT, "hss", "of the compressed matrix (docs/FORMATS.md); auto: predicted and chosen", FORMATS),
        "leaf_size": Key(INTEGER, 64, "largest number of parameters in a leaf", least=2),
        "rtol": Key(NUMBER, 1e-2, "error of the whole matrix, relative to its Frobenius norm", within=(0, 1)),
        "max_rank": Key(INTEGER, 0, "largest rank, of a node or of low-rank, 0: unlimited", least=0),
        "distance": Key(TEXT, "parameter", "of two parameters, for the tree; auto: the cheapest of them", DISTANCES),
        "budget": Key(NUMBER, None, "fmm: fraction of the leaves that may be near a leaf, 0 … 1 (0.03); hss is 0", within=(0, 1), closed=True),
        "n_neighbors": Key(INTEGER, 32, "nearest neighbours of a parameter, whose votes make the near lists and importance samples", least=1),
        "sampling": Key(TEXT, None, "what the skeletons are chosen from (sketch); products, the default of an operator without entries: hss only", SAMPLINGS),
        "solver": Key(TEXT, "elimination", "which form of the Woodbury factors solves", SOLVERS),
        "structured": Key(TEXT, "none", "hss, fmm: taken out before the tree; auto: what stores least, by trial", STRUCTURED),
        "structured_size": Key(INTEGER, 0, "so many eigenpairs, or Kronecker terms of a layer pair (0: 32, 1)", least=0),
        "terms": Key(TERMS, "auto", "kronecker-sum: as many as rtol needs, so many of every layer pair, or K-FAC"),
        "method": Key(TEXT, "randomized", "low-rank: how the eigenpairs are found", METHODS),
        "blocks": Key(TEXT, "layer", "block-diagonal: one block for each", BLOCKS),
        "objective": Key(TEXT, "time", "auto: what is least", OBJECTIVES),
        "rhs_count": Key(INTEGER, 64, "auto: right-hand sides expected", least=1),
        "workload": Key(TEXT, "solve", "auto: what is done with them", WORKLOADS),
        "seed": Key(INTEGER, 0, "of sketches and probes", least=0),
        "dtype": Key(TEXT, "auto", "of what is stored; auto: float64 when rtol < 1e-5, else float32", ("auto", "float32", "float64")),
        "probes": Key(INTEGER, MIN_PROBES, "fresh probes of the error estimate", least=MIN_PROBES),
    },
}
_MAX_INTEGER = 2**63 - 1


def checked_value(name, key, value):
    """`value` in the type that `key` holds, or an InputError."""
    is_integer = lambda each: isinstance(each, int) and not isinstance(each, bool)  # noqa: E731  True is an int in Python
    fits = {
        TEXT: isinstance(value, str),
        NAMES: isinstance(value, str) or isinstance(value, list) and all(isinstance(each, str) for each in value),
        INTEGER: is_integer(value),
        NUMBER: is_integer(value) or isinstance(value, float),
        INTEGERS: isinstance(value, list) and all(map(is_integer, value)),
        TERMS: value in ("auto", "kfac") if isinstance(value, str) else is_integer(value) and 1 <= value <= _MAX_INTEGER,
        COUNT_OR_ERROR: 1 <= value <= _MAX_INTEGER if is_integer(value) else isinstance(value, float) and 0 < value < 1,
    }
    if not fits[key.holds]:
        raise InputError(f"{name} must be {key.holds}, not {value!r}")
    if key.choices is ACTIVATIONS:
        return checked_activation(value, name) if isinstance(value, str) else [checked_activation(each, name) for each in value]
    if key.choices and value not in key.choices:
        nearest = difflib.get_close_matches(value, key.choices, 1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise InputError(f"{name} must be {' or '.join(key.choices)}, not {value!r}{hint}")
    if key.holds == TEXT and not value:
        raise InputError(f"{name} is empty")
    if key.holds in (INTEGER, INTEGERS):
        for each in value if key.holds == INTEGERS else [value]:
            if each < key.least:
                raise InputError(f"{name} must be at least {key.least}, not {each}")
            if each > _MAX_INTEGER:
                raise InputError(f"{name} is too large: {each}")
    if key.holds == NUMBER:
        low, high = key.within
        if key.closed and not low <= value <= high:
            raise InputError(f"{name} must lie between {low} and {high}, not {value}")
        if not key.closed and not (math.isfinite(value) and low < value < high):
            raise InputError(f"{name} must be larger than {low} and smaller than {high}, not {value}")
        return float(value)
    return value


def checked_activation(value, name):
    """The canonical name of an activation, "leaky-relu(0.2)" with its slope where that is not `LEAK`; InputError, naming `name`, for another."""
    text = str(value).strip().lower().replace("_", "-") if isinstance(value, str) else ""
    given = re.fullmatch(r"leaky-relu\(([^()]*)\)", text)
    if given:
        try:
            leak = float(given[1])
        except ValueError:
            leak = math.nan
        if not math.isfinite(leak):
            raise InputError(f"{name}: the slope of {value!r} must be a number, as in leaky-relu(0.2)")
        return "leaky-relu" if leak == LEAK else "relu" if leak == 0 else f"leaky-relu({leak!r})"
    if text not in ACTIVATIONS:
        nearest = difflib.get_close_matches(text, ACTIVATIONS, 1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise InputError(f"{name} must be {' or '.join(ACTIVATIONS)}, not {value!r}{hint}")
    return text
