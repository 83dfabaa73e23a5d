"""Job files: TOML in, a checked job with every default filled in out. No MPI here: drivers read through `parallel.agree.on_root`.

`SCHEMA` is the only home of the keys, their defaults, their bounds and their one-line documentation.
"""

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from hpcHess.runtime.errors import InputError

ACTIVATIONS = ("relu", "tanh", "sigmoid")
LOSSES = ("cross-entropy", "squared-error")
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
        "weights": Key(TEXT, None, "file of weights: .npz, .safetensors or .h5, keys 0.weight [out, in], 0.bias [out], 2.weight, …"),
        "activation": Key(TEXT, "relu", "between the layers", ACTIVATIONS),
        "loss": Key(TEXT, None, "default cross-entropy, for task autoencode squared-error", LOSSES),
    },
    "network.fit": {
        "hidden": Key(INTEGERS, None, "sizes of the hidden layers of a network to be fitted, instead of network.weights", least=1),
        "epochs": Key(INTEGER, 50, "passes over the samples", least=1),
        "seed": Key(INTEGER, 0, "of the initial weights and the batches", least=0),
    },
    "data": {
        "inputs": Key(TEXT, None, ".npy [n, width]"),
        "targets": Key(TEXT, None, ".npy: integer labels [n] for cross-entropy, [n, outputs] for squared-error; none for autoencode"),
        "dataset": Key(TEXT, None, "a known data set, instead of data.inputs and data.targets", DATASETS),
        "samples": Key(INTEGER, 0, "the first so many samples, 0: all", least=0),
        "quadrature": Key(COUNT_OR_ERROR, None, "so many of the samples, weighted, stand in for all; or, below 1, as many as this error needs"),
        "task": Key(TEXT, "classify", "autoencode: the targets are the inputs, the loss is squared-error", ("classify", "autoencode")),
    },
    "curvature": {
        "kind": Key(TEXT, "gauss-newton", "which matrix; opg: outer products of the gradients", ("gauss-newton", "fisher", "opg")),
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
        "sampling": Key(TEXT, "sketch", "what the skeletons are chosen from; products: no entries, hss only", SAMPLINGS),
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
_SUBTABLES = {"network": ("fit",)}
_OF_A_NETWORK = ("network", "network.fit", "data", "curvature")
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Job:
    """A checked job: `job["compress"]["rtol"]`.

    tables      table → key → value, defaults filled in; keys without a value are absent, so is ["network"]["fit"] without one; a job
                of a [matrix] has no other table than that and ["compress"], all others have no ["matrix"]
    directory   absolute; relative paths of the job begin there
    """

    tables: dict
    directory: str

    @classmethod
    def from_text(cls, text, directory):
        """The job of a TOML text, such as one stored in a factor file. InputError as `load`."""
        return cls(_checked(_parse(text, "job")), str(Path(directory).absolute()))

    def __getitem__(self, table):
        return self.tables[table]

    @property
    def text(self):
        """TOML with all defaults written out; `from_text` gives the same job back."""
        return _toml(self.tables)

    def path(self, table, key):
        """The absolute Path that a key names, None where the key is absent."""
        value = self.tables[table].get(key)
        return None if value is None else Path(self.directory, value)

    @property
    def files(self):
        """Absolute names of the files that the job reads, a dataset's as file.h5:/name."""
        keys = (("matrix", "file"), ("network", "weights"), ("data", "inputs"), ("data", "targets"))
        return [str(self.path(table, key)) for table, key in keys if key in self.tables.get(table, {})]


def load(path, overrides=()):
    """Read the job file `path` with `overrides` ("table.key=value", the value TOML or a bare word). Not collective.

    InputError: unreadable, not TOML, unknown keys (the nearest known one is named), wrong types or values, contradictions,
    missing keys.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the job file {path}: {getattr(error, 'strerror', None) or error}") from None
    document = _parse(text, path)
    for override in overrides:
        _override(document, override)
    try:
        return Job(_checked(document), str(Path(path).absolute().parent))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def reference():
    """The schema for people: TOML with every key, its default and its documentation as a comment."""
    lines = []
    for table, keys in SCHEMA.items():
        lines.append(f"[{table}]")
        for name, key in keys.items():
            value = f"{name} =" if key.default is None else f"{name} = {_value(key.default)}"
            allowed = f"; {' | '.join(key.choices)}" if len(key.choices) > 1 else ""
            lines.append(f"{value:<26}  # {key.doc}{allowed}")
        lines.append("")
    return "\n".join(lines)


def _parse(text, source):
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{source} is not TOML: {error or 'nested too deeply'}") from None


def _override(document, override):
    """Put "table.key=value" into `document`."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise InputError(f"--set {override}: write it as table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        value = {}
    if list(value) != ["value"]:
        value = {"value": text.strip()}
    table = document
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {part} is not a table")
    table[parts[-1]] = value["value"]


def _checked(document):
    """The job's tables from the document, defaults filled in."""
    given = _known_keys(document)
    unused = _unused_tables(document)
    tables = {}
    for table, keys in SCHEMA.items():
        if table in unused:
            continue
        values = {}
        for name, key in keys.items():
            value = given.get(f"{table}.{name}", key.default)
            if value is not None:
                values[name] = _checked_value(f"{table}.{name}", key, value)
        parent, _, sub = table.partition(".")
        if sub:
            tables[parent][sub] = values
        else:
            tables[table] = values
    if "matrix" not in tables:
        _check_network(tables)
    elif "file" not in tables["matrix"]:
        raise InputError("matrix.file is missing: the file that holds the matrix")
    _check_compress(tables["compress"])
    _check_quadrature(tables)
    return tables


def _unused_tables(document):
    """The tables of the schema that a job of this document has not: those of a network for a [matrix], and the other way round."""
    if "matrix" not in document:
        fitted = "fit" in document.get("network", {})
        return {"matrix"} if fitted else {"matrix", "network.fit"}
    contradicting = [table for table in _OF_A_NETWORK if table in document]
    if contradicting:
        raise InputError(f"[matrix] takes the place of [{contradicting[0]}]: leave one of them out")
    return set(_OF_A_NETWORK)


def _known_keys(document):
    """{"table.key": value} of a document of known tables and keys."""
    given = {}
    for table, content in document.items():
        if table not in SCHEMA:
            raise _unknown("table" if isinstance(content, dict) else "key", table)
        if not isinstance(content, dict):
            raise InputError(f"{table} must be a table: write [{table}]")
        for name, value in content.items():
            subtable = name in _SUBTABLES.get(table, ())
            if subtable and not isinstance(value, dict):
                raise InputError(f"{table}.{name} must be a table: write [{table}.{name}]")
            inside = {f"{table}.{name}.{key}": each for key, each in value.items()} if subtable else {f"{table}.{name}": value}
            for full, each in inside.items():
                owner, _, key = full.rpartition(".")
                if key not in SCHEMA[owner]:
                    raise _unknown("table" if isinstance(each, dict) else "key", full)
                given[full] = each
    return given


def _unknown(kind, name):
    """InputError that names the nearest known table or key."""
    keys = [f"{table}.{key}" for table, content in SCHEMA.items() for key in content]
    candidates = list(SCHEMA) if kind == "table" else keys

    def likeness(candidate):
        last, known = name.rpartition(".")[2], candidate.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, known).ratio()), whole

    return InputError(f"unknown {kind} {name}: did you mean {max(candidates, key=likeness)}?")


def _checked_value(name, key, value):
    """`value` in the type that `key` holds, or an InputError."""
    is_integer = lambda each: isinstance(each, int) and not isinstance(each, bool)  # noqa: E731  True is an int in Python
    fits = {
        TEXT: isinstance(value, str),
        INTEGER: is_integer(value),
        NUMBER: is_integer(value) or isinstance(value, float),
        INTEGERS: isinstance(value, list) and all(map(is_integer, value)),
        TERMS: value in ("auto", "kfac") if isinstance(value, str) else is_integer(value) and 1 <= value <= _MAX_INTEGER,
        COUNT_OR_ERROR: 1 <= value <= _MAX_INTEGER if is_integer(value) else isinstance(value, float) and 0 < value < 1,
    }
    if not fits[key.holds]:
        raise InputError(f"{name} must be {key.holds}, not {value!r}")
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


def _check_network(tables):
    """Contradictory or missing keys; fills in the loss, whose default depends on the task."""
    network, data = tables["network"], tables["data"]
    if ("weights" in network) == ("fit" in network):
        raise InputError("give the network either as network.weights or by a table [network.fit], " + _both_or_none("weights" in network))
    if "fit" in network and "hidden" not in network["fit"]:
        raise InputError("network.fit.hidden is missing: the sizes of the hidden layers, such as [20, 30]")
    if ("dataset" in data) == ("inputs" in data):
        raise InputError("give the data either as data.inputs or as data.dataset, " + _both_or_none("inputs" in data))
    autoencode = data["task"] == "autoencode"
    if autoencode and network.setdefault("loss", "squared-error") != "squared-error":
        raise InputError(f'network.loss = "{network["loss"]}" contradicts data.task = "autoencode": its loss is squared-error')
    network.setdefault("loss", "cross-entropy")
    if "targets" in data and ("dataset" in data or autoencode):
        reason = 'data.dataset has its own' if "dataset" in data else 'data.task = "autoencode" takes the inputs'
        raise InputError(f"data.targets is not wanted: {reason}")
    if "inputs" in data and "targets" not in data and not autoencode:
        raise InputError('data.targets is missing (or data.task = "autoencode")')
    if "dataset" in data and not autoencode and network["loss"] != "cross-entropy":
        raise InputError(f'data.dataset = "{data["dataset"]}" has labels to classify: network.loss must be cross-entropy')


def _check_compress(compress):
    """Contradictory keys of [compress]."""
    if compress["format"] == "hss" and compress.get("budget", 0):
        raise InputError(f'compress.budget = {compress["budget"]} contradicts compress.format = "hss": use format = "fmm"')
    if compress["structured"] != "none" and compress["format"] not in ("hss", "fmm"):
        raise InputError(f'compress.structured = "{compress["structured"]}" goes with compress.format = "hss" or "fmm"')
    for key, (default, *formats) in ONLY.items():
        if compress[key] != default and compress["format"] not in (*formats, "auto"):
            raise InputError(f'compress.{key} = {compress[key]!r} is for compress.format = "{formats[0]}", not "{compress["format"]}"')
    if compress["structured_size"] and compress["structured"] == "none":
        raise InputError("compress.structured_size needs compress.structured: low-rank, kronecker-sum or auto")
    if compress["sampling"] == "products" and compress["format"] == "fmm":
        raise InputError('compress.sampling = "products" compresses to compress.format = "hss" only')


def _check_quadrature(tables):
    """An error of the samples that leaves nothing of the tolerance, before anything is computed."""
    asked, rtol = tables.get("data", {}).get("quadrature", 0), tables["compress"]["rtol"]
    if isinstance(asked, float) and asked >= rtol:
        raise InputError(f"data.quadrature = {asked:g} leaves nothing of compress.rtol = {rtol:g}: ask for a smaller error of the samples, or raise rtol")


def _both_or_none(both):
    return "not both" if both else "one of them is missing"


def _toml(tables, prefix=""):
    """TOML of nested tables of text, numbers and lists of integers."""
    parts = []
    for table, content in tables.items():
        values = [f"{name} = {_value(value)}\n" for name, value in content.items() if not isinstance(value, dict)]
        parts.append(f"[{prefix}{table}]\n" + "".join(values))
        inner = {name: value for name, value in content.items() if isinstance(value, dict)}
        if inner:
            parts.append(_toml(inner, f"{prefix}{table}."))
    return "\n".join(parts)


def _value(value):
    """One TOML value. JSON's escapes are TOML's, but DEL must be escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
