r"""The factored form of a Gram-type curvature matrix: what products need, no more.

H = (1/n) Σ_i J_iᵀ Q_i J_i is known by the inputs x̃_i^{ℓ−1} of the layers (with weights √(n w_i) times that), the slopes s'_i^ℓ, what Q_i is made of (p_i, or its
diagonal q_i, or the gradient δ_i, or nothing), and W_2 … W_L (`curvature.products`): n (Σ_ℓ d_{ℓ−1} + 1 + Σ_{ℓ<L} d_ℓ + d) + Σ_{ℓ>1} d_ℓ d_{ℓ−1} numbers. The
pre-activation factors C_i^ℓ, n r Σ d_ℓ numbers more, follow from them and are made block by block where they are needed. Of a network some of whose
layers are constant (`Network.restricted`) nothing is kept of the layers before the first chosen one, which counts as layer 1, and no inputs of the others.
"""

import json

import numpy as np

from hpcHess.compressed.file import read_rows
from hpcHess.curvature.products import Products
from hpcHess.factored.root import ConstantRoot, DiagonalRoot, GradientRoot, ProbabilityRoot
from hpcHess.networks import losses
from hpcHess.networks.network import Network
from hpcHess.parallel.agree import together
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.ownership import row_starts, starts_of
from hpcHess.runtime.errors import InputError

_COLUMN_BYTES = 1 << 28  # of a block of columns, whole
_ROWS = 2048  # of G in a block of samples
KINDS = {"cross-entropy": "CrossEntropy", "squared-error": "SquaredError", "diagonal": "Diagonal", "outer-product": "OuterProduct"}


_ROOTS = {"cross-entropy": ProbabilityRoot, "diagonal": DiagonalRoot, "outer-product": GradientRoot}


class FactoredForm:
    """This rank's samples (`row_starts(n, P)`): a `Samples`-like holder of its arrays, from which `Products` are made in any precision.

    kind      of Q: a key of `KINDS`
    x         [Σ (d_{ℓ−1} + 1), n_mine]: the chosen layers' inputs, each with its (scaled) bias input
    slopes    [Σ_{ℓ<L} d_ℓ, n_mine];   outputs [d, n_mine] or None
    network   widths, which layers are chosen, the first one among them, biases or not, and W_2 … W_L; the other numbers are zero
    """

    def __init__(self, comm, backend, network, kind, n, x, slopes, outputs):
        self.comm, self.backend, self.network, self.kind, self.n = comm, backend, network, kind, int(n)
        self.x, self.slopes, self.outputs, self.dtype = x, slopes, outputs, x.dtype
        self.sample_starts = row_starts(self.n, comm.size)
        self.parameter_starts = row_starts(network.n_params, comm.size)
        self.row_starts = starts_of([inner + (inner > 0) for inner in network.inner])
        self._bias_rows = self.row_starts[1:][list(network.chosen)] - 1
        self.neuron_starts = starts_of(network.widths[1:])
        self._products = {}

    @classmethod
    def of_operator(cls, operator, backend, dtype):
        """The form of a network's operator (`curvature.gauss_newton.GaussNewton` and its like). Not collective."""
        samples, mine, network = operator.samples, operator.mine, operator.network
        first, kind = network.chosen[0], next(name for name, each in KINDS.items() if each == samples.loss.__name__)
        part = lambda a: np.array(a[:, mine], dtype, order="C")  # noqa: E731
        x = np.concatenate([part(samples.inputs(layer)) for layer in network.chosen])
        shape = _shape(network.widths[first:], network.weights[first + 1 :], network.has_bias[first:], [layer - first for layer in network.chosen])
        slopes, outputs = part(samples.slopes[samples.neuron_starts[first] :]), None if samples.output is None else part(samples.output)
        return cls(operator.comm, backend, shape, kind, samples.n, x, slopes, outputs)

    @property
    def n_mine(self):
        """Samples of this rank."""
        return self.x.shape[1]

    @property
    def entries(self):
        """Numbers of the form, of all ranks."""
        return self.n * numbers_a_sample(self.network, self.outputs is None) + self.n_weights

    @property
    def n_weights(self):
        """Numbers of W_2 … W_L."""
        return sum(W.size for W in self.network.weights[1:])

    @property
    def bytes(self):
        """Bytes of `entries`: the weights are in float64."""
        return (self.entries - self.n_weights) * self.dtype.itemsize + self.n_weights * 8

    def products(self, dtype):
        """`curvature.products.Products` of the own samples in that precision. Not collective."""
        dtype = np.dtype(dtype)
        if dtype not in self._products:
            self._products[dtype] = Products(self.network, _Arrays(self, dtype), slice(0, self.n_mine), self.backend)
        return self._products[dtype]

    def matmat_rows(self, V):
        """HV in parameter rows, [n_local, k] → [n_local, k], in the wider of the form's and V's precision. Collective."""
        dtype = np.result_type(self.dtype, V.dtype)
        return self._by_columns(V, dtype, lambda whole: self.products(dtype).matmat(whole))

    def _by_columns(self, V, dtype, partial):
        """Σ over ranks of `partial(V whole)` by blocks of columns, parameter rows to parameter rows. Collective."""
        result, width = np.empty(V.shape, dtype), max(1, _COLUMN_BYTES // (self.network.n_params * dtype.itemsize))
        for a in range(0, V.shape[1], width):
            whole = gather_rows(self.comm, np.ascontiguousarray(V[:, a : a + width], dtype), self.parameter_starts)
            result[:, a : a + width] = reduce_rows(self.comm, partial(whole), self.parameter_starts)
        return result

    def root(self, samples=None, outputs=None):
        """The thin root of Q of some own samples (default: all), or of given outputs, in float64."""
        if self.kind == "squared-error":
            return ConstantRoot(self.network.n_outputs)
        outputs = (self.outputs if samples is None else self.outputs[:, samples]) if outputs is None else outputs
        return _ROOTS[self.kind](outputs.astype(np.float64))

    @property
    def rank(self):
        """r, the columns of R_i."""
        return {"cross-entropy": self.network.n_outputs - 1, "outer-product": 1}.get(self.kind, self.network.n_outputs)

    def block(self, lo, hi):
        """x, slopes and outputs of own samples lo … hi − 1 in one array, samples first, [hi − lo, …], float64."""
        parts = [self.x[:, lo:hi], self.slopes[:, lo:hi], *(() if self.outputs is None else (self.outputs[:, lo:hi],))]
        return np.concatenate([each.T for each in parts], axis=1, dtype=np.float64)

    def factors(self, block):
        """(x̃ [m, d̃_ℓ], C [m, r, d_ℓ]) of every layer, the last first, for a `block`: C^L = Rᵀ, C^{ℓ−1} = C^ℓ W_ℓ diag(s'). d̃ counts the bias, and
        is 0 of a layer that is not chosen."""
        d, m = self.network.n_outputs, len(block)
        root = self.root(outputs=block[:, len(self.x) + len(self.slopes) :].T)
        C = np.ascontiguousarray(root.transposed(np.broadcast_to(np.eye(d)[:, :, None], (d, d, m))).transpose(2, 1, 0))
        return self._descend(block, self.network.n_layers - 1, C)

    def _descend(self, block, layer, C):
        """(x̃, C) from a layer to the first."""
        m, r, _ = C.shape
        while True:
            yield self._inputs_of(block, layer), C
            if not layer:
                return
            W = self.network.weights[layer]
            layer -= 1
            C = (C.reshape(m * r, len(W)) @ W).reshape(m, r, W.shape[1]) * self._slopes_of(block, layer)[:, None]

    def _inputs_of(self, block, layer):
        first = self.row_starts[layer]
        return block[:, first : first + self.network.inner[layer] + self.network.has_bias[layer]]

    def _slopes_of(self, block, layer):
        at = len(self.x)
        return block[:, at + self.neuron_starts[layer] : at + self.neuron_starts[layer + 1]]

    def _own_kernels(self, block):
        """(x̃, Σ_e C_ep² [m, d_ℓ]) of every layer, the last first. Squared error's last layer has 2, the one before as few rows as W_L has rank."""
        last, layers = self.network.n_layers - 1, None
        if self.kind == "squared-error":
            W = self.network.weights[last]
            yield self._inputs_of(block, last), np.full((len(block), len(W)), 2.0)
            if last:
                T = np.sqrt(2.0) * (np.linalg.qr(W, mode="r") if len(W) > W.shape[1] else W)
                layers = self._descend(block, last - 1, T * self._slopes_of(block, last - 1)[:, None])
        else:
            layers = self.factors(block)
        for x, C in layers or ():
            yield x, np.einsum("mep,mep->mp", C, C)

    def blocks(self, rank=None):
        """(lo, hi) of blocks of own samples with `_ROWS` rows of G, or of factors with `rank` rows each."""
        step = max(1, _ROWS // max(1, self.rank if rank is None else rank))
        return [(a, min(self.n_mine, a + step)) for a in range(0, self.n_mine, step)]

    def diagonal_rows(self):
        """H_jj = (1/n) Σ_i x_iq² Σ_e C_i[e, p]², of the own parameter rows, float64. Collective."""
        network, total = self.network, np.zeros((self.network.n_params, 1))
        for lo, hi in self.blocks(min(self.rank, network.widths[-2])):
            for layer, (x, own) in zip(range(network.n_layers - 1, -1, -1), self._own_kernels(self.block(lo, hi)), strict=True):
                squares = own.T @ np.square(x)
                (weight, bias), inner = network.layer_offsets[layer], network.inner[layer]
                total[weight : weight + len(squares) * inner, 0] += squares[:, :inner].ravel()
                if bias is not None:
                    total[bias : bias + len(squares), 0] += squares[:, inner]
        return reduce_rows(self.comm, total, self.parameter_starts)[:, 0] / self.n

    def root_products(self, V):
        """G V for V [N, k] whole: rows n^{-1/2} R_iᵀ J_i V of the own samples, sample by sample, [n_mine · r, k] float64. Not collective."""
        root = self.root()
        U = self.products(np.float64).jacobian(V)
        return root.transposed(U).transpose(2, 1, 0).reshape(-1, V.shape[1]) / np.sqrt(self.n)

    def root_transposed(self, Y):
        """The own samples' share of Gᵀ Y for their rows Y [n_mine · r, k], [N, k] float64; the sum over ranks is GᵀY. Not collective."""
        Y = Y.reshape(self.n_mine, self.rank, Y.shape[1]).transpose(2, 1, 0)
        return self.products(np.float64).jacobian_transposed(np.ascontiguousarray(self.root().apply(Y))) / np.sqrt(self.n)

    def append(self, out):
        """`factored/…` (docs/FORMAT.md) into `out`, the attributes. Not collective."""
        network, starts = self.network, self.sample_starts
        rows = lambda a: np.ascontiguousarray(a.T)  # noqa: E731
        out.rows("factored/inputs", starts, rows(np.delete(self.x, self._bias_rows, axis=0)), self.dtype)
        out.rows("factored/scale", starts, rows(self.x[self._bias_rows[:1]]), self.dtype)
        out.rows("factored/slopes", starts, rows(self.slopes), self.dtype)
        if self.outputs is not None:
            out.rows("factored/outputs", starts, rows(self.outputs), self.dtype)
        out.whole("factored/weights", np.concatenate([np.zeros(0), *(W.ravel() for W in network.weights[1:])]))
        described = {"widths": network.widths, "biases": network.has_bias, "layers": network.chosen}
        return {f"factored_{name}": json.dumps(each) for name, each in described.items()} | {"factored_loss": self.kind, "n_samples": self.n}

    @classmethod
    def read(cls, file, backend):
        """What `append` wrote, on any number of ranks. Collective."""
        given, comm = file.attributes, file.comm
        with together(comm):
            widths, kind, n = json.loads(given["factored_widths"]), given["factored_loss"], int(given["n_samples"])
            if kind not in KINDS:
                raise InputError(f"{file.path} has the loss {kind}, which this version does not read")
            starts, flat, at = row_starts(n, comm.size), file.read_all("factored/weights"), 0
            layers, weights = json.loads(given.get("factored_layers", json.dumps(list(range(len(widths) - 1))))), []
            for inner, out in zip(widths[1:-1], widths[2:], strict=True):
                weights.append(flat[at : at + out * inner].reshape(out, inner))
                at += out * inner
            rows = lambda name, width: read_rows(file, f"factored/{name}", starts, width).T  # noqa: E731
            bias_inputs = np.cumsum([widths[layer] for layer in layers])
            x = np.insert(rows("inputs", int(bias_inputs[-1])), bias_inputs, np.repeat(rows("scale", 1), len(bias_inputs), axis=0), axis=0)
            outputs = None if kind == "squared-error" else np.ascontiguousarray(rows("outputs", widths[-1]))
            slopes = np.ascontiguousarray(rows("slopes", sum(widths[1:-1])))
        shape = _shape(widths, weights, json.loads(given["factored_biases"]), layers)
        return cls(comm, backend, shape, kind, n, np.ascontiguousarray(x), slopes, outputs)


def _shape(widths, weights, biases, layers):
    """The network with these chosen layers that has W_2 … W_L; biases: which layers have one. Its other numbers are zero."""
    biases = [np.zeros(out) if has else None for out, has in zip(widths[1:], biases, strict=True)]
    return Network([np.zeros((widths[1], widths[0])), *weights], biases, "relu", "squared-error").restricted(layers)


def numbers_a_sample(network, constant):
    """Numbers of the form for one sample; constant: none for its outputs. Layers before the first chosen one do not count."""
    return sum(network.inner) + 1 + sum(network.widths[network.chosen[0] + 1 : -1]) + (0 if constant else network.n_outputs)


class _Arrays:
    """What `Products` takes of `Samples`, in one precision."""

    def __init__(self, form, dtype):
        self.n, self.dtype, self.loss = form.n, dtype, getattr(losses, KINDS[form.kind])
        self.n_layers, self.row_starts = form.network.n_layers, form.row_starts
        self.X, self._slopes, self._starts = form.x.astype(dtype, copy=False), form.slopes.astype(dtype, copy=False), form.neuron_starts
        self.p = self.output = None
        if form.outputs is not None:
            outputs = form.outputs.astype(dtype, copy=False)
            self.p = self.output = outputs / outputs.sum(axis=0) if form.kind == "cross-entropy" else outputs

    def slope(self, layer):
        return self._slopes[self._starts[layer] : self._starts[layer + 1]]
