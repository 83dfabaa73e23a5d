"""A PyTorch module as a function z = f(θ, x) of chosen parameters, in the dtype of the curvature, the module itself untouched."""

import difflib
import os
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpcHess.runtime.errors import InputError

DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
_BATCH = 4  # samples of the batch that is compared with single ones
_TRAINED = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)  # behave differently in training


class Function:
    """z [m, …] = f(θ, X) for θ = {name: tensor} of the chosen parameters, in the order of `named_parameters()`, tied ones once.

    model       nn.Module in eval mode; copies of its parameters and buffers are taken, floating ones in `dtype`
    parameters  names of parameters, or of modules for all of theirs; None: all with requires_grad. The others are constants
    names, shapes, sizes, starts   of the chosen ones; `starts` [#names + 1] their first parameters among the N

    InputError: no module, no such parameters, modules in training mode that behave differently there, several devices.
    """

    def __init__(self, model, parameters, dtype):
        if not isinstance(model, nn.Module):
            raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
        _check_mode(model)
        named = dict(model.named_parameters())
        if any(isinstance(each, nn.UninitializedParameter) for each in named.values()):
            raise InputError("the module has lazy parameters that no input has given a shape: call it once")
        self.names = _chosen(named, parameters)
        devices = {tensor.device for tensor in [*named.values(), *model.buffers()]}
        if len(devices) > 1:
            raise InputError(f"the module lies on several devices ({', '.join(sorted(map(str, devices)))}): move it to one")
        if any(each.is_complex() for each in named.values()):
            raise InputError("the module has complex parameters: H is of real ones")
        self.model, self.dtype, self.device = model, DTYPES[dtype], devices.pop()
        cast = lambda each: each.detach().to(self.dtype, copy=True) if each.is_floating_point() else each.detach().clone()  # noqa: E731
        self.theta = {name: cast(named[name]) for name in self.names}
        self.constants = {name: cast(each) for name, each in [*named.items(), *model.named_buffers()] if name not in self.theta}
        self.shapes = {name: tuple(each.shape) for name, each in self.theta.items()}
        self.sizes = [each.numel() for each in self.theta.values()]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
        self.threads = None

    def __call__(self, theta, X):
        return functional_call(self.model, (theta, self.constants), (X,))

    def split(self, V):
        """{name: [k, *shape]}, views of V [k, N]."""
        parts = zip(self.shapes.items(), self.starts[:-1], self.starts[1:], strict=True)
        return {name: V[:, a:b].reshape(len(V), *shape) for (name, shape), a, b in parts}

    def outputs(self, X):
        """z, checked: one tensor of the dtype with a row for every sample. InputError. Not collective."""
        try:
            z = self(self.theta, X)
        except InputError:
            raise
        except Exception as error:
            line = f"{error}".strip().splitlines()
            what = f"{str(X.dtype)[6:]} of shape {list(X.shape)}"
            raise InputError(f"the module fails on inputs that are {what}: {type(error).__name__}: {line[0] if line else ''}") from error
        if not isinstance(z, torch.Tensor) or z.ndim == 0 or len(z) != len(X):
            found = f"the shape {list(z.shape)}" if isinstance(z, torch.Tensor) else type(z).__name__
            raise InputError(f"the module must give a tensor with a row for every sample, it gives {found} for {len(X)} samples: wrap it")
        if z.dtype != self.dtype:
            raise InputError(f"the module gives {str(z.dtype)[6:]} for parameters and inputs in {str(self.dtype)[6:]}: it must keep the dtype")
        return z

    def separate_outputs(self, X):
        """z of each sample of X alone. InputError where `_BATCH` of them, spread over X, have other outputs in a batch: noise, statistics of the batch,
        samples taken for steps in time. Not collective."""
        alone = torch.cat([self.outputs(X[i : i + 1]) for i in range(len(X))])
        at = torch.linspace(0, len(X) - 1, min(_BATCH, len(X)), device=X.device).round().long()
        whole, eps = self.outputs(X[at]), torch.finfo(self.dtype).eps
        near = whole.shape == alone[at].shape and bool((whole - alone[at]).abs().max() <= min(eps**0.5, 1e4 * eps) * whole.abs().max())
        if near or not bool(whole.isfinite().all()):
            return alone
        raise InputError(
            "the module gives a sample other outputs in a batch than alone: call model.eval() (dropout, statistics of the batch), "
            "make the samples the first dimension (batch_first=True)"
        )

    def bytes_a_sample(self, X):
        """Bytes that one sample's reverse sweep keeps, its outputs included, measured on the first of X. Not collective."""

        def kept(m):
            found = {}

            def pack(tensor):
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no other takes its address
                return tensor

            theta = {name: each.clone().requires_grad_() for name, each in self.theta.items()}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                z = self(theta, torch.cat([X[:1]] * m))
            found[z.untyped_storage().data_ptr()] = z.untyped_storage()
            return sum(each.nbytes() for each in found.values())

        return max(kept(3) - kept(2), X[:1].numel() * X.element_size(), 1)

    def share_threads(self, comm):
        """Threads of a rank: PyTorch's, at most its share of the cores, unless OMP_NUM_THREADS says how many. Collective."""
        host = comm.Split_type(MPI.COMM_TYPE_SHARED)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = max(1, cores // host.size)
        host.Free()
        self.threads = None if os.environ.get("OMP_NUM_THREADS") else share

    @contextmanager
    def running(self):
        """Attention in formulas that differentiate twice, this rank's threads, and no notes of PyTorch's developers. Not collective."""
        fast, threads = torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()
        torch.backends.mha.set_fastpath_enabled(False)
        if self.threads is not None and self.threads < threads:
            torch.set_num_threads(self.threads)
        try:
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False), torch.enable_grad():
                warnings.simplefilter("ignore")
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def _check_mode(model):
    """InputError for modules in training mode that behave differently there."""
    for name, each in model.named_modules():
        noisy = isinstance(each, _TRAINED) or getattr(each, "dropout", 0.0) not in (0, 0.0) and isinstance(each, nn.MultiheadAttention | nn.RNNBase)
        if noisy and each.training and getattr(each, "p", 1.0) > 0:
            raise InputError(f"{name or 'the module'} ({type(each).__name__}) is in training mode: call model.eval()")


def _chosen(named, parameters):
    """Names of the parameters that `parameters` asks for, in the order of `named`."""
    free = [name for name, each in named.items() if each.requires_grad and each.numel()]
    if parameters is None:
        if not free:
            raise InputError("the module has no parameters with requires_grad")
        return free
    asked = [parameters] if isinstance(parameters, str) else list(parameters)
    found = set()
    for each in asked:
        matching = [name for name in free if name == each or name.startswith(f"{each}.")]
        if not matching:
            frozen = [name for name in named if name == each or name.startswith(f"{each}.")]
            near = difflib.get_close_matches(str(each), [*free, *{name.rpartition(".")[0] for name in free} - {""}], 1)
            hint = ": frozen (requires_grad is False)" if frozen else f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"parameters: the module has none of the name or prefix {each!r}{hint}")
        found.update(matching)
    if not found:
        raise InputError("parameters is empty: name some, or leave it out for all")
    return [name for name in free if name in found]
