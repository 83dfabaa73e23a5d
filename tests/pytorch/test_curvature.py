"""Products of PyTorch modules' curvatures against dense matrices by automatic differentiation, for every kind, and what they are made from."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402

import hpcHess  # noqa: E402
from hpcHess.parallel.ownership import row_starts  # noqa: E402
from hpcHess.pytorch.curvature import TorchCurvature  # noqa: E402
from tests.curvature import networks  # noqa: E402
from tests.pytorch.modules import CASES, WEIGHTS, dense, make  # noqa: E402


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def whole(operator):
    return operator.matmat(np.eye(operator.n_params))


@pytest.mark.parametrize("kind", ["gauss-newton", "fisher", "opg", "hessian"])
@pytest.mark.parametrize("name", CASES)
def test_kinds(comm, name, kind):
    model, inputs, targets, loss = make(name)
    operator = TorchCurvature(model, loss, (inputs, targets), kind, comm)
    wanted = dense(model, inputs, targets, loss, kind)
    assert operator.shape == wanted.shape and relative(whole(operator), wanted) < 1e-11
    assert not operator._products.reverse
    assert operator.n_samples == len(inputs) and operator.quadrature is None and operator.full is operator
    np.testing.assert_array_equal(operator.alive, np.flatnonzero(np.abs(wanted).max(axis=1) > 1e-300))
    assert next(model.parameters()).dtype == torch.float32  # the user's module is as it was


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian", "opg"])
def test_reverse_sweeps_alone(comm, kind):
    """The way of modules without forward differentiation gives the same."""
    for name in ("cnn, classes", "attention, tied", "mlp, values"):
        model, inputs, targets, loss = make(name)
        operator = TorchCurvature(model, loss, (inputs, targets), kind, comm)
        batches = whole(operator)
        operator._products.reverse = True
        assert relative(whole(operator), batches) < 1e-12


def test_module_without_forward_differentiation(comm):
    """A function with a backward of its own takes the way of reverse sweeps by itself."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    class Own(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.a, self.b, self.own = nn.Linear(4, 3), nn.Linear(3, 2), own

        def forward(self, x):
            h = self.a(x)
            return self.b(Square.apply(h) if self.own else h * h)

    torch.manual_seed(0)
    model, plain = Own(True).eval(), Own(False).eval()
    plain.load_state_dict(model.state_dict())
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal((5, 2))
    for kind in ("gauss-newton", "hessian"):
        operator = TorchCurvature(model, "squared-error", (x, y), kind, comm)
        assert operator._products.reverse
        assert relative(whole(operator), dense(plain, x, y, "squared-error", kind)) < 1e-12


def test_weights_and_rows(comm):
    model, inputs, targets, loss = make("cnn, classes")
    for kind in ("gauss-newton", "hessian", "opg"):
        operator = TorchCurvature(model, loss, (torch.tensor(inputs), torch.tensor(targets)), kind, comm, weights=WEIGHTS)
        wanted = dense(model, inputs, targets, loss, kind, WEIGHTS)
        assert relative(whole(operator), wanted) < 1e-11
    V = np.random.default_rng(1).standard_normal((operator.n_params, 5))
    lo, hi = row_starts(operator.n_params, comm.size)[comm.rank :][:2]
    assert np.abs(operator.matmat_rows(V[lo:hi]) - (wanted @ V)[lo:hi]).max() < 1e-11 * np.abs(wanted @ V).max()
    assert np.abs(operator @ V[:, 0] - wanted @ V[:, 0]).max() < 1e-11 * np.abs(wanted @ V).max()


@pytest.mark.parametrize("name", ["classes, gelu, some biases", "binary, many outputs", "values, output sigmoid"])
def test_same_as_a_network(comm, name):
    """An MLP as a module: the numbers of the operators for networks, drawn labels too."""
    network, inputs, targets = networks.make(name)
    functions = {"gelu": nn.GELU(), "gelu-tanh": nn.GELU(approximate="tanh"), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "identity": nn.Identity()}
    layers = []
    for W, b, activation in zip(network.weights, network.biases, [*network.activations, network.output], strict=True):
        layer = nn.Linear(W.shape[1], W.shape[0], bias=b is not None).double()
        layer.weight.data = torch.tensor(W)
        if b is not None:
            layer.bias.data = torch.tensor(b)
        layers += [layer, functions[activation]]
    model, V = nn.Sequential(*layers).eval(), np.random.default_rng(0).standard_normal((network.n_params, 3))
    kinds = {
        "gauss-newton": hpcHess.GaussNewton(network, inputs, comm=comm),
        "fisher": hpcHess.Fisher(network, inputs, comm=comm),
        "opg": hpcHess.EmpiricalFisher(network, inputs, targets, comm=comm),
        "mc-fisher": hpcHess.MonteCarloFisher(network, inputs, comm=comm, draws=3, seed=5),
    }
    for kind, other in kinds.items():
        operator = TorchCurvature(model, network.loss, (inputs, targets if kind == "opg" else None), kind, comm, draws=3, seed=5)
        assert relative(operator @ V, other @ V) < 1e-12
        np.testing.assert_array_equal(operator.alive, other.alive)


def test_drawn_labels(comm):
    """Pixels' classes: each drawn by itself; the matrix of those labels; another seed, other labels."""
    model, inputs, targets, loss = make("pixels")
    operator = TorchCurvature(model, loss, (inputs, None), "mc-fisher", comm, draws=2, seed=4)
    labels = np.concatenate(comm.allgather(operator._products.targets[: operator._mine].numpy()))
    assert labels.shape == (5, 2, 3, 3) and set(np.unique(labels)) == {0, 1, 2}
    wanted = dense(model, inputs, targets, loss, "mc-fisher", labels=torch.tensor(labels))
    assert relative(whole(operator), wanted) < 1e-11
    assert relative(whole(TorchCurvature(model, loss, (inputs, None), "mc-fisher", comm, draws=2, seed=5)), wanted) > 0.01
    many = TorchCurvature(model, loss, (inputs, None), "mc-fisher", comm, draws=1000)
    assert relative(whole(many), dense(model, inputs, targets, loss, "fisher")) < 0.1


def test_chosen_parameters_and_names(comm):
    model, inputs, targets, loss = make("attention, tied")
    chosen = ["encoder.self_attn", "tokens.weight"]
    operator = TorchCurvature(model, loss, (inputs, targets), "hessian", comm, parameters=chosen)
    names = [name for name, _ in model.named_parameters() if name == "tokens.weight" or name.startswith("encoder.self_attn.")]
    assert operator.function.names == names and "out.weight" not in names
    assert relative(whole(operator), dense(model, inputs, targets, loss, "hessian", names=names)) < 1e-11
    v = np.arange(3.0 * operator.n_params).reshape(-1, 3)
    for each in (v, v[:, 0]):
        parts = operator.to_named(each)
        assert list(parts) == names and parts["tokens.weight"].shape == (5, 4, *each.shape[1:])
        np.testing.assert_array_equal(operator.from_named(dict(reversed(parts.items()))), each)
    theta = operator.from_named({name: each for name, each in model.named_parameters() if name in names})
    np.testing.assert_array_equal(theta, torch.nn.utils.parameters_to_vector([dict(model.named_parameters())[name] for name in names]).detach().numpy())
    with pytest.raises(hpcHess.InputError, match="tokens.weight must be"):
        operator.from_named(operator.to_named(v[:, 0]) | {"tokens.weight": np.zeros((4, 5))})
    with pytest.raises(hpcHess.InputError, match="tokens.weight is missing"):
        operator.from_named({})


def test_frozen_parameters_are_constants(comm):
    model, inputs, targets, loss = make("cnn, classes")
    for name, each in model.named_parameters():
        each.requires_grad_(name.startswith("4."))
    operator = TorchCurvature(model, loss, (inputs, targets), "hessian", comm)
    assert operator.function.names == ["4.weight", "4.bias"]
    assert relative(whole(operator), dense(model, inputs, targets, loss, "hessian")) < 1e-11


def test_snapshot_and_single_precision(comm):
    """Later changes of the module's parameters change nothing; float32 is float64 up to its rounding."""
    model, inputs, targets, loss = make("cnn, classes")
    wanted = dense(model, inputs, targets, loss, "gauss-newton")
    operator = TorchCurvature(model, loss, (inputs, targets), comm=comm, dtype=np.float32)
    model[8].weight.data.zero_()
    found = whole(operator)
    assert found.dtype == np.float32 and 1e-9 < relative(found, wanted) < 1e-5


def test_function_as_loss_and_data_set(comm):
    """A function of outputs and targets, a data set read by shares."""
    model, inputs, targets, _ = make("mlp, values")
    read = []

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(inputs)

        def __getitem__(self, i):
            read.append(i)
            return inputs[i], torch.tensor(targets[i])

    def loss(z, y):
        return torch.log1p((z - y).square().sum(dim=1)).mean()

    operator = TorchCurvature(model, loss, Pairs(), "hessian", comm, weights=WEIGHTS)
    assert len(set(read)) <= -(-len(inputs) // comm.size)
    import tests.pytorch.modules as modules

    original = modules.sample_loss
    try:
        modules.sample_loss = lambda _, z, y: loss(z[None], y[None])
        wanted = {kind: dense(model, inputs, targets, None, kind, WEIGHTS) for kind in ("hessian", "gauss-newton", "opg")}
    finally:
        modules.sample_loss = original
    assert relative(whole(operator), wanted["hessian"]) < 1e-11
    for kind in ("gauss-newton", "opg"):
        assert relative(whole(TorchCurvature(model, loss, (inputs, targets), kind, comm, weights=WEIGHTS)), wanted[kind]) < 1e-11


def test_more_ranks_than_samples(comm):
    model, inputs, targets, loss = make("cnn, classes")
    operator = TorchCurvature(model, loss, (inputs[:2], targets[:2]), comm=comm)
    assert relative(whole(operator), dense(model, inputs[:2], targets[:2], loss, "gauss-newton")) < 1e-11


def test_what_a_compressed_hessian_says(comm):
    """λ_min in its report, and no Nyström's method; semidefinite kinds have neither."""
    model, inputs, targets, loss = make("mlp, values")
    operator = TorchCurvature(model, loss, (inputs, targets), "hessian", comm)
    smallest = np.linalg.eigvalsh(dense(model, inputs, targets, loss, "hessian"))[0]
    assert smallest < -1e-3 and operator.indefinite
    report = hpcHess.compress(operator, rtol=1e-6, format="low-rank").report
    assert smallest - 1e-6 <= report["lambda_min"] <= 0.9 * smallest
    with pytest.raises(hpcHess.InputError, match="which the exact Hessian is not"):
        hpcHess.compress(operator, rtol=1e-6, format="low-rank", method="nystrom")
    semidefinite = TorchCurvature(model, loss, (inputs, targets), comm=comm)
    assert "lambda_min" not in hpcHess.compress(semidefinite, rtol=1e-6, format="low-rank", method="nystrom").report
