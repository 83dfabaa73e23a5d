"""The pre-activation kernel κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩, one vector over the samples for every pair of neurons."""

import numpy as np

from hpcHess.parallel.shared import HostArray

STORED_BYTES = 1 << 30  # of κ for all pairs, on one host


class Kernel:
    """κ for pairs of neurons, numbered through all layers: stored once per host where all pairs fit in `most` bytes (STORED_BYTES), else made anew.

    Making it is collective over `comm`. Where both neurons' factors are shared by the samples (`Entries`), κ is not needed.
    """

    def __init__(self, samples, comm, most=None):
        most = STORED_BYTES if most is None else most
        self.samples, self._held, self.stored = samples, None, None
        count = int(samples.neuron_starts[-1])
        if all(C is None for C in samples.C) and samples.output is None or count**2 * samples.n * samples.dtype.itemsize > most:
            return
        self._held = HostArray(comm, (count, count, samples.n), samples.dtype)
        share, every = self._held.share_of(samples.n), np.arange(count)
        step = max(1, (1 << 17) // self.width(count))
        for lo in range(share.start, share.stop, step):
            piece = slice(lo, min(share.stop, lo + step))
            rows = self.rows(every, piece)
            for p in every:
                self._held.array[p, :, piece] = rows.row(p)
        self._held.fence()
        self.stored = self._held.array

    def width(self, n_neurons):
        """Numbers a sample that `rows` holds for n neurons."""
        rank = max([1, *(C.shape[1] for C in self.samples.C if C is not None)])
        return n_neurons * (rank if self.stored is None else 1)

    def rows(self, neurons, piece):
        """An object whose `expand(p, side, out)` sets out [len, samples] to κ(p, p') for p' = side.neuron, `neurons` its different ones."""
        return _Stored(self.stored, piece) if self.stored is not None else _Made(self.samples, neurons, piece)

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

    def __init__(self, kernel, piece):
        self._kernel = kernel[:, :, piece]

    def expand(self, p, side, out):
        np.take(self._kernel[p], side.neuron, axis=0, out=out, mode="clip")


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
