"""Known data sets: where their files lie, reading them, and fetching them with a checksum. Not collective: rank 0 reads."""

import gzip
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import DATASETS

_TIMEOUT = 60.0  # seconds without an answer
_ADULT_CATEGORIES = (1, 3, 5, 6, 7, 8, 9, 13)  # columns that hold words; the last, 14, is the label
_ADULT_COLUMNS = 15


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: {file: sha256 of its content, unpacked if it is .gz} and the folders that have the files.

    Mirrors pack the same content differently, so the content is what is checked.
    """

    files: dict
    mirrors: tuple


SOURCES = {
    "digits": Source({}, ()),  # comes with scikit-learn
    "mnist": Source(
        {
            "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        },
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "https://raw.githubusercontent.com/fgnt/mnist/master",
        ),
    ),
    "adult": Source(
        {"adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"},
        (
            "https://archive.ics.uci.edu/ml/machine-learning-databases/adult",
            "http://mlr.cs.umass.edu/ml/machine-learning-databases/adult",
        ),
    ),
}


def folder(name):
    """Where the files of a data set lie: $HPCHESS_DATA/name, else hpcHess/name in the user's cache."""
    base = os.environ.get("HPCHESS_DATA")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hpcHess")
    return Path(base).expanduser() / name


def missing(name):
    """The files of a data set that are not there."""
    return [file for file in SOURCES[name].files if not (folder(name) / file).is_file()]


def load(name, samples=0, task="classify"):
    """(inputs, targets) of the first `samples` samples (0: all) in the files' order.

    inputs   float32 [n, width]: digits 64 and mnist 784 pixels in [0, 1]; adult 108 columns: numbers standardized, then the
             categories as 0 and 1 ("?" is a category of its own), both over all 32,561 rows
    targets  "classify": int64 labels [n] (adult: 1 is > 50K); "autoencode": the inputs themselves
    InputError: unknown name, files missing or damaged, fewer samples than asked for.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}: there are {', '.join(DATASETS)}")
    absent = missing(name)
    if absent:
        where = f"{folder(name)} lacks {', '.join(absent)}"
        raise InputError(f"{where}: run `python -m hpcHess.datasets fetch {name}`, or set HPCHESS_DATA to the folder that has {name}/")
    inputs, labels = {"digits": _digits, "mnist": _mnist, "adult": _adult}[name](folder(name))
    if samples > len(inputs):
        raise InputError(f"data set {name} has {len(inputs)} samples, {samples} are asked for")
    n = samples or len(inputs)
    inputs, labels = np.array(inputs[:n], np.float32, order="C"), np.array(labels[:n], np.int64)
    return (inputs, inputs) if task == "autoencode" else (inputs, labels)


def _digits(_folder):
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("data set digits comes with scikit-learn: pip install scikit-learn") from None

    images, labels = load_digits(return_X_y=True)
    return images / 16, labels  # 16 grey values above 0


def _mnist(at):
    images = _read_idx(at / "train-images-idx3-ubyte.gz", 3)
    labels = _read_idx(at / "train-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels):
        raise InputError(f"{at} has {len(images)} images but {len(labels)} labels: fetch it again")
    return np.divide(images.reshape(len(images), -1), 255, dtype=np.float32), labels


def _read_idx(path, ndim):
    """uint8 array of an idx file: 0, 0, 8 (bytes), ndim, the shape as big-endian int32, the numbers."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; remove it and fetch it again") from None
    shape = np.frombuffer(content[4 : 4 + 4 * ndim], ">i4")
    values = np.frombuffer(content[4 + 4 * ndim :], np.uint8)
    if content[:4] != bytes([0, 0, 8, ndim]) or len(shape) != ndim or shape.prod(dtype=np.int64) != len(values):
        raise InputError(f"{path} is not an idx file of {ndim} dimensions; remove it and fetch it again")
    return values.reshape(shape)


def _adult(at):
    path = at / "adult.data"
    try:
        rows = [line.split(", ") for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it and fetch it again") from None
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != _ADULT_COLUMNS), None if rows else 1)
    if wrong is not None:
        raise InputError(f"{path}: row {wrong} does not have {_ADULT_COLUMNS} columns; remove it and fetch it again")
    *columns, income = zip(*rows, strict=True)
    try:
        X = np.array([column for number, column in enumerate(columns) if number not in _ADULT_CATEGORIES], np.float64).T
    except ValueError as error:
        raise InputError(f"{path}: {error}; remove it and fetch it again") from None
    deviation = X.std(axis=0)
    X = (X - X.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    words = [np.array(columns[number]) for number in _ADULT_CATEGORIES]
    return np.hstack([X, *(column[:, None] == np.unique(column) for column in words)]), np.array(income) == ">50K"


def fetch(name, base=None, say=print):
    """Download what is missing or damaged of a data set into `folder(name)`, from the mirrors or from `base` (URL or folder).

    Each file is written under a temporary name, checked and renamed; `say(line)` reports. InputError: no source has it.
    """
    if name not in SOURCES:
        raise InputError(f"unknown data set {name!r}: there are {', '.join(SOURCES)}")
    source, at = SOURCES[name], folder(name)
    if not source.files:
        say(f"{name} comes with scikit-learn: nothing to fetch")
        return
    if base is not None and "://" not in base:
        base = Path(base).absolute().as_uri()
    for file, sha256 in source.files.items():
        if (at / file).is_file() and _content_sha256(at / file) == sha256:
            say(f"{at / file} is there, its checksum is right")
            continue
        _fetch_file([f"{each.rstrip('/')}/{file}" for each in ([base] if base else source.mirrors)], at / file, sha256, say)


def _fetch_file(addresses, path, sha256, say):
    """The first address that gives the right content wins."""
    partial = path.with_name(f".{os.getpid()}-{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path.parent}: {error.strerror}") from None
    try:
        for address in addresses:
            say(f"fetching {address}")
            reason = _download(address, partial)
            if reason is None and _content_sha256(partial, path.suffix) == sha256:
                os.replace(partial, path)
                say(f"wrote {path}")
                return
            reason = reason or "its checksum is wrong"
            say(f"{address}: {reason}")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    raise InputError(f"could not fetch {path.name} ({reason}): give another source with --from, or put it into {path.parent}")


def _download(address, path):
    """Copy `address` to `path`; None, or the reason why it failed."""
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer, open(path, "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", None) or error)
    return None


def _content_sha256(path, suffix=None):
    """sha256 (hex) of a file's content, unpacked if it is .gz; None where it cannot be unpacked."""
    result = hashlib.sha256()
    opened = gzip.open if (suffix or path.suffix) == ".gz" else open
    try:
        with opened(path, "rb") as file:
            while piece := file.read(1 << 20):
                result.update(piece)
    except (OSError, EOFError, zlib.error):
        return None
    return result.hexdigest()
