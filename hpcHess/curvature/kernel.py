"""The pre-activation kernel κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩, one vector over the samples for every pair of neurons."""

import numpy as np

from hpcHess.parallel.shared import HostArray

STORED_BYTES = 1 << 27  # of κ for all pairs, on one host
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

    def close(self):
        """Free the host's memory. Collective."""
        self.stored = None
        if self._held is not None:
            self._held.close()
