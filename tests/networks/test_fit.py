"""Fitted networks: the same function as scikit-learn's model, the same network for a seed."""

import warnings

import numpy as np
import pytest

from hpcHess.networks.fit import fit
from hpcHess.runtime.errors import InputError

sklearn = pytest.importorskip("sklearn")

ACTIVATIONS = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh, "sigmoid": lambda a: 1 / (1 + np.exp(-a))}


def outputs(network, X):
    """z for the samples X, computed here."""
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        X = X @ W.T + b
        if layer < network.n_layers - 1:
            X = ACTIVATIONS[network.activation](X)
    return X


def probabilities(network, X):
    z = outputs(network, X)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def scikit_learn(model, X, Y, hidden, epochs, seed, activation):
    """The model that `fit` must have fitted."""
    model = model(
        hidden_layer_sizes=hidden,
        activation={"sigmoid": "logistic"}.get(activation, activation),
        max_iter=epochs,
        n_iter_no_change=epochs,
        tol=0,
        random_state=np.random.RandomState(np.random.MT19937(seed)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, Y)


def samples(n=60, width=5, classes=3):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, width))
    return X, np.arange(n) % classes


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classifier_gives_scikit_learns_probabilities(activation, classes):
    from sklearn.neural_network import MLPClassifier

    X, labels = samples(classes=classes)
    network = fit(X, labels, [4, 3], epochs=7, seed=5, activation=activation)
    assert network.widths == [5, 4, 3, classes]
    model = scikit_learn(MLPClassifier, X, labels, (4, 3), 7, 5, activation)
    assert model.n_iter_ == 7
    np.testing.assert_allclose(probabilities(network, X), model.predict_proba(X), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("width", [1, 2])
def test_regressor_gives_scikit_learns_values(width):
    from sklearn.neural_network import MLPRegressor

    X, _ = samples()
    Y = np.sin(X[:, :width])
    network = fit(X, Y, [6], epochs=9, seed=1, activation="tanh", loss="squared-error")
    model = scikit_learn(MLPRegressor, X, Y if width > 1 else Y.ravel(), (6,), 9, 1, "tanh")
    np.testing.assert_allclose(outputs(network, X), model.predict(X).reshape(-1, width), rtol=1e-10)


def test_autoencoder():
    X, _ = samples()
    network = fit(X.astype(np.float32), X.astype(np.float32), [2], epochs=3, loss="squared-error")
    assert network.widths == [5, 2, 5] and network.loss == "squared-error"


def test_no_hidden_layer():
    X, labels = samples()
    assert fit(X, labels, [], epochs=3).widths == [5, 3]


def test_seed_decides():
    X, labels = samples()
    first = fit(X, labels, [4], epochs=3, seed=0).digest()
    assert fit(X, labels, [4], epochs=3, seed=0).digest() == first
    assert fit(X, labels, [4], epochs=3, seed=2**63 - 1).digest() != first


def test_fitting_reduces_the_loss():
    X, _ = samples()
    labels = (X[:, 0] > 0).astype(int)
    losses = [-np.log(probabilities(fit(X, labels, [8], epochs=epochs), X)[np.arange(len(X)), labels]).mean() for epochs in (1, 200)]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros(60, int), "at least two labels"),
        (np.arange(60) % 3 + 1, r"all present \(wrong: 0\)"),
        (np.arange(60) % 2 * 7, r"all present \(wrong: 1, 2, 3, 4, 5\)"),
        (np.arange(60) % 3 - 1, r"wrong: -1"),
    ],
)
def test_labels_that_scikit_learn_would_renumber(labels, message):
    X, _ = samples()
    with pytest.raises(InputError, match=message):
        fit(X, labels, [4])


def test_divergence_is_an_input_error():
    X, _ = samples()
    with pytest.raises(InputError, match="the fit of the network failed"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fit(1e200 * X, 1e200 * X, [4], loss="squared-error")
