"""Job files: TOML in, a checked job with every default filled in out. No MPI here: drivers read through `parallel.agree.on_root`.

The keys are in `runtime.schema`.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import ONLY, SCHEMA, checked_value

_SUBTABLES = {"network": ("fit",)}
OF_ENTRIES = ("hss", "fmm", "dense", "block-diagonal")
_OF_A_NETWORK = ("network", "network.fit", "data", "curvature")


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
        keys = [("matrix", "file"), ("network", "weights"), ("data", "inputs"), ("data", "targets"), ("data", "weights"), ("curvature", "parameters")]
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
                values[name] = checked_value(f"{table}.{name}", key, value)
        parent, _, sub = table.partition(".")
        if sub:
            tables[parent][sub] = values
        else:
            tables[table] = values
    if "matrix" not in tables:
        _check_network(tables)
        _check_curvature(tables)
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


def _check_network(tables):
    """Contradictory or missing keys; fills in the loss, whose default depends on the task."""
    network, data = tables["network"], tables["data"]
    sources = [name for name in ("weights", "fit", "torch") if name in network]
    if len(sources) != 1:
        given = "not both" if len(sources) == 2 else "one of them" if sources else "one of them is missing"
        raise InputError(f"give the network as network.weights, by a table [network.fit], or as network.torch, {given}")
    if "fit" in network and "hidden" not in network["fit"]:
        raise InputError("network.fit.hidden is missing: the sizes of the hidden layers, such as [20, 30]")
    if ("dataset" in data) == ("inputs" in data) and not ("torch" in network and "inputs" not in data):  # a factory may bring its data
        raise InputError("give the data either as data.inputs or as data.dataset, " + _both_or_none("inputs" in data))
    autoencode = data["task"] == "autoencode"
    if autoencode and network.setdefault("loss", "squared-error") == "cross-entropy":
        raise InputError('network.loss = "cross-entropy" contradicts data.task = "autoencode": its loss is squared-error or binary-cross-entropy')
    network.setdefault("loss", "cross-entropy")
    if "targets" in data and ("dataset" in data or autoencode):
        reason = 'data.dataset has its own' if "dataset" in data else 'data.task = "autoencode" takes the inputs'
        raise InputError(f"data.targets is not wanted: {reason}")
    if "inputs" in data and "targets" not in data and not autoencode:
        raise InputError('data.targets is missing (or data.task = "autoencode")')
    if "dataset" in data and not autoencode and network["loss"] == "squared-error":
        raise InputError(f'data.dataset = "{data["dataset"]}" has labels to classify: network.loss must be cross-entropy or binary-cross-entropy')


def _check_curvature(tables):
    """Contradictory keys of [curvature]."""
    curvature, network = tables["curvature"], tables["network"]
    if "layers" in curvature and "parameters" in curvature:
        raise InputError("give curvature.layers or curvature.parameters, not both")
    if len(set(curvature.get("layers", [0]))) < len(curvature.get("layers", [0])) or not curvature.get("layers", [0]):
        raise InputError(f"curvature.layers must be different layers, at least one, not {curvature['layers']}")
    if "torch" in network:
        wrong = [key for key in ("activation", "output") if key in network] + [key for key in ("layers",) if key in curvature]
        wrong += ["entries"] * (curvature["entries"] != "exact")
        if wrong:
            raise InputError(f"{wrong[0]} is not for network.torch: its module says what it is, and offers products alone")
    if curvature["draws"] != 1 and curvature["kind"] != "mc-fisher":
        raise InputError(f'curvature.draws = {curvature["draws"]} is for curvature.kind = "mc-fisher"')
    for key in ("samples_per_entry", "entries_error"):
        if curvature["entries"] != "sampled" and curvature.get(key):
            raise InputError(f'curvature.{key} needs curvature.entries = "sampled"')
    if curvature["samples_per_entry"] and "entries_error" in curvature:
        raise InputError("give curvature.samples_per_entry or curvature.entries_error, which says how many samples, not both")
    if curvature["seed"] and curvature["kind"] != "mc-fisher" and curvature["entries"] != "sampled":
        raise InputError(f'curvature.seed = {curvature["seed"]} is for curvature.kind = "mc-fisher" and curvature.entries = "sampled"; other seeds: compress.seed')
    if curvature["entries"] == "sampled" and tables["compress"]["format"] not in OF_ENTRIES:
        raise InputError(f'curvature.entries = "sampled" is for formats made of entries, {", ".join(OF_ENTRIES)}, not "{tables["compress"]["format"]}"')
    if curvature["entries"] == "sampled" and curvature["kind"] == "hessian":
        raise InputError('curvature.entries = "sampled" is for matrices of Gram type: the bounds of importance sampling do not hold for kind = "hessian"')


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
    if compress.get("sampling") == "products" and compress["format"] == "fmm":
        raise InputError('compress.sampling = "products" compresses to compress.format = "hss" only')


def _check_quadrature(tables):
    """Fewer samples of what is no sum over samples of Gram type, or with an error that leaves nothing of the tolerance, before anything is computed."""
    asked, rtol = tables.get("data", {}).get("quadrature", 0), tables["compress"]["rtol"]
    if asked:
        why = {
            "a PyTorch module is known by products alone": "torch" in tables["network"],
            'kind = "hessian" is not definite, no sum of Gram matrices over the samples': tables["curvature"]["kind"] == "hessian",
            "its error is known of the whole matrix, not of some parameters' block (of layers it is: curvature.layers)": "parameters" in tables["curvature"],
        }
        reason = next((text for text, holds in why.items() if holds), None)
        if reason:
            raise InputError(f"data.quadrature is not for this job, {reason}: leave it out")
    if isinstance(asked, float) and asked >= rtol:
        raise InputError(f"data.quadrature = {asked:g} leaves nothing of compress.rtol = {rtol:g}: ask for a smaller error of the samples, or raise rtol")


def _both_or_none(both):
    return "not both" if both else "one of them is missing"


def _toml(tables, prefix=""):
    """TOML of nested tables of text, numbers and lists of them."""
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
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
