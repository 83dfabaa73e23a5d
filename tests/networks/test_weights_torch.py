"""Files of torch.save: state_dicts, checkpoints, what is never unpickled, and a job of one."""

import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from hpcHess.networks.activations import activation  # noqa: E402
from hpcHess.networks.weights import read_network  # noqa: E402
from hpcHess.runtime.errors import InputError  # noqa: E402
from tests.drivers.drive import dense, drive, ok, on_root, relative, small_arrays, write_job  # noqa: E402


class Module(torch.nn.Module):
    """Names that are not in the order of the alphabet."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 4)
        self.between = torch.nn.Linear(4, 4, bias=False)
        self.also = torch.nn.Linear(4, 6)

    def forward(self, x):
        return self.also(torch.tanh(self.between(torch.tanh(self.first(x)))))


def module():
    torch.manual_seed(0)
    return Module().double()


def forward(network, x):
    """The outputs for samples in rows."""
    for W, b, name in zip(network.weights, network.biases, [*network.activations, network.output], strict=True):
        x = activation(name)(x @ W.T + (0 if b is None else b))[0]
    return x


def check(path, net=None, tolerance=1e-14, **read):
    x = np.random.default_rng(0).standard_normal((7, 6))
    network = read_network(path, "tanh", "squared-error", **read)
    with torch.no_grad():
        assert relative(forward(network, x), (net or module())(torch.from_numpy(x)).numpy()) < tolerance
    parameters = torch.nn.utils.parameters_to_vector((net or module()).parameters()).detach().numpy()
    assert relative(network.parameters(), parameters) < max(tolerance, 1e-16)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PT"])
def test_same_outputs(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    torch.save(module().state_dict(), path)
    check(path)


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_checkpoints(tmp_path, name):
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}
    torch.save({"epoch": 3, name: module().state_dict(), "optimizer_state_dict": optimizer, "loss": 0.5}, tmp_path / "last.pt")
    check(tmp_path / "last.pt")


def test_prefixes_and_old_format(tmp_path):
    """DataParallel under torch.compile; the file format before PyTorch 1.6."""
    state = OrderedDict((f"_orig_mod.module.{key}", each) for key, each in module().state_dict().items())
    torch.save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    check(tmp_path / "net.pt")


def test_tensors_that_share_memory_or_are_views(tmp_path):
    state = module().state_dict()
    state["between.weight"] = state["between.weight"].T.contiguous().T  # column-major
    torch.save(state, tmp_path / "net.pt")
    check(tmp_path / "net.pt")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_types(tmp_path, dtype, tolerance):
    torch.save({key: each.to(dtype) for key, each in module().state_dict().items()}, tmp_path / "net.pt")
    check(tmp_path / "net.pt", tolerance=tolerance)
    rounded = module().to(dtype).double()
    check(tmp_path / "net.pt", rounded)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


class Model(torch.nn.Module):
    """A module that a file may hold as a whole."""


@pytest.mark.parametrize("content, found", [(Trap(), "Fail"), ({"0.weight": Trap()}, "Fail"), (Model(), "Model"), (torch.nn.Linear(2, 2), "Linear")])
def test_objects_are_never_unpickled(tmp_path, content, found):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(
        InputError, match=rf"net.pt: it holds Python objects \(.*{found}\); nothing is ever unpickled: save model.state_dict"
    ) as caught:
        read_network(tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
    (tmp_path / "net.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="net.pt: "):
        read_network(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.ones(3), "holds Tensor, no dictionary of tensors"),
        ([torch.ones(2, 2)], "holds list, no dictionary"),
        ({}, "holds dict, no dictionary"),
        ({3: torch.ones(2, 2)}, "odd key 3"),
        ({"0.weight": torch.ones(2, 2), "lr": 0.1}, "lr is float, no tensor"),
        ({"0.weight": torch.ones(1).expand(1 << 20, 1 << 20)}, "0.weight is no plain dense tensor"),
        ({"0.weight": torch.eye(2).to_sparse()}, "0.weight is no plain dense tensor"),
        ({"0.weight": torch.ones(2, 2, dtype=torch.complex64)}, "0.weight holds complex64, not real"),
        ({"0.weight": torch.full((2, 2), float("nan"))}, r"0.weight is not finite: nan at \[0, 0\]"),
        ({"conv.weight": torch.ones(2, 1, 3, 3)}, "unsupported layer conv .a convolution"),
    ],
)
def test_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=f"net.pt: .*{message}|net.pt: {message}"):
        read_network(tmp_path / "net.pt")


def test_damaged_files(tmp_path, monkeypatch):
    torch.save(module().state_dict(), tmp_path / "net.pt")
    whole, path = (tmp_path / "net.pt").read_bytes(), tmp_path / "damaged.pt"
    middle = bytearray(whole)
    middle[200:400] = bytes(200)
    for content in (b"", b"rubbish" * 100, whole[: len(whole) // 2], whole[:-30], bytes(middle), b"PK\3\4" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged.pt") as caught:
            read_network(path)
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("net/data/0", "w") as member:
        member.write(bytes(1 << 22))
    monkeypatch.setattr("hpcHess.storage.archive.SMALL", 1 << 20)
    with pytest.raises(InputError, match="damaged.pt: it unpacks from"):
        read_network(path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "net.pt")
    with pytest.raises(InputError, match="net.pt: it is a TorchScript archive: save model.state_dict"):
        read_network(tmp_path / "net.pt")


def test_without_torch(tmp_path, monkeypatch):
    (tmp_path / "net.pt").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"net.pt: PyTorch is not installed: pip install hpcHess\[torch\], or save the weights as .safetensors"):
        read_network(tmp_path / "net.pt")


def test_job(shared_tmp):
    """compress and multiply --exact of a .pt file under a factory's names, against the dense reference."""
    names = {"0": "fc1", "2": "fc2", "4": "head"}
    arrays, x, _ = small_arrays()

    def make():
        job = write_job(shared_tmp / "torch")
        torch.save({f"{names[key[0]]}.{key[2:]}": torch.from_numpy(each) for key, each in arrays.items()}, job.parent / "net.pt")
        job.write_text(job.read_text().replace("net.npz", "net.pt"))
        H = dense(arrays, x)
        np.save(job.parent / "I.npy", np.eye(len(H)))
        return job, H

    job, H = on_root(make)
    ok(drive("compress", job, "--output", job.parent / "F.h5"))
    ok(drive("multiply", job.parent / "F.h5", "--input", job.parent / "I.npy", "--output", job.parent / "exact.npy", "--exact"))
    assert relative(np.load(job.parent / "exact.npy"), H) < 1e-12


def test_job_whose_file_holds_another_module(shared_tmp):
    """One line, exit status 2, on every rank."""

    def make():
        job = write_job(shared_tmp / "conv")
        torch.save({"conv.weight": torch.ones(2, 1, 3, 3)}, job.parent / "net.pt")
        job.write_text(job.read_text().replace("net.npz", "net.pt"))
        return job

    run = ok(drive("compress", on_root(make), "--output", shared_tmp / "none.h5"), 2)
    assert len(run.errors) == 1 and "unsupported layer conv" in run.errors[0]
