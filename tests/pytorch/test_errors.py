"""What a PyTorch curvature refuses, on all ranks, in one line; names of factories; the bound of its memory."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402

from hpcHess import InputError  # noqa: E402
from hpcHess.parallel.ownership import row_starts  # noqa: E402
from hpcHess.pytorch.curvature import TorchCurvature  # noqa: E402
from hpcHess.pytorch.factory import call_factory  # noqa: E402
from tests.pytorch.modules import make  # noqa: E402

X, LABELS = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 1, 1, 0])


class Noisy(nn.Module):
    """Dropout that no mode turns off."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x):
        return nn.functional.dropout(self.a(x), 0.5)


def linear(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), *more).eval()


class Centred(nn.Module):
    """Outputs minus their mean over the batch."""

    def forward(self, z):
        return z - z.mean(dim=0)


class Leaks(nn.Module):
    """Outputs plus `part` of the batch's first sample's, of which no derivative knows."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, z):
        return z + self.part * z[:1].detach()


class Last(nn.Module):
    """Outputs, those of the batch's last sample doubled where there are others."""

    def forward(self, z):
        return torch.cat([z[:-1], z[-1:] * (1 + (len(z) > 1))])


class Steps(nn.Module):
    """All outputs of a recurrent module, to which the first dimension is time."""

    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(3, 4)

    def forward(self, x):
        return self.inner(x)[0]


class Items(torch.utils.data.Dataset):
    """A data set of the pairs of a list."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


def heavier(more):
    """Cross-entropy in which class 2 counts 1 + `more`, over the sum of the weights."""

    def loss(z, y):
        w = 1 + more * (y == 2)
        return (w * nn.functional.cross_entropy(z, y, reduction="none")).sum() / w.sum()

    return loss


def classes(labels):
    """A linear module of three classes, and samples of those labels."""
    torch.manual_seed(0)
    return {"model": nn.Linear(3, 3).eval(), "data": (np.random.default_rng(1).standard_normal((len(labels), 3)), np.array(labels))}


REFUSED = {  # what is changed in TorchCurvature(linear(), "cross-entropy", (X, LABELS)), and a part of the line
    "no module": ({"model": 3}, "torch.nn.Module, not int"),
    "dropout in training mode": ({"model": nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))}, r"1 (Dropout) is in training mode: call model.eval()"),
    "statistics in training mode": ({"model": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))}, "call model.eval()"),
    "statistics of the batch": ({"model": linear(Centred())}, "other outputs in a batch than alone"),
    "the first sample in all": ({"model": linear(Leaks(0.5))}, "other outputs in a batch than alone"),
    "the first sample, a little": ({"model": linear(Leaks(1e-9))}, "other outputs in a batch than alone"),
    "in single precision": ({"model": linear(Leaks(1e-2)), "dtype": np.float32}, "other outputs in a batch than alone"),
    "a sample a rank": ({"model": linear(Leaks(0.5)), "data": (X[:3], LABELS[:3])}, "other outputs in a batch than alone"),
    "without targets": ({"model": linear(Leaks(0.5)), "kind": "fisher", "data": (X, None)}, "other outputs in a batch than alone"),
    "samples as time": (
        {"model": Steps().eval(), "loss": "squared-error", "data": (np.ones((40, 5, 3)), np.zeros((40, 5, 4)))},
        "make the samples the first dimension (batch_first=True)",
    ),
    "the last sample alone": ({"model": linear(Last()), "data": (np.ones((40, 3)), [0] * 40)}, "other outputs in a batch than alone"),
    "noise": ({"model": Noisy().eval()}, "other outputs in a batch than alone"),
    "inputs of another width": ({"data": (X[:, :2], LABELS)}, "the module fails on inputs that are float64 of shape ["),
    "no tensor": ({"model": nn.LSTM(3, 2)}, "wrap it"),
    "unknown loss": ({"loss": "hinge"}, "loss must be cross-entropy"),
    "a sum": ({"loss": nn.CrossEntropyLoss(reduction="sum")}, 'use reduction="mean"'),
    "class weights": ({"loss": nn.CrossEntropyLoss(weight=torch.ones(2))}, "use weights=w[labels]"),
    "a sum in a function": ({"loss": lambda z, y: nn.functional.cross_entropy(z, y, reduction="sum")}, "is no mean over the samples"),
    "weights of classes, one of them late": ({"loss": heavier(1), **classes([0, 0, 0, 0, 0, 2, 1, 2])}, "is no mean over the samples"),
    "weights of classes, a little": ({"loss": heavier(1e-6), **classes([0, 0, 0, 0, 0, 2, 1, 2])}, "is no mean over the samples"),
    "weights of classes, hidden": ({"loss": heavier(1), **classes([0] * 25 + [2] + [1] * 34)}, "is no mean over the samples"),
    "a class a rank": ({"loss": heavier(1), **classes([0] * 4 + [1] * 4 + [2] * 4)}, "is no mean over the samples"),
    "a loss that fails": ({"loss": lambda z, y: z @ y}, "<lambda> fails on outputs ["),
    "labels out of range": ({"data": (X, np.array([0, 1, 1, 7]))}, "label 7 of sample 3 (counted from 0) is out of range, the module has 2 classes"),
    "labels that are numbers": ({"data": (X, X[:, :2])}, "needs integer labels [n]"),
    "values of another shape": ({"loss": "squared-error", "data": (X, X)}, "outputs are [2] a sample, the targets [3]"),
    "probabilities": ({"loss": "binary-cross-entropy", "data": (X, 2 + abs(X[:, :2]))}, "needs targets in 0 … 1"),
    "other numbers of samples": ({"data": (X, LABELS[:3])}, "there are 4 inputs and 3 targets"),
    "no targets": ({"kind": "opg", "data": (X, None)}, "needs the targets"),
    "not finite": ({"data": (np.where(np.arange(12).reshape(4, 3) == 7, np.nan, X), LABELS)}, "inputs: sample 2 (counted from 0) is not finite"),
    "kind": ({"kind": "newton"}, "kind must be gauss-newton"),
    "likelihood": ({"kind": "fisher", "loss": lambda z, y: z.square().mean()}, "needs a loss that is −log p"),
    "parameters": ({"parameters": ["0.wieght"]}, "did you mean 0.weight?"),
    "negative weights": ({"weights": [1, 1, 1, -1]}, "weights must be finite"),
    "memory": ({"memory": 64}, "are not enough for one sample and one vector"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(comm, name):
    changed, line = REFUSED[name]
    arguments = {"model": linear(), "loss": "cross-entropy", "data": (X, LABELS), "comm": comm} | changed
    with pytest.raises(InputError) as caught:
        TorchCurvature(**arguments)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_frozen_parameters_are_named(comm):
    model = linear()
    model[0].bias.requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        TorchCurvature(model, "cross-entropy", (X, LABELS), comm=comm, parameters="0.bias")


def test_not_finite_on_one_rank(comm):
    """Only the last sample overflows: all ranks refuse, when it is made and in a later product."""
    inputs = np.vstack([X[:, :1]] * 4)
    inputs[-1] = 1e200
    with pytest.raises(InputError, match="not finite"):
        TorchCurvature(nn.Sequential(nn.Linear(1, 2)).eval(), "squared-error", (inputs, np.zeros((16, 2))), comm=comm)
    operator = TorchCurvature(linear(), "cross-entropy", (X, LABELS), comm=comm)
    if comm.rank == comm.size - 1:
        operator._products.weights[-1] = np.nan
    for product in (operator.matmat, lambda V: operator.matmat_rows(V[operator.mine])):
        with pytest.raises(InputError, match="products are not finite in float64"):
            product(np.ones((operator.n_params, 2)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vectors_that_are_not_finite(comm, wrong):
    """One number of the last rank's rows: all ranks say that it is the vectors."""
    operator = TorchCurvature(linear(), "cross-entropy", (X, LABELS), comm=comm)
    V = np.ones((operator.n_params, 2))
    V[-1, 1] = wrong
    for product in (operator.matmat, lambda V: operator.matmat_rows(V[operator.mine])):
        with pytest.raises(InputError, match="the vectors to be multiplied are not finite"):
            product(V)


def test_items_of_other_shapes_on_other_ranks(comm):
    if comm.size == 1:
        pytest.skip("one rank")
    items = [(np.ones(3 if i < row_starts(6, comm.size)[1] else 4), 0) for i in range(6)]
    with pytest.raises(InputError, match="the items of the data set have different shapes"):
        TorchCurvature(linear(), "cross-entropy", Items(items), comm=comm)


def test_accepted_whatever_the_order(comm):
    """Modules and losses that are what they should be, on sorted labels and constant inputs, in both precisions."""
    more = classes([0] * 20 + [1] * 20 + [2] * 20)
    for dtype in (np.float32, np.float64):
        for loss in ("cross-entropy", nn.CrossEntropyLoss(), heavier(0), nn.CrossEntropyLoss(label_smoothing=0.1)):
            assert TorchCurvature(loss=loss, comm=comm, dtype=dtype, **more).n_samples == 60
        model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 3)))).eval()
        assert TorchCurvature(model, "cross-entropy", more["data"], comm=comm, dtype=dtype).n_samples == 60


def test_other_modules_on_other_ranks(comm):
    if comm.size == 1:
        pytest.skip("one rank")
    torch.manual_seed(comm.rank)
    with pytest.raises(InputError, match="the ranks' modules' parameters differ"):
        TorchCurvature(nn.Linear(3, 2).eval(), "cross-entropy", (X, LABELS), comm=comm)


def test_factories(shared_tmp, comm):
    if comm.rank == 0:
        (shared_tmp / "made_here.py").write_text(
            "import torch\ndef model(): return torch.nn.Linear(3, 2)\ndef all(): return model(), torch.zeros(4, 3), [0, 1, 1, 0], torch.nn.CrossEntropyLoss()\n"
            "def fails(): raise ValueError('no weights\\nhere')\ndef other(): return 3\ndef leaves(): raise SystemExit(0)\n"
        )
        (shared_tmp / "exits_here.py").write_text("raise SystemExit(0)\n")
    comm.Barrier()
    model, inputs, targets, loss = call_factory("made_here:model", shared_tmp)
    assert isinstance(model, nn.Linear) and inputs is None and targets is None and loss is None
    model, inputs, targets, loss = call_factory("made_here:all", shared_tmp)
    assert inputs.shape == (4, 3) and targets.tolist() == [0, 1, 1, 0] and isinstance(loss, nn.CrossEntropyLoss)
    for name, line in (
        ("made_here", "must be package.module:factory"),
        ("not_made_here:model", "cannot import not_made_here:model: ModuleNotFoundError"),
        ("made_here:none", "cannot import made_here:none: AttributeError"),
        ("made_here:fails", "made_here:fails() failed: ValueError: no weights"),
        ("made_here:leaves", "made_here:leaves() failed: SystemExit: 0"),
        ("exits_here:model", "cannot import exits_here:model: SystemExit: 0"),
        ("made_here:other", "must return a module"),
        ("made_here:torch", "is no function"),
    ):
        with pytest.raises(InputError, match=re.escape(line)):
            call_factory(name, shared_tmp)


def test_tiles_do_not_change_products(comm):
    """Any memory gives the same product; the least one is refused above."""
    model, inputs, targets, loss = make("cnn, classes")
    operator = TorchCurvature(model, loss, (inputs, targets), "hessian", comm)
    V = np.random.default_rng(0).standard_normal((operator.n_params, 7))
    wanted, tiles = operator @ V, set()
    for memory in (25_000, 60_000, 150_000, 1 << 30):
        operator._products.memory = memory
        tiles.add(operator._products.tile(7))
        assert np.abs(operator @ V - wanted).max() < 1e-13 * np.abs(wanted).max()
    assert len(tiles) > 2 and (1, 1) in tiles


@pytest.mark.parametrize("case", ["wide", "many draws", "many real draws"])
def test_memory_is_bounded(comm, case):
    """Products whose intermediates would take 300 to 700 MB at once take no more than their bound, roughly, as the peak of the resident memory shows;
    drawing many labels of many classes too."""
    if comm.size > 1:
        pytest.skip("one rank measures")
    try:
        open("/proc/self/clear_refs", "w").close()
    except OSError:
        pytest.skip("the peak of the resident memory cannot be reset here")

    def resident(key):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

    def peak(function):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = resident("VmRSS")
        function()
        return resident("VmHWM") - before

    torch.manual_seed(0)
    bound, n, made = (48 if case == "wide" else 16) << 20, 300 if case == "wide" else 120, []
    if case == "wide":
        model = nn.Sequential(nn.Linear(4, 20_000), nn.Tanh(), nn.Linear(20_000, 1, bias=False)).eval()
        for each in (model[0].weight, model[0].bias):
            each.requires_grad_(False)
        build = lambda n: TorchCurvature(model, "squared-error", (np.ones((n, 4)), np.ones((n, 1))), comm=comm, memory=bound)  # noqa: E731
    else:
        model = nn.Linear(5, 1000).eval()
        loss = "cross-entropy" if case == "many draws" else "squared-error"
        build = lambda n: TorchCurvature(model, loss, (np.ones((n, 5)), None), "mc-fisher", comm, memory=bound, draws=50)  # noqa: E731
    build(2)
    labels = n * 50 * 1000 * 8 if case == "many real draws" else 0
    assert peak(lambda: made.append(build(n))) < 2.5 * bound + labels
    V = np.ones((made[0].n_params, 8))
    made[0] @ V
    assert peak(lambda: made[0] @ V) < 1.5 * bound
