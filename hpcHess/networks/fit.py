"""A network fitted by scikit-learn, for jobs that bring none."""

import warnings

import numpy as np

from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError

_ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic", "identity": "identity"}


def fit(inputs, targets, hidden, epochs=50, seed=0, activation="relu", loss="cross-entropy", output=None):
    """A Network with biases, fitted to inputs [n, width] and targets (labels [n], or [n, d] for squared-error). Not collective.

    activation and output are those that scikit-learn trains: relu, tanh, sigmoid, identity in all hidden layers, identity outputs.

    Adam with scikit-learn's defaults (batches of 200, L2 penalty 1e-4) for exactly `epochs` epochs; one thread, so that a seed
    determines the result. Cross-entropy: as many outputs as labels, which must be 0 … d − 1, all of them present; binary cross-entropy:
    targets [n, d] of 0 and 1. InputError: labels missing, diverged, scikit-learn not installed, what it does not fit.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InputError("fitting a network needs scikit-learn: pip install scikit-learn, or give network.weights") from None

    if not isinstance(activation, str) or activation not in _ACTIVATIONS or (output or "identity") != "identity":
        asked = f"activation = {activation}" if activation not in list(_ACTIVATIONS) else f"output = {output}"
        raise InputError(f"scikit-learn fits networks of one of {', '.join(_ACTIVATIONS)} with identity outputs, not {asked}: give network.weights")
    classify, binary = loss != "squared-error", loss == "binary-cross-entropy"
    if binary and not np.isin(targets, (0, 1)).all():
        raise InputError("scikit-learn fits binary-cross-entropy to targets 0 and 1 alone: give network.weights")
    if classify and not binary:
        _check_labels(targets)
    model = (MLPClassifier if classify else MLPRegressor)(
        hidden_layer_sizes=tuple(hidden),
        activation=_ACTIVATIONS[activation],
        max_iter=epochs,
        n_iter_no_change=epochs,  # no early end: epochs are what was asked for …
        tol=0.0,
        random_state=np.random.RandomState(np.random.MT19937(seed)),
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # … and no complaint about them
        try:
            model.fit(np.asarray(inputs, np.float64), targets if targets.ndim == 1 or targets.shape[1] > 1 else targets.ravel())
        except ValueError as error:
            raise InputError(f"the fit of the network failed: {error}") from None
    return _network(model, classify and not binary, activation, loss)


def _check_labels(labels):
    found = np.unique(labels)
    if len(found) < 2:
        raise InputError("the fit of the network needs samples of at least two labels")
    absent = np.setdiff1d(np.arange(found[-1] + 1), found)
    if found[0] < 0 or len(absent):
        shown = ", ".join(map(str, absent[:5])) if len(absent) else str(found[0])
        raise InputError(f"the fit of the network needs labels 0, 1, …, all present (wrong: {shown}): take more samples or relabel")


def _network(model, classify, activation, loss):
    """The Network of a scikit-learn model, which keeps its weights as [in, out].

    Two classes have one output there, p₁ = σ(z); the same probabilities are softmax([−z/2, z/2]).
    """
    weights = [np.ascontiguousarray(W.T) for W in model.coefs_]
    biases = list(model.intercepts_)
    if classify and len(weights[-1]) == 1:
        halves = np.array([-0.5, 0.5])
        weights[-1], biases[-1] = halves[:, None] * weights[-1], halves * biases[-1]
    return Network(weights, biases, activation, loss)
