"""Reading known data sets and fetching them: from the real files where HPCHESS_DATA has them, else from files made here."""

import gzip
import hashlib
import shutil

import numpy as np
import pytest

from hpcHess.networks import datasets
from hpcHess.runtime.errors import InputError

MNIST = list(datasets.SOURCES["mnist"].files)


def packed(content, level=9):
    """gzip without the time of day, which would make the names of tests differ from rank to rank."""
    return gzip.compress(content, level, mtime=0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty HPCHESS_DATA."""
    monkeypatch.setenv("HPCHESS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def real(data_dir):
    """A test of real files: skipped where they are missing."""

    def check(name):
        if datasets.missing(name):
            pytest.skip(f"HPCHESS_DATA has no {name}")
        return data_dir / name

    return check


def idx(array, magic=None):
    """An idx file of uint8."""
    header = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    return packed(header + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes())


def write_mnist(home, images, labels):
    (home / "mnist").mkdir(parents=True, exist_ok=True)
    for file, content in zip(MNIST, (images, labels), strict=True):
        (home / "mnist" / file).write_bytes(content)


def test_digits():
    X, y = datasets.load("digits")
    assert X.shape == (1797, 64) and X.dtype == np.float32 and (X.min(), X.max()) == (0, 1)
    assert y.dtype == np.int64 and list(y[:12]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    few, labels = datasets.load("digits", 20)
    np.testing.assert_array_equal(few, X[:20])
    np.testing.assert_array_equal(labels, y[:20])


def test_autoencode_gives_one_array_twice():
    X, Y = datasets.load("digits", 5, "autoencode")
    assert X is Y and X.shape == (5, 64)


def test_too_many_samples():
    with pytest.raises(InputError, match="digits has 1797 samples, 1798 are asked for"):
        datasets.load("digits", 1798)


def test_mnist_by_hand(home):
    images = np.arange(24).reshape(4, 2, 3) * 10
    write_mnist(home, idx(images), idx(np.array([7, 0, 1, 9])))
    X, y = datasets.load("mnist", 3)
    np.testing.assert_array_equal(X, (images[:3].reshape(3, 6) / 255).astype(np.float32))
    assert list(y) == [7, 0, 1]


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (b"no gzip", None, "cannot read .*images-idx3"),
        (idx(np.zeros((4, 2, 3)))[:-12], None, "cannot read .*images-idx3"),
        (packed(b"\0\0"), None, "not an idx file"),
        (idx(np.zeros((4, 2, 3)), bytes([0, 0, 9, 3])), None, "not an idx file"),
        (packed(gzip.decompress(idx(np.zeros((4, 2, 3))))[:-1]), None, "not an idx file"),
        (idx(np.zeros((5, 2, 3))), None, "5 images but 4 labels"),
        (idx(np.zeros((4, 2, 3))), idx(np.zeros((4, 1))), "labels-idx1.* is not an idx file of 1 dim"),
    ],
)
def test_damaged_mnist(home, images, labels, message):
    write_mnist(home, images, labels or idx(np.zeros(4)))
    with pytest.raises(InputError, match=message):
        datasets.load("mnist")


ADULT_ROWS = """39, State-gov, 10, Bachelors, 13, Never-married, Sales, Wife, White, Male, 0, 0, 40, Peru, <=50K
50, ?, 20, Masters, 13, Never-married, ?, Wife, White, Female, 0, 0, 13, Japan, >50K
40, ?, 60, Bachelors, 13, Divorced, Sales, Wife, White, Male, 9, 0, 40, ?, <=50K

"""


def test_adult_by_hand(home):
    (home / "adult").mkdir(parents=True)
    (home / "adult" / "adult.data").write_text(ADULT_ROWS)
    X, y = datasets.load("adult")
    assert list(y) == [0, 1, 0]
    numbers = np.array([[39, 10, 13, 0, 0, 40], [50, 20, 13, 0, 0, 13], [40, 60, 13, 9, 0, 40]], float)
    spread = numbers.std(axis=0)
    spread[[2, 4]] = 1  # constant columns become 0
    # the words of each column in order:
    # ? State-gov | Bachelors Masters | Divorced Never-married | ? Sales | Wife | White | Female Male | ? Japan Peru
    words = [
        [0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1],
        [1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0],
    ]
    np.testing.assert_allclose(X, np.hstack([(numbers - numbers.mean(axis=0)) / spread, words]), rtol=1e-6)
    np.testing.assert_array_equal(datasets.load("adult", 2)[0], X[:2])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "row 1 does not have 15"),
        (ADULT_ROWS + "1, 2\n", "row 4 does not have 15"),
        (ADULT_ROWS.replace("39", "x"), "could not convert"),
    ],
)
def test_damaged_adult(home, text, message):
    (home / "adult").mkdir(parents=True)
    (home / "adult" / "adult.data").write_text(text)
    with pytest.raises(InputError, match=f"adult.data: .*{message}"):
        datasets.load("adult")


def test_real_mnist(real):
    real("mnist")
    X, y = datasets.load("mnist", 1000)
    assert X.shape == (1000, 784) and X.dtype == np.float32 and (X.min(), X.max()) == (0, 1)
    assert list(y[:10]) == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and set(y) == set(range(10))


def test_real_adult(real):
    real("adult")
    X, y = datasets.load("adult")
    assert X.shape == (32561, 108) and list(np.bincount(y)) == [24720, 7841]
    np.testing.assert_allclose(X[:, :6].astype(float).mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(X[:, :6].astype(float).std(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(X[:, 6:].sum(axis=1), 8)  # one category each


@pytest.mark.parametrize("name", ["mnist", "adult"])
def test_fetch_real_files(real, name, tmp_path, monkeypatch):
    source = real(name)
    monkeypatch.setenv("HPCHESS_DATA", str(tmp_path))
    datasets.fetch(name, source.as_uri(), say=lambda _: None)
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(datasets.SOURCES[name].files)
    assert len(datasets.load(name, 10)[0]) == 10


def test_missing_data_says_what_to_do(home):
    message = r"adult lacks adult.data: run `python -m hpcHess.datasets fetch adult`, or set HPCHESS_DATA"
    with pytest.raises(InputError, match=message):
        datasets.load("adult")


def test_unknown_names():
    for function in (datasets.load, datasets.fetch):
        with pytest.raises(InputError, match="unknown data set 'cifar': there are digits, mnist, adult"):
            function("cifar")


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCHESS_DATA", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(datasets.folder("mnist")) == "/somewhere/mnist"
    monkeypatch.setenv("HPCHESS_DATA", "")
    assert str(datasets.folder("mnist")) == "/cache/hpcHess/mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.folder("mnist") == tmp_path / ".cache" / "hpcHess" / "mnist"


@pytest.fixture
def source(tmp_path, monkeypatch, home):
    """A small data set `toy` of two files, one packed, and the folder that has it."""
    contents = {"a.gz": b"first" * 1000, "b.txt": b"second"}
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    at = tmp_path / "mirror"
    at.mkdir()
    for file, content in contents.items():
        (at / file).write_bytes(packed(content, 1) if file.endswith(".gz") else content)
    monkeypatch.setitem(datasets.SOURCES, "toy", datasets.Source(sums, ((tmp_path / "nowhere").as_uri(), at.as_uri())))
    return at


@pytest.mark.parametrize("base", ["folder", "address", "mirrors"])
def test_fetch(source, home, base):
    said = []
    datasets.fetch("toy", {"folder": str(source), "address": source.as_uri() + "/", "mirrors": None}[base], said.append)
    assert sorted(path.name for path in (home / "toy").iterdir()) == ["a.gz", "b.txt"]
    assert (home / "toy" / "a.gz").read_bytes() == (source / "a.gz").read_bytes()
    assert sum(line.startswith("wrote") for line in said) == 2 and datasets.missing("toy") == []
    assert any("nowhere" in line for line in said) == (base == "mirrors")


def test_fetch_keeps_what_is_right_and_replaces_what_is_damaged(source, home):
    datasets.fetch("toy", str(source), lambda _: None)
    (home / "toy" / "a.gz").write_bytes(packed(b"first" * 1000, 9))  # packed differently: the same content
    kept = (home / "toy" / "a.gz").read_bytes()
    (home / "toy" / "b.txt").write_bytes(b"damaged")
    said = []
    datasets.fetch("toy", str(source), said.append)
    assert (home / "toy" / "a.gz").read_bytes() == kept and (home / "toy" / "b.txt").read_bytes() == b"second"
    assert "checksum is right" in said[0] and said[-1].startswith("wrote")


@pytest.mark.parametrize("content", [b"wrong", packed(b"wrong"), packed(b"first" * 1000)[:-10]])
def test_wrong_checksum_leaves_nothing(source, home, content):
    (source / "a.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"could not fetch a.gz \(its checksum is wrong\).*--from"):
        datasets.fetch("toy", str(source), lambda _: None)
    assert list((home / "toy").iterdir()) == []


def test_source_that_is_not_there(source, home):
    shutil.rmtree(source)
    with pytest.raises(InputError, match="could not fetch a.gz .*No such file"):
        datasets.fetch("toy", None, lambda _: None)
    with pytest.raises(InputError, match="could not fetch a.gz .*unknown url type"):
        datasets.fetch("toy", "nonsense://host", lambda _: None)
    assert list((home / "toy").iterdir()) == []


def test_folder_that_cannot_be_written(source, home):
    home.write_text("a file is in the way")
    with pytest.raises(InputError, match="cannot make the folder"):
        datasets.fetch("toy", str(source), lambda _: None)
    home.unlink()
    (home / "toy" / "a.gz").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write .*a.gz"):
        datasets.fetch("toy", str(source), lambda _: None)
    assert [path.name for path in (home / "toy").iterdir()] == ["a.gz"]
