"""Where the layers lie among the parameters: between parameter rows [N, k] and matrices [W b] of every layer."""

import numpy as np

from hpcHess.parallel.ownership import starts_of


class Layer:
    """A layer's parameters as the matrix [W b], [d_ℓ, d_{ℓ−1} + 1] (without b: [d_ℓ, d_{ℓ−1}]), cut to its living rows and columns.

    start     first parameter; W is row-major, b follows it
    rows      int64, neurons with a parameter that is not dead, sorted
    columns   int64, likewise of the inputs; d_{ℓ−1} is the bias
    """

    def __init__(self, start, out, inner, has_bias, rows, columns):
        self.start, self.out, self.inner, self.has_bias = int(start), int(out), int(inner), bool(has_bias)
        self.rows, self.columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        self.bias = self.start + self.out * self.inner
        self.n_params = self.out * (self.inner + self.has_bias)
        self._weights = self.columns[self.columns < self.inner]
        self._all = len(self.rows) == self.out and len(self._weights) == self.inner
        self._places = {}  # array namespace → (living rows, living weights, biases of living rows) there

    @property
    def shape(self):
        """(living rows, living columns)."""
        return len(self.rows), len(self.columns)

    def gather(self, xp, V):
        """V [N, k] → [d, k, c], row-major."""
        k, w = V.shape[1], len(self._weights)
        rows, weights, biases = self._on(xp)
        result = xp.empty((len(self.rows), k, len(self.columns)), V.dtype)
        W = V[self.start : self.bias].reshape(self.out, self.inner, k)
        result[:, :, :w] = xp.transpose(W if self._all else W[rows, weights], (0, 2, 1))
        if w < len(self.columns):
            result[:, :, w] = V[biases]
        return result

    def scatter(self, xp, U, V):
        """U [d, k, c] → its rows of V [N, k], row-major, in place; the others stay."""
        k, w = V.shape[1], len(self._weights)
        rows, weights, biases = self._on(xp)
        W, values = V[self.start : self.bias].reshape(self.out, self.inner, k), xp.transpose(U[:, :, :w], (0, 2, 1))
        if self._all:
            W[...] = values
        else:
            W[rows, weights] = values
        if w < len(self.columns):
            V[biases] = U[:, :, w]

    def _on(self, xp):
        if id(xp) not in self._places:
            self._places[id(xp)] = tuple(xp.asarray(each) for each in (self.rows[:, None], self._weights, self.bias + self.rows))
        return self._places[id(xp)]


def layers_of(operator):
    """The `Layer`s of a network's operator: its `network` and `alive`; those that are not chosen have no inputs, rows, columns. Not collective."""
    network, living = operator.network, np.zeros(operator.n_params, bool)
    living[operator.alive] = True
    layers = []
    for out, inner, (start, bias) in zip(network.widths[1:], network.inner, network.layer_offsets, strict=True):
        alive = living[start : start + out * inner].reshape(out, inner)
        if bias is not None:
            alive = np.column_stack([alive, living[bias : bias + out]])
        layers.append(Layer(start, out, inner, bias is not None, np.flatnonzero(alive.any(axis=1)), np.flatnonzero(alive.any(axis=0))))
    return layers


class Places:
    """Parameters → (layer, living row, living column) for entries; −1 where row or column is dead."""

    def __init__(self, layers):
        self._layers, self._starts = layers, starts_of([layer.n_params for layer in layers])
        self._row = [_inverse(layer.rows, layer.out) for layer in layers]
        self._column = [_inverse(layer.columns, layer.inner + 1) for layer in layers]

    def of(self, indices):
        """[(layer number, positions in `indices`, rows, columns), …] of the living ones, layer by layer."""
        indices = np.asarray(indices, np.int64)
        owner, found = np.searchsorted(self._starts, indices, side="right") - 1, []
        for number in np.unique(owner):
            layer, at = self._layers[number], np.flatnonzero(owner == number)
            local = indices[at] - layer.start
            is_bias = local >= layer.out * layer.inner
            neuron, column = np.divmod(local, layer.inner)
            neuron = np.where(is_bias, local - layer.out * layer.inner, neuron)
            row, column = self._row[number][neuron], self._column[number][np.where(is_bias, layer.inner, column)]
            alive = (row >= 0) & (column >= 0)
            found.append((int(number), at[alive], row[alive], column[alive]))
        return found


def _inverse(chosen, n):
    found = np.full(n, -1, np.int64)
    found[chosen] = np.arange(len(chosen))
    return found
