"""The pre-activation kernel κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩, one vector over the samples for every pair of neurons."""

import numpy as np

from hpcHess.parallel.shared import HostArray

STORED_BYTES = 1 << 30  # of κ for all pairs, on one host
_NUMBERS = 1 << 22  # in the temporaries of making it


class Kernel:
    """κ for pairs of neurons of the chosen layers, numbered through all layers: stored once per host where all pairs fit in `most` bytes (STORED_BYTES),
    else made anew.

    stored   κ [s, s, n] or None; neuron p is its row and column `place[p]`

    Making it is collective over `comm`. Where both neurons' factors are shared by the samples (`Entries`), κ is not needed.
    """

    def __init__(self, samples, chosen, comm, most=None):
        self.samples, self._held, self.stored = samples, None, None
        most = STORED_BYTES if most is None else most
        neurons = np.concatenate([np.arange(*samples.neuron_starts[layer : layer + 2]) for layer in chosen])
        self.place = np.full(int(samples.neuron_starts[-1]), -1, np.int64)
        self.place[neurons] = np.arange(len(neurons))
        if all(C is None for C in samples.C) and samples.output is None or len(neurons) ** 2 * samples.n * samples.dtype.itemsize > most:
            return
        self._held = HostArray(comm, (len(neurons), len(neurons), samples.n), samples.dtype)
        share = self._held.share_of(samples.n)
        step = max(1, _NUMBERS // (len(neurons) * (len(neurons) + samples.rank)))
        for lo in range(share.start, share.stop, step):
            piece = slice(lo, min(share.stop, lo + step))
            self._held.array[:, :, piece] = self._products(neurons, piece)
        self._held.fence()
        self.stored = self._held.array

    def _products(self, neurons, piece):
        """κ of all pairs for some samples, [s, s, m]: ⟨C e_p, C e_p'⟩, and √p_p' v_p' or √q_p' v_p' for p' in a last layer without a stored C."""
        samples, C = self.samples, self.samples.columns(neurons, piece)
        last = np.searchsorted(neurons, samples.neuron_starts[-2]) if samples.C[-1] is None and samples.output is not None else len(neurons)
        result, F = np.empty((len(neurons), len(neurons), C.shape[2]), samples.dtype), C[:last].transpose(2, 0, 1)
        result[:last, :last] = np.matmul(F, F.transpose(0, 2, 1)).transpose(1, 2, 0)
        if last < len(neurons):
            result[:, last:] = C * np.sqrt(samples.output[:, piece])
            result[last:, :last] = result[:last, last:].transpose(1, 0, 2)
        return result

    def width(self, n_neurons):
        """Numbers a sample that `rows` holds for n neurons."""
        rank = max([1, *(C.shape[1] for C in self.samples.C if C is not None)])
        return n_neurons * (rank if self.stored is None else 1)

    def rows(self, neurons, piece):
        """An object whose `expand(p, side, out)` sets out [len, samples] to κ(p, p') for p' = side.neuron, `neurons` its different ones."""
        return _Stored(self.stored, self.place, piece) if self.stored is not None else _Made(self.samples, neurons, piece)

    def columns(self, neurons, piece):
        """C_i e_p of neurons (sorted) whose inner products are κ, [#neurons, r, samples]."""
        return self.samples.columns(neurons, piece)

    def close(self):
        """Free the host's memory. Collective."""
        self.stored = None
        if self._held is not None:
            self._held.close()


class _Stored:
    """Rows of the stored κ."""

    def __init__(self, kernel, place, piece):
        self._kernel, self._place = kernel[:, :, piece], place

    def expand(self, p, side, out):
        np.take(self._kernel[self._place[p]], self._place[side.neuron], axis=0, out=out, mode="clip")


class _Made:
    """Rows made from the factors of fixed neurons p' (sorted)."""

    def __init__(self, samples, neurons, piece):
        self.samples, self.piece = samples, piece
        self.values = np.empty((len(neurons), piece.stop - piece.start), samples.dtype)
        cuts = np.searchsorted(neurons, samples.neuron_starts)
        self.layers = []  # (layer, which rows of `values`, local neurons, their stored factors)
        for layer, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            if a < b:
                local, C = neurons[a:b] - samples.neuron_starts[layer], samples.C[layer]
                self.layers.append((layer, slice(a, b), local, None if C is None else C[local, :, piece]))

    def expand(self, p, side, out):
        np.take(self.row(p), side.of, axis=0, out=out, mode="clip")

    def row(self, p):
        """κ(p, p') [#p', samples]; overwritten by the next call."""
        samples, piece, column = self.samples, self.piece, self.samples.columns(np.array([p]), self.piece)[0]
        for layer, rows, local, C in self.layers:
            values = self.values[rows]
            if C is not None:
                np.einsum("en,pen->pn", column, C, out=values)
            elif samples.output is not None:  # of the last layer: √p_p' v_p' or √q_p' v_p'
                np.multiply(np.sqrt(samples.output[local, piece]), column[local], out=values)
            else:
                np.matmul(samples.M[layer][local].astype(samples.dtype), column, out=values)
                if layer < samples.n_layers - 1:
                    values *= samples.slope(layer)[local, piece]
        return self.values
