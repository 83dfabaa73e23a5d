"""Curvature matrices of any PyTorch module, by products."""

from numbers import Integral

import numpy as np
import torch
from mpi4py import MPI

from hpcHess.parallel.agree import agree, together
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.operator import PRODUCT_BYTES, SummedOperator, checked_dtype, probed_rows
from hpcHess.parallel.ownership import whole_rows
from hpcHess.parallel.random import gaussian_rows, uniform_rows
from hpcHess.pytorch.data import Samples
from hpcHess.pytorch.digest import tensors_digest
from hpcHess.pytorch.losses import check_mean, loss_of
from hpcHess.pytorch.module import Function
from hpcHess.pytorch.products import Products
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import KINDS

MEMORY = 1 << 30  # bytes of intermediates, a rank
_DRAWN = 256  # samples whose labels are drawn at a time, at most


class TorchCurvature(SummedOperator):
    r"""A curvature matrix of a PyTorch module z = f(θ, x), mean over the samples (w_i = 1/n) or with weights, known by products alone:

    .. math:: H = \sum_{i=1}^n w_i H_i \in R^{N \times N}, \quad J_i = \partial z_i / \partial\theta, \quad
              Q_i = \partial^2 \ell / \partial z_i^2, \quad \delta_i = \partial \ell / \partial z_i

    ============  ==================================================================================================================
    gauss-newton  :math:`H_i = J_i^T Q_i J_i`
    fisher        :math:`H_i = J_i^T F_i J_i`, :math:`F_i = E_{y \sim p(y|z_i)}[δδ^T]` for ℓ = −log p(y|z)
    mc-fisher     :math:`H_i = \frac1m \sum_{s ≤ m} J_i^T δ_{is} δ_{is}^T J_i` for m labels drawn from p(y|z_i): its mean is `fisher`
    opg           :math:`H_i = J_i^T δ_i δ_i^T J_i`, the targets as given
    hessian       :math:`H_i = \partial^2 \ell(f(θ, x_i), y_i) / \partial θ^2`, indefinite
    ============  ==================================================================================================================

    Martens, JMLR 2020; Pearlmutter, Neural Computation 1994 (products); Schraudolph, Neural Computation 2002. θ are the parameters with
    requires_grad in the order of `named_parameters()` (that of `parameters_to_vector`), tied ones once, as they are when this is made.

    model       nn.Module in eval mode, [m, …] → [m, …], samples independent of each other; on one device, where products are computed
    loss        cross-entropy (outputs [n, d], labels [n]), binary-cross-entropy, squared-error ‖z − y‖², both summed over a sample's outputs; or
                nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss, or a function f(outputs, targets): the mean over a batch as they scale it
    data        (inputs, targets), arrays or tensors [n, …] whole on every rank, or a map-style data set of such pairs, of which each rank reads its share
    weights     w [n], ≥ 0; None: 1/n
    parameters  names, or names of modules for all of theirs: H is their block, the others are constants. None: all
    memory      bytes of intermediates that a rank may take at once, beside the vectors
    seed, draws of mc-fisher; the labels depend on the seed and the sample's number alone

    The Fisher kinds are of the model p(y|z): softmax, independent σ(z_e), N(z, I) (−log p = ‖z − y‖²/2), whatever the loss's own scaling, and of no other
    loss. Making it is collective and takes 10 products. Each rank sweeps its samples; InputError on all ranks where the
    module's outputs depend on the other samples or on chance, where a loss is no mean over the samples (both are tried on a few of each rank's),
    data do not fit, or products are not finite.
    """

    quadrature = None
    without_samples = "a PyTorch module is known by products alone"

    def __init__(
        self, model, loss, data, kind="gauss-newton", comm=MPI.COMM_WORLD, dtype=np.float64, weights=None, parameters=None, memory=MEMORY, seed=0, draws=1
    ):
        self.comm, self.kind = comm, kind
        with together(comm):
            self.dtype = checked_dtype(dtype)
            _check_options(kind, memory, seed, draws)
            self.function, loss = Function(model, parameters, self.dtype), loss_of(loss)
            if kind in ("fisher", "mc-fisher") and loss.family is None:
                raise InputError(f'kind = "{kind}" needs a loss that is −log p of a model: cross-entropy, binary-cross-entropy or squared-error, not {loss.name}')
            samples = Samples(data, comm, self.function.dtype)
            weights = _checked_weights(weights, samples.n)[samples.rows]
        self.n_params, self.n_samples = int(self.function.starts[-1]), samples.n
        _check_same(comm, self.function, self.n_samples)
        self.function.share_threads(comm)
        self._mine = samples.mine
        self.indefinite = kind == "hessian"
        other = comm.bcast(samples.first)
        with together(comm), self.function.running():
            targets, self.n_outputs = self._targets(loss, samples, other, int(memory), int(seed), int(draws))
            weights = torch.as_tensor(weights, dtype=self.function.dtype)
            self._products = Products(self.function, loss, kind, samples.inputs, targets, weights, self.n_outputs, int(memory))
        self._try_ways()
        self.alive = probed_rows(self, f"the module's {kind} matrix")

    def __repr__(self):
        return f"TorchCurvature({type(self.function.model).__name__}, {self.kind}, N = {self.n_params}, {self.n_samples} samples, {self.dtype})"

    @property
    def full(self):
        """The operator itself."""
        return self

    @property
    def starts(self):
        """First parameter row of every rank, int64 [P + 1]."""
        return self.parameter_starts

    @property
    def mine(self):
        """The slice of this rank's parameter rows."""
        lo, hi = self.parameter_starts[self.comm.rank :][:2]
        return slice(int(lo), int(hi))

    def partial_matmat(self, V):
        """The share of this rank's samples of HV: [N, k] → [N, k], row-major; the sum over ranks is HV. Not collective."""
        if not self._mine:
            return np.zeros(V.shape, self.dtype)
        columns = torch.from_numpy(np.require(V, self.dtype, ["C", "W"])).t().contiguous()
        return self._products.matmat(columns).t().contiguous().numpy()

    def matmat(self, V):
        """HV for V [N] or [N, k], whole on every rank, as is the result. Collective."""
        V = whole_rows(V, self.n_params)
        return self.combined(self._share(V.reshape(self.n_params, -1))).reshape(V.shape)

    __matmul__ = matmat

    def matmat_rows(self, V):
        """HV in parameter rows (`parallel.ownership.row_starts`), [n_local, k] → [n_local, k]. Collective."""
        result, width = np.empty(V.shape, self.dtype), max(1, PRODUCT_BYTES // (self.n_params * self.dtype.itemsize))
        for a in range(0, V.shape[1], width):
            whole = gather_rows(self.comm, np.ascontiguousarray(V[:, a : a + width], self.dtype), self.parameter_starts)
            result[:, a : a + width] = reduce_rows(self.comm, self._share(whole), self.parameter_starts)
        return result

    def to_named(self, v):
        """{name: [*shape] or [*shape, k]} of v [N] or [N, k]: a parameter's name and its part of the vector. Not collective."""
        v, function = whole_rows(v, self.n_params), self.function
        parts = zip(function.shapes.items(), function.starts[:-1], function.starts[1:], strict=True)
        return {name: v[a:b].reshape(*shape, *v.shape[1:]) for (name, shape), a, b in parts}

    def from_named(self, parts):
        """v [N] or [N, k] of {name: array or tensor [*shape] or [*shape, k]}; InputError for names or shapes that do not fit. Not collective."""
        shapes = self.function.shapes
        wrong = [*(name for name in shapes if name not in parts), *(name for name in parts if name not in shapes)]
        if wrong:
            raise InputError(f"{wrong[0]} is {'missing' if wrong[0] in shapes else 'none of the chosen parameters'}: {len(shapes)} names are wanted")
        arrays = {name: parts[name].detach().cpu().numpy() if isinstance(parts[name], torch.Tensor) else np.asarray(parts[name]) for name in shapes}
        more = next(iter(arrays.values())).shape[len(next(iter(shapes.values()))) :]
        for name, shape in shapes.items():
            if arrays[name].shape != (*shape, *more) or len(more) > 1:
                raise InputError(f"{name} must be {list(shape)}, or that and k columns, in all parts alike, not {list(arrays[name].shape)}")
        return np.concatenate([arrays[name].reshape(-1, *more) for name in shapes]).astype(self.dtype, copy=False)

    def _share(self, V):
        """`partial_matmat`, finite on all ranks or an InputError on all. Collective."""
        with together(self.comm):
            share = self.partial_matmat(V)
            if not np.isfinite(share).all():
                if not np.isfinite(V).all():
                    raise InputError("the vectors to be multiplied are not finite")
                raise InputError(f"the module's {self.kind} products are not finite in {self.dtype}: scale the inputs, or the parameters")
        return share

    def _targets(self, loss, samples, other, memory, seed, draws):
        """(targets as the products take them, outputs of a sample), the module and the loss tried on a few samples and another rank's. Not collective."""
        device, inputs, targets = self.function.device, samples.inputs, samples.targets
        few, their = samples.few(other)
        z = self.function.separate_outputs(few.to(device)).detach()
        if targets is None and self.kind in ("opg", "hessian"):
            raise InputError(f'kind = "{self.kind}" needs the targets')
        if self.kind == "mc-fisher":
            loss.ready(z, None, 0)
            bytes_a_sample = self.function.bytes_a_sample(few[:1].to(device)) + 32 * draws * z[0].numel()  # four float64 of each output
            step = max(1, min(_DRAWN, memory // bytes_a_sample))
            return self._drawn(loss.family, inputs, samples.rows, step, seed, draws), z[0].numel()
        targets = loss.ready(z.new_empty((), device="cpu").expand(len(inputs), *z.shape[1:]), targets, samples.rows.start)
        check_mean(loss, z, loss.ready(z, their, 0).to(device))
        return targets, z[0].numel()

    def _drawn(self, family, inputs, rows, step, seed, draws):
        """Labels drawn from p(y | z) for samples `rows`, [m, draws, …], `step` at a time: as `curvature.fisher.MonteCarloFisher` draws them."""
        found = None
        for lo in range(rows.start, rows.stop, step):
            hi = min(rows.stop, lo + step)
            with torch.no_grad():
                z = self.function(self.function.theta, inputs[lo - rows.start : hi - rows.start].to(self.function.device)).double().cpu()
            span, shape = (lo * draws, hi * draws), (len(z), draws, *z.shape[1:])
            if family == "classes":
                total = torch.softmax(z, dim=1).cumsum(dim=1).movedim(1, -1).contiguous()
                u = torch.from_numpy(uniform_rows(seed, "labels", *span, range(z[0, 0].numel())).copy()).reshape(len(z), draws, *z.shape[2:])
                y = torch.searchsorted(total, u.movedim(1, -1) * total[..., -1:]).movedim(-1, 1).clamp(max=z.shape[1] - 1)  # first total ≥ u
            elif family == "bernoulli":
                u = torch.from_numpy(uniform_rows(seed, "labels", *span, range(z[0].numel())).copy()).reshape(shape)
                y = (u < torch.sigmoid(z)[:, None]).to(self.function.dtype)
            else:
                noise = gaussian_rows(seed, "labels", *span, range(z[0].numel()), np.float64)
                y = (z[:, None] + torch.from_numpy(noise.copy()).reshape(shape)).to(self.function.dtype)
            found = y.new_empty(len(inputs), *y.shape[1:]) if found is None else found
            found[lo - rows.start : hi - rows.start] = y
        return found

    def _try_ways(self):
        """Whether the module's operations are differentiated forwards in batches of vectors, or by reverse sweeps alone. Collective."""
        ones, failed, error = torch.ones(2, self.n_params, dtype=self.function.dtype), None, None
        for self._products.reverse in (False, True):
            error = None
            try:
                self._products.matmat(ones, most=1)
            except Exception as caught:  # whatever an operation of the module raises
                failed = error = failed or caught
            if not self.comm.allreduce(error is not None, MPI.LOR):
                return
        line = f"{failed}".strip().splitlines() or [""]
        agree(self.comm, error and InputError(f"the module cannot be differentiated twice: {type(failed).__name__}: {line[0]}"))


def _check_options(kind, memory, seed, draws):
    if kind not in KINDS:
        raise InputError(f"kind must be {' or '.join(KINDS)}, not {kind!r}")
    for name, value, least in (("memory", memory, 1), ("seed", seed, 0), ("draws", draws, 1)):
        if not isinstance(value, Integral) or value < least:
            raise InputError(f"{name} must be an integer of at least {least}, not {value!r}")


def _checked_weights(weights, n):
    """w float64 [n], 1/n for None, or an InputError."""
    if weights is None:
        return np.full(n, 1 / n)
    weights = np.asarray(weights)
    if weights.dtype.kind not in "fiu" or weights.shape != (n,):
        raise InputError(f"weights must be {n} real numbers, one a sample, not {weights.dtype} of the shape {list(weights.shape)}")
    weights = weights.astype(np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        reason = f"{weights[wrong[0]]} of sample {wrong[0]} (counted from 0)" if len(wrong) else "all of them are zero"
        raise InputError(f"weights must be finite and not negative, and not all of them zero: {reason}")
    return weights


def _check_same(comm, function, n):
    """InputError where the ranks' modules or numbers of samples differ. Collective."""
    found = comm.allgather((n, tensors_digest({**function.theta, **function.constants})))
    if any(each != found[0] for each in found):
        what = "numbers of samples" if any(each[0] != n for each in found) else "modules' parameters"
        raise InputError(f"the ranks' {what} differ: make the same on every rank (torch.manual_seed), or load a state_dict")
