"""Fisher matrices: the exact one, and the empirical one of outer products of gradients."""

from numbers import Integral

import numpy as np
from mpi4py import MPI

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.samples import Samples
from hpcHess.networks.losses import LOSSES
from hpcHess.parallel.agree import together
from hpcHess.parallel.random import gaussian_rows, uniform_rows
from hpcHess.runtime.errors import InputError


class Fisher(GaussNewton):
    r"""The Fisher information of the model p(y | x, θ), mean over the samples' inputs or with weights w_i:

    .. math:: F = \sum_{i=1}^n w_i\, E_{y \sim p(y | x_i)} \big[ g_i(y) g_i(y)^T \big] = \sum_i w_i J_i^T F_i J_i \in R^{N \times N},
              \quad g_i(y) = -\nabla_\theta \log p(y | x_i) \in R^N, \quad F_i = -E\, \partial^2 \log p / \partial z_i^2 \in R^{d \times d}

    For cross-entropy y is a class drawn from softmax(z), F_i = diag(p) − ppᵀ: the Gauss–Newton matrix. For squared error y ~ N(z, I), unit
    variance, −log p = ‖z − y‖²/2 + const, F_i = I: half of the Gauss–Newton matrix of ‖z − y‖². For binary cross-entropy y_e ~ Bernoulli(σ(z_e)),
    independent: the Gauss–Newton matrix. Martens, JMLR 2020, §5 and §9.

    Arguments, errors and everything else as `GaussNewton`; targets are not needed.
    """

    def _samples(self, network, inputs, targets, weights, comm, dtype):
        if network.loss == "squared-error":
            weights = 0.5 * (np.full(len(inputs), 1 / len(inputs)) if weights is None else weights)
        return Samples(network, inputs, comm, dtype, weights)


class EmpiricalFisher(GaussNewton):
    r"""Outer products of the samples' gradients (OPG), the empirical Fisher matrix, mean over the samples or with weights w_i:

    .. math:: H = \sum_{i=1}^n w_i\, g_i g_i^T \in R^{N \times N}, \quad g_i = \nabla_\theta f(z_i, y_i) = J_i^T \delta_i \in R^N,
              \quad \delta_i = \partial f / \partial z_i \in R^d

    with δ = p − e_y for cross-entropy on logits, δ = σ(z) − y for binary cross-entropy on logits and δ = 2 (z − y) for ‖z − y‖² (both summed
    over outputs), y the targets given. Symmetric positive semidefinite of rank ≤ n. Martens, JMLR 2020, §11; Kunstner, Hennig, Balles, NeurIPS 2019.

    Arguments and errors as `GaussNewton`, but it needs the targets. A probe takes one random number a sample.
    """

    @staticmethod
    def _checked(network, inputs, targets):
        if targets is None:
            raise InputError("the empirical Fisher matrix needs the targets")
        return GaussNewton._checked(network, inputs, targets)

    def _samples(self, network, inputs, targets, weights, comm, dtype):
        return Samples(network, inputs, comm, dtype, weights, targets)


class MonteCarloFisher(EmpiricalFisher):
    r"""The Fisher matrix with labels drawn from the model, m of them for each sample, mean over the samples or with weights w_i:

    .. math:: F = \sum_{i=1}^n \frac{w_i}{m} \sum_{s=1}^m g_{is} g_{is}^T \in R^{N \times N}, \quad g_{is} = -\nabla_\theta \log p(y_{is} | x_i),
              \quad y_{is} \sim p(y | x_i)

    independent of each other: E F is the Fisher matrix (`Fisher`), the rank at most n m. y is a class from softmax(z), for binary cross-entropy 0 or 1
    with the probabilities σ(z), for squared error z + N(0, I) with −log p = ‖z − y‖²/2 + const. Martens, JMLR 2020, §5; Kunstner, Hennig,
    Balles, NeurIPS 2019, §2.

    draws    m; the operator has n m samples, those of one sample next to each other
    seed     of the draws, which depend on it and on the sample's number alone

    Other arguments, and errors, as `GaussNewton`; targets are not needed.
    """

    def __init__(self, network, inputs, targets=None, weights=None, comm=MPI.COMM_WORLD, dtype=np.float64, backend="auto", draws=1, seed=0):
        with together(comm):
            for name, value, least in (("draws", draws, 1), ("seed", seed, 0)):
                if not isinstance(value, Integral) or value < least:
                    raise InputError(f"{name} must be an integer of at least {least}, not {value!r}")
        self.draws, self.seed = int(draws), int(seed)
        super().__init__(network, inputs, targets, weights, comm, dtype, backend)

    @staticmethod
    def _checked(network, inputs, targets):
        return GaussNewton._checked(network, inputs, targets)

    def _samples(self, network, inputs, targets, weights, comm, dtype):
        inputs = _Repeated(inputs, self.draws)
        scale = 0.25 if network.loss == "squared-error" else 1.0  # its gradient is 2 (z − y), that of −log p half of it
        if weights is not None or scale != 1:
            weights = np.full(len(inputs) // self.draws, self.draws / len(inputs)) if weights is None else weights
            weights = np.repeat(scale / self.draws * weights, self.draws)
        return Samples(network, inputs, comm, dtype, weights, lambda z, rows: self._drawn(network.loss, z, rows))

    def _drawn(self, loss, z, rows):
        """Targets of a slice of the samples for their outputs z [d, m]."""
        if loss == "squared-error":
            noise = gaussian_rows(self.seed, "labels", rows.start, rows.stop, range(len(z)), np.float64)
            return z.T + noise
        columns = 1 if loss == "cross-entropy" else len(z)
        uniform = uniform_rows(self.seed, "labels", rows.start, rows.stop, range(columns))
        return LOSSES[loss].draw(z, uniform[:, 0] if loss == "cross-entropy" else uniform)


class _Repeated:
    """Each row of an array so many times, made where a slice is read: no rank holds them all."""

    def __init__(self, array, times):
        self._array, self._times = array, times

    def __len__(self):
        return len(self._array) * self._times

    def __getitem__(self, rows):
        return self._array[np.arange(rows.start, rows.stop) // self._times]
