"""The operator of a job whose network is a PyTorch module."""

import numpy as np

from hpcHess.networks import datasets
from hpcHess.networks.problem import data_digest, read_npy
from hpcHess.parallel.agree import together
from hpcHess.parallel.shared import share
from hpcHess.runtime.errors import InputError


def torch_operator(job, comm, dtype):
    """(`pytorch.curvature.TorchCurvature`, digests, summary) of a job with network.torch. Collective.

    Every rank calls the factory; the data come from it, or from [data] (read by rank 0, one copy a host). InputError: PyTorch is not installed, the
    factory fails or gives the ranks different modules, data twice or not at all, and as `TorchCurvature`.
    """
    with together(comm):
        try:
            from hpcHess.pytorch.curvature import TorchCurvature
            from hpcHess.pytorch.digest import module_digest
            from hpcHess.pytorch.factory import call_factory
        except ImportError as error:
            raise InputError(f"network.torch needs PyTorch: pip install hpcHess[torch] ({error})") from None
        model, inputs, targets, loss = call_factory(job["network"]["torch"], job.directory)
    loss = job["network"]["loss"] if loss is None else loss
    inputs, targets, weights = _data(job, comm, inputs, targets)
    curvature = job["curvature"]
    options = {key: curvature[key] for key in ("draws", "seed")} if curvature["kind"] == "mc-fisher" else {}
    operator = TorchCurvature(model, loss, (inputs, targets), curvature["kind"], comm, dtype, weights, **options)
    digests = module_digest(model, loss), data_digest(inputs, targets, weights)
    found = comm.allgather(digests)
    if any(each != found[0] for each in found):
        raise InputError(f"network.torch: {job['network']['torch']} gives the ranks different modules or data: seed it (torch.manual_seed), or load a state_dict")
    summary = f"{type(model).__name__} of {job['network']['torch']}, n = {operator.n_samples} samples, d = {operator.n_outputs} outputs"
    return operator, dict(zip(("network_hash", "data_hash"), digests, strict=True)), summary


def _data(job, comm, inputs, targets):
    """(inputs, targets, weights), the first data.samples of them. Collective."""
    data, given = job["data"], inputs is not None
    with together(comm):
        if given and ("inputs" in data or "dataset" in data):
            raise InputError("network.torch: the factory returns data, and [data] names some: leave one of them out")
        if not given and not ("inputs" in data or "dataset" in data):
            raise InputError("network.torch: the factory returns a module alone: give data.inputs and data.targets, or data.dataset")
        if given:
            inputs, targets = _first(inputs, data["samples"]), _first(targets, data["samples"])
            if targets is None:
                raise InputError("network.torch: the factory returns inputs without targets")
        elif comm.rank == 0:
            inputs, targets = _read(job)
        path = job.path("data", "weights")
        weights = None if path is None else read_npy(path, data["samples"])
    if not given:
        same = comm.bcast(targets is inputs)
        inputs = share(comm, inputs)
        targets = inputs if same else share(comm, targets)
    return inputs, targets, weights


def _read(job):
    """(inputs, targets) of [data], of any shape [n, …]. One rank."""
    data = job["data"]
    samples, task = data["samples"], data["task"]
    if "dataset" in data:
        return datasets.load(data["dataset"], samples, task)
    inputs = read_npy(job.path("data", "inputs"), samples)
    return inputs, inputs if task == "autoencode" else read_npy(job.path("data", "targets"), samples)


def _first(array, samples):
    if array is None or not samples:
        return array
    if np.ndim(array) == 0 or samples > len(array):
        raise InputError(f"data.samples = {samples}, but the factory returns {len(array) if np.ndim(array) else 0} samples")
    return array[:samples]
