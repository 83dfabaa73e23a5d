"""Fisher matrices: the exact one, and the empirical one of outer products of gradients."""

import numpy as np

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.samples import Samples
from hpcHess.runtime.errors import InputError


class Fisher(GaussNewton):
    r"""The Fisher information of the model p(y | x, θ), mean over the samples' inputs or with weights w_i:

    .. math:: F = \sum_{i=1}^n w_i\, E_{y \sim p(y | x_i)} \big[ g_i(y) g_i(y)^T \big] = \sum_i w_i J_i^T F_i J_i \in R^{N \times N},
              \quad g_i(y) = -\nabla_\theta \log p(y | x_i) \in R^N, \quad F_i = -E\, \partial^2 \log p / \partial z_i^2 \in R^{d \times d}

    For cross-entropy y is a class drawn from softmax(z), F_i = diag(p) − ppᵀ: the Gauss–Newton matrix. For squared error y ~ N(z, I), unit
    variance, −log p = ‖z − y‖²/2 + const, F_i = I: half of the Gauss–Newton matrix of ‖z − y‖². Martens, JMLR 2020, §5 and §9.

    Arguments, errors and everything else as `GaussNewton`; targets are not needed.
    """

    @staticmethod
    def _samples(network, inputs, targets, weights, comm, dtype):
        if network.loss == "squared-error":
            weights = 0.5 * (np.full(len(inputs), 1 / len(inputs)) if weights is None else weights)
        return Samples(network, inputs, comm, dtype, weights)


class EmpiricalFisher(GaussNewton):
    r"""Outer products of the samples' gradients (OPG), the empirical Fisher matrix, mean over the samples or with weights w_i:

    .. math:: H = \sum_{i=1}^n w_i\, g_i g_i^T \in R^{N \times N}, \quad g_i = \nabla_\theta f(z_i, y_i) = J_i^T \delta_i \in R^N,
              \quad \delta_i = \partial f / \partial z_i \in R^d

    with δ = p − e_y for cross-entropy on logits and δ = 2 (z − y) for ‖z − y‖² (summed over outputs), y the targets given. Symmetric positive
    semidefinite of rank ≤ n. Martens, JMLR 2020, §11; Kunstner, Hennig, Balles, NeurIPS 2019.

    Arguments and errors as `GaussNewton`, but it needs the targets. A probe takes one random number a sample.
    """

    @staticmethod
    def _checked(network, inputs, targets):
        if targets is None:
            raise InputError("the empirical Fisher matrix needs the targets")
        return GaussNewton._checked(network, inputs, targets)

    @staticmethod
    def _samples(network, inputs, targets, weights, comm, dtype):
        return Samples(network, inputs, comm, dtype, weights, targets)
