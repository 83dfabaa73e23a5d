"""What a job asks for: the network and the data, checked, on every rank."""

import hashlib
import os
import re
from dataclasses import dataclass

import numpy as np

from hpcHess.networks import datasets
from hpcHess.networks.fit import fit
from hpcHess.networks.network import Network
from hpcHess.networks.weights import read_network
from hpcHess.parallel.agree import together
from hpcHess.parallel.shared import share
from hpcHess.runtime.errors import InputError

_BLOCK = 1 << 22  # numbers converted at a time


@dataclass(frozen=True)
class Problem:
    """A network and its data.

    inputs    [n, width] float32 or float64, one copy a host, read-only
    targets   int64 labels [n] for cross-entropy, else [n, d] float32 or float64; likewise
    weights   of the samples, [n] float64, or None: 1/n each
    digests   sha256 (hex): equal where the numbers are equal, whatever file and dtype they came in
    """

    network: Network
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    network_digest: str
    data_digest: str


def load_problem(job, comm, network=None):
    """The `Problem` of a `runtime.jobfile.Job`. Rank 0 reads, fits and checks. Collective.

    network: on rank 0, one that the job's [network.fit] made before (it lies in the factor file), so that it is not fitted again.
    InputError on every rank: files missing or unreadable, and as `checked_data`, `checked_weights`.
    """
    inputs = targets = digests = weights = None
    with together(comm):
        if comm.rank == 0:
            network, inputs, targets = _load(job, network)
            path, samples = job.path("data", "weights"), job["data"]["samples"]
            weights = None if path is None else checked_weights(read_npy(path, samples), len(inputs), path)
            digests = network.digest(), data_digest(inputs, targets, weights)
    network, digests, autoencode, weights = comm.bcast((network, digests, targets is inputs, weights))
    inputs = share(comm, inputs)
    targets = inputs if autoencode else share(comm, targets)
    return Problem(network, inputs, targets, weights, *digests)


def _load(job, network):
    """(network, inputs, targets) of one process."""
    options, (inputs, targets, names) = job["network"], _read_data(job)
    if network is None and "weights" in options:
        network = read_network(job.path("network", "weights"), options.get("activation"), options["loss"], options.get("output"))
    if network is None:
        inputs, targets = _checked_arrays(options["loss"], inputs, targets, names)
        network = fit(inputs, targets, **options["fit"], activation=options.get("activation", "relu"), loss=options["loss"], output=options.get("output"))
    return network, *checked_data(network, inputs, targets, names)


def _read_data(job):
    """(inputs, targets, (what to call the inputs, what to call the targets)), not yet checked."""
    data = job["data"]
    samples, task = data["samples"], data["task"]
    if "dataset" in data:
        return *datasets.load(data["dataset"], samples, task), (f"{data['dataset']} inputs", f"{data['dataset']} targets")
    paths = [job.path("data", key) for key in ("inputs", "targets")]
    inputs = read_npy(paths[0], samples)
    if task == "autoencode":
        return inputs, inputs, (paths[0], paths[0])
    return inputs, read_npy(paths[1], samples), tuple(paths)


def read_npy(path, rows=0):
    """The array of a .npy file, or its first `rows` rows, row-major. Not collective.

    InputError: missing, unreadable, holds Python objects, has fewer rows.
    """
    if not os.path.isfile(path):
        raise InputError(f"cannot read {path}: there is no such file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "it is no .npy file, or holds Python objects" if re.search("pickle|Python objects", str(error)) else error
        raise InputError(f"cannot read {path}: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"cannot read {path}: it holds several arrays, save one as .npy")
    if array.ndim and rows > len(array):
        raise InputError(f"{path} has {len(array)} samples, {rows} are asked for")
    return np.array(array[:rows] if rows and array.ndim else array, order="C")


def checked_data(network, inputs, targets, names=("inputs", "targets")):
    """(inputs, targets) as `Problem` holds them, or an InputError that says what is wrong with which of `names`. Not collective.

    Wrong are: shapes that do not fit each other or the network, no samples, NaN or Inf (the first is named), labels that are not
    integers 0 … d − 1. The same array for both stays the same array.
    """
    inputs, targets = _checked_arrays(network.loss, inputs, targets, names)
    if inputs.shape[1] != network.n_inputs:
        raise InputError(f"{names[0]}: samples have {inputs.shape[1]} numbers, the network takes {network.n_inputs}")
    if network.loss == "cross-entropy":
        wrong = np.flatnonzero((targets < 0) | (targets >= network.n_outputs))
        if len(wrong):
            label = f"label {targets[wrong[0]]} of sample {wrong[0]} (counted from 0)"
            raise InputError(f"{names[1]}: {label} is out of range, the network has {network.n_outputs} outputs")
    elif targets.shape[1] != network.n_outputs:
        raise InputError(f"{names[1]}: targets have {targets.shape[1]} numbers, the network has {network.n_outputs} outputs")
    return inputs, targets


def checked_weights(weights, n, name="weights"):
    """w float64 [n]; InputError, which says what is wrong with `name`: not n real numbers, negative, NaN or Inf, all zero. Not collective."""
    weights = np.asarray(weights)
    if weights.dtype.kind not in "fiu" or weights.shape != (n,):
        raise InputError(f"{name} must be {n} real numbers, one a sample, not {weights.dtype} of the shape {list(weights.shape)}")
    weights = weights.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise InputError(f"{name} must be finite and not negative: {weights[wrong[0]]} of sample {wrong[0]} (counted from 0)")
    if not weights.any():
        raise InputError(f"{name}: all weights are zero, H = 0")
    return weights


def _checked_arrays(loss, inputs, targets, names):
    """The checks that need no network."""
    same = targets is inputs
    inputs = _real_rows(inputs, names[0])
    if loss != "cross-entropy":
        if loss == "binary-cross-entropy" and np.ndim(targets) == 1:  # one output
            targets = np.asarray(targets)[:, None]
        targets = inputs if same else _real_rows(targets, names[1])
        if loss == "binary-cross-entropy":
            _check_probabilities(targets, names[1])
    else:
        targets = np.asarray(targets)
        if targets.ndim != 1 or targets.dtype.kind not in "iu":
            what = f"{targets.dtype} of shape {list(targets.shape)}"
            raise InputError(f"{names[1]}: cross-entropy needs integer labels [n], this is {what}")
        if targets.dtype.kind == "u" and len(targets) and int(targets.max()) > np.iinfo(np.int64).max:
            raise InputError(f"{names[1]}: label {targets.max()} is out of range")
        targets = np.ascontiguousarray(targets, np.int64)
    if len(targets) != len(inputs):
        raise InputError(f"{names[1]} has {len(targets)} samples, {names[0]} has {len(inputs)}")
    return inputs, targets


def _check_probabilities(targets, name):
    for first, rows in _row_blocks(targets):
        wrong = (rows < 0) | (rows > 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(f"{name}: binary-cross-entropy needs targets in 0 … 1, this has {rows[row, column]} at [{first + row}, {column}]")


def _real_rows(array, name):
    """Finite [n, width] in float32 or float64, row-major."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype}, not real numbers")
    if array.ndim != 2:
        raise InputError(f"{name} must be [n, width], not the shape {list(array.shape)}")
    if 0 in array.shape:
        raise InputError(f"{name} is empty: {list(array.shape)}")
    array = np.ascontiguousarray(array, np.float32 if array.dtype in (np.float16, np.float32) else np.float64)
    for first, rows in _row_blocks(array):
        finite = np.isfinite(rows)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise InputError(f"{name} is not finite: {rows[row, column]} at [{first + row}, {column}]")
    return array


def data_digest(inputs, targets, weights=None):
    """sha256 (hex) over shapes and numbers: inputs, real targets and weights as float64, labels as int64. Not collective."""
    result = hashlib.sha256(repr((inputs.shape, targets.shape, targets.dtype.kind == "f")).encode())
    for array in (inputs, targets) if weights is None else (inputs, targets, np.asarray(weights, np.float64)):
        for _, rows in _row_blocks(array):
            result.update(np.ascontiguousarray(rows, "<f8" if array.dtype.kind == "f" else "<i8").data)
    return result.hexdigest()


def _row_blocks(array):
    """(first row, rows) of pieces of bounded size."""
    step = max(1, _BLOCK // max(1, array[:1].size))
    for at in range(0, len(array), step):
        yield at, array[at : at + step]
