"""Small PyTorch modules of all sorts with their data, and the dense oracle of their curvatures: a Jacobian and a Hessian a sample, float64."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402
from torch.autograd.functional import hessian, jacobian  # noqa: E402  reverse sweeps one by one: torch.func's are wrong for layer_norm's Hessian
from torch.func import functional_call  # noqa: E402
from torch.nn import functional  # noqa: E402

N_SAMPLES = 5
WEIGHTS = np.array([0.3, 0, 2, 0.125, 5])


class Attention(nn.Module):
    """Tokens → embedding → a transformer's encoder layer → classes; the embedding is used twice (tied)."""

    def __init__(self):
        super().__init__()
        self.tokens, self.encoder = nn.Embedding(5, 4), nn.TransformerEncoderLayer(4, 2, 2, dropout=0.1, batch_first=True, activation="gelu")
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, x):
        return self.out(self.encoder(self.tokens(x)).mean(dim=1))


class Product(nn.Module):
    """Attention by `scaled_dot_product_attention`."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return self.out(functional.scaled_dot_product_attention(q, k, v)[:, 0].mean(dim=1))


def cnn():
    """Images → convolutions, batch statistics of the past, pooling → 3 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 3)
    )


def segmenter():
    """Images → a class for each of 3 × 3 pixels."""
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.SiLU(), nn.Conv2d(2, 3, 3))


CASES = {  # module, shape of a sample (None: tokens), loss, targets of a sample: a number of classes, or the shape of real ones
    "cnn, classes": (cnn, (1, 8, 8), "cross-entropy", 3),
    "attention, tied": (Attention, None, nn.CrossEntropyLoss(), 5),
    "dot products": (Product, (3, 4), "cross-entropy", 3),
    "recurrent, values": (lambda: Last(nn.LSTM(3, 2, batch_first=True)), (4, 3), nn.MSELoss(), (2,)),
    "pixels": (segmenter, (1, 6, 6), nn.CrossEntropyLoss(), (3, 3, 3)),
    "mlp, binary": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (4,), "binary-cross-entropy", 0.5),
    "mlp, values": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 4)), (4,), "squared-error", (4,)),
}


class Last(nn.Module):
    """The last output of a recurrent module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0][:, -1]


def make(name):
    """(module in float32 and eval mode, inputs [5, …], targets, loss) of a case, as NumPy arrays; the same on all ranks."""
    build, shape, loss, target = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    rng = np.random.default_rng(3)
    model = build().eval()
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
    inputs = rng.integers(0, 5, (N_SAMPLES, 3)) if shape is None else rng.standard_normal((N_SAMPLES, *shape))
    if isinstance(target, int):
        targets = rng.integers(0, target, N_SAMPLES)
    elif isinstance(target, float):
        targets = rng.random((N_SAMPLES, 2)).round(1)
    elif len(target) == 3:
        targets = rng.integers(0, 3, (N_SAMPLES, *target[1:]))
    else:
        targets = rng.standard_normal((N_SAMPLES, *target))
    return model, inputs, targets, loss


def sample_loss(loss, z, y):
    """ℓ(z, y) of one sample, from the definitions of docs/TORCH.md."""
    if loss == "cross-entropy" or isinstance(loss, nn.CrossEntropyLoss):
        return functional.cross_entropy(z[None], y[None])
    if loss == "binary-cross-entropy":
        return -(y * functional.logsigmoid(z) + (1 - y) * functional.logsigmoid(-z)).sum()
    return (z - y).square().mean() if isinstance(loss, nn.MSELoss) else (z - y).square().sum()


def likelihood(loss, z, y):
    """−log p(y | z) of one sample."""
    if loss == "cross-entropy" or isinstance(loss, nn.CrossEntropyLoss):
        return functional.cross_entropy(z[None], y[None], reduction="sum")
    return sample_loss(loss, z, y) if loss == "binary-cross-entropy" else (z - y).square().sum() / 2


def dense(model, inputs, targets, loss, kind, weights=None, names=None, labels=None):
    """H [N, N] float64. `labels` [n, m, …] those of mc-fisher."""
    model = copy.deepcopy(model).double()
    names = [name for name, each in model.named_parameters() if each.requires_grad] if names is None else names
    named = {name: each.detach() for name, each in model.named_parameters()}
    shapes = [named[name].shape for name in names]
    theta = torch.cat([named[name].reshape(-1) for name in names])
    weights = np.full(len(inputs), 1 / len(inputs)) if weights is None else weights

    def outputs(theta, x):
        parts = theta.split([shape.numel() for shape in shapes])
        chosen = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return functional_call(model, {**named, **chosen}, (x[None],))[0]

    H = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for i, w in enumerate(weights):
            x, y = torch.as_tensor(inputs[i]), torch.as_tensor(targets[i])
            x = x if x.dtype == torch.int64 else x.double()
            if kind == "hessian":
                H += w * hessian(lambda t, x=x, y=y: sample_loss(loss, outputs(t, x), y), theta)
                continue
            z = outputs(theta, x)
            J = jacobian(lambda t, x=x: outputs(t, x), theta).reshape(z.numel(), -1)
            for f, y in [(sample_loss, y)] if labels is None else [(likelihood, each) for each in labels[i]]:
                f = likelihood if kind == "fisher" else f
                if kind in ("opg", "mc-fisher"):
                    delta = jacobian(lambda u, f=f, y=y: f(loss, u, y), z).reshape(-1)
                    Q = torch.outer(delta, delta)
                else:
                    Q = hessian(lambda u, f=f, y=y: f(loss, u, y), z).reshape(z.numel(), -1)
                H += w / (1 if labels is None else len(labels[i])) * J.T @ Q @ J
    return H.detach().numpy()
