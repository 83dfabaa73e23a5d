"""Job files: defaults, overrides, and every mistake as one line that names it."""

import pickle

import pytest

from hpcHess.runtime import jobfile, schema
from hpcHess.runtime.errors import InputError

MINIMAL = '[network]\nweights = "w.npz"\n[data]\ninputs = "x.npy"\ntargets = "y.npy"\n'
FITTED = '[network.fit]\nhidden = [20, 30]\n[data]\ndataset = "digits"\n'


@pytest.fixture
def job_path(tmp_path):
    def write(text):
        path = tmp_path / "job.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_are_filled_in(job_path, tmp_path):
    job = jobfile.load(job_path(MINIMAL))
    assert job["network"] == {"weights": "w.npz", "loss": "cross-entropy"}
    assert job["data"] == {"inputs": "x.npy", "targets": "y.npy", "samples": 0, "task": "classify"}
    assert job["curvature"] == {
        "kind": "gauss-newton",
        "l2": 0.0,
        "draws": 1,
        "seed": 0,
        "entries": "exact",
        "samples_per_entry": 0,
    }
    assert job["compress"] == {
        "format": "hss",
        "leaf_size": 64,
        "rtol": 1e-2,
        "max_rank": 0,
        "distance": "parameter",
        "n_neighbors": 32,
        "solver": "elimination",
        "structured": "none",
        "structured_size": 0,
        "terms": "auto",
        "method": "randomized",
        "blocks": "layer",
        "objective": "time",
        "rhs_count": 64,
        "workload": "solve",
        "seed": 0,
        "dtype": "auto",
        "probes": 32,
    }
    assert job.directory == str(tmp_path) and job.path("data", "inputs") == tmp_path / "x.npy"
    assert job.path("data", "dataset") is None


def test_relative_directory_becomes_absolute(job_path, monkeypatch, tmp_path):
    job_path(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert jobfile.load("job.toml").path("network", "weights") == tmp_path / "w.npz"


def test_absolute_paths_stay(job_path):
    assert str(jobfile.load(job_path(MINIMAL), ['data.inputs="/data/x.npy"']).path("data", "inputs")) == "/data/x.npy"


@pytest.mark.parametrize("text", [MINIMAL, FITTED])
def test_text_gives_the_same_job(job_path, text):
    overrides = ["compress.rtol=1e-05", "compress.seed=9007199254740993"]
    job = jobfile.load(job_path(text.replace("w.npz", r'a \"quoted\"\\ path\twith é, ☃, del \u007f and\nnewline.npz')), overrides)
    again = jobfile.Job.from_text(job.text, job.directory)
    assert again == job
    assert again["compress"]["seed"] == 9007199254740993
    if text is MINIMAL:
        assert again["network"]["weights"] == 'a "quoted"\\ path\twith é, ☃, del \x7f and\nnewline.npz'
    assert pickle.loads(pickle.dumps(job)) == job


def test_fit_has_its_defaults(job_path):
    job = jobfile.load(job_path(FITTED))
    assert job["network"]["fit"] == {"hidden": [20, 30], "epochs": 50, "seed": 0}
    assert "weights" not in job["network"] and "fit" not in jobfile.load(job_path(MINIMAL))["network"]


def test_autoencode_means_squared_error(job_path):
    job = jobfile.load(job_path(FITTED), ["data.task=autoencode"])
    assert job["network"]["loss"] == "squared-error"


def test_overrides_are_toml_or_bare_words(job_path):
    overrides = ["compress.rtol=1e-4", "compress.distance=angle", "network.fit.hidden=[5, 6]", "data.samples = 100", 'data.dataset="mnist"']
    job = jobfile.load(job_path(FITTED), overrides)
    assert (job["compress"]["rtol"], job["compress"]["distance"]) == (1e-4, "angle")
    assert job["network"]["fit"]["hidden"] == [5, 6]
    assert (job["data"]["samples"], job["data"]["dataset"]) == (100, "mnist")


def test_override_makes_missing_tables_and_holds_one_value_only(job_path):
    path = job_path('[network]\nweights = "w.npz"')
    job = jobfile.load(path, ["data.inputs=sub dir/x.npy", "data.targets=y.npy"])
    assert job["data"]["inputs"] == "sub dir/x.npy"
    with pytest.raises(InputError, match="compress.leaf_size"):
        jobfile.load(path, ["data.inputs=x.npy", "data.targets=y.npy", "compress.leaf_size=4\nrtol=3"])


def test_integers_serve_as_numbers_and_bounds_are_sharp(job_path):
    for rtol in ("0.999", "1e-300"):
        assert jobfile.load(job_path(MINIMAL), [f"compress.rtol={rtol}"])["compress"]["rtol"] == float(rtol)
    job = jobfile.load(job_path(MINIMAL), ["compress.leaf_size=2", "compress.probes=64", "compress.max_rank=1"])
    assert job["compress"]["leaf_size"] == 2


def test_a_quadrature_is_a_count_or_an_error(job_path):
    for text, value in (("1", 1), ("3500", 3500), ("0.04", 0.04)):
        job = jobfile.load(job_path(MINIMAL), [f"data.quadrature={text}", "compress.rtol=0.9"])
        again = jobfile.Job.from_text(job.text, job.directory)
        assert job["data"]["quadrature"] == again["data"]["quadrature"] == value and type(again["data"]["quadrature"]) is type(value)
    assert "quadrature" not in jobfile.load(job_path(MINIMAL))["data"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["compress.rtol=0"], "compress.rtol must be larger than 0"),
        (["compress.rtol=-1e-3"], "compress.rtol must be larger than 0"),
        (["compress.rtol=1"], "smaller than 1"),
        (["compress.rtol=nan"], "compress.rtol must be"),
        (["compress.rtol=inf"], "compress.rtol must be"),
        (["compress.rtol=small"], "compress.rtol must be a number, not 'small'"),
        (["compress.rtol=true"], "compress.rtol must be a number, not True"),
        (["compress.leaf_size=1"], "compress.leaf_size must be at least 2"),
        (["compress.leaf_size=true"], "compress.leaf_size must be an integer, not True"),
        (["compress.leaf_size=64.0"], "compress.leaf_size must be an integer"),
        (["compress.max_rank=-1"], "compress.max_rank must be at least 0"),
        (["compress.seed=-1"], "compress.seed must be at least 0"),
        (["compress.seed=9223372036854775808"], "compress.seed is too large"),
        (["compress.probes=31"], "compress.probes must be at least 32"),
        (["compress.distance=angel"], r"must be angle or kernel .* not 'angel' \(did you mean angle\?\)"),
        (["compress.dtype=float16"], "compress.dtype must be auto or float32 or float64"),
        (["compress.format=bsr"], "compress.format must be hss or fmm"),
        (["compress.budget=1.5", "compress.format=fmm"], "compress.budget must lie between 0 and 1, not 1.5"),
        (["compress.budget=nan", "compress.format=fmm"], "compress.budget must lie between 0 and 1, not nan"),
        (["compress.budget=0.1"], 'compress.budget = 0.1 contradicts compress.format = "hss"'),
        (["compress.sampling=products", "compress.format=fmm"], 'compress.sampling = "products" compresses to compress.format = "hss"'),
        (["compress.n_neighbors=0"], "compress.n_neighbors must be at least 1"),
        (["compress.solver=lu"], "compress.solver must be elimination or ulv or woodbury"),
        (["curvature.entries=sampled", "curvature.samples_per_entry=9", "curvature.entries_error=0.2"], "not both"),
        (["curvature.entries=sampled", "compress.format=low-rank"], "formats made of entries, hss, fmm"),
        (["curvature.entries_error=0.2"], 'entries_error needs curvature.entries = "sampled"'),
        (["curvature.seed=3"], "curvature.seed = 3 is for"),
        (["curvature.kind=hessean"], "curvature.kind must be gauss-newton"),
        (["network.activation=gelo"], "network.activation must be relu or leaky-relu or tanh or .*did you mean gelu"),
        (["network.loss=hinge"], "network.loss must be"),
        (["network.weights=''"], "network.weights is empty"),
        (["network.weights=3"], "network.weights must be text"),
        (["network.fit.hidden=[3]"], r"by a table \[network.fit\], or as network.torch, not both"),
        (["network.fit.epochs=3"], "not both"),
        (["data.dataset=digits"], "data.inputs or as data.dataset, not both"),
        (["data.samples=-5"], "data.samples must be at least 0"),
        (["data.quadrature=0"], "data.quadrature must be an integer of at least 1 .* or a number larger than 0 and smaller than 1 .*, not 0"),
        (["data.quadrature=-3"], "data.quadrature must be an integer of at least 1"),
        (["data.quadrature=1.0"], "data.quadrature must be an integer of at least 1"),
        (["data.quadrature=2.5"], "data.quadrature must be an integer of at least 1"),
        (["data.quadrature=nan"], "data.quadrature must be an integer of at least 1"),
        (["data.quadrature=true"], "data.quadrature must be an integer of at least 1"),
        (["data.quadrature=few"], "data.quadrature must be an integer of at least 1"),
        (["data.task=autoencode"], "data.targets is not wanted"),
        (["data.task=autoencode", "network.loss=cross-entropy"], "contradicts data.task"),
        (["compress.leafsize=4"], "unknown key compress.leafsize: did you mean compress.leaf_size?"),
        (["compres.rtol=1e-3"], "unknown table compres: did you mean compress?"),
        (["network.fitt.hidden=[3]"], "unknown table network.fitt: did you mean network.fit?"),
        (["network.fit.activation=tanh"], "unknown key network.fit.activation: did you mean network.activation?"),
        (["data.target=y.npy"], "unknown key data.target: did you mean data.targets?"),
        (["compress.rtol.value=1"], "rtol is not a table|compress.rtol must be a number"),
        (["data.inputs.x=1"], "inputs is not a table"),
        (["network.fit=3"], "network.fit must be a table"),
        (["rtol=1e-3"], "write it as table.key=value"),
        (["compress.rtol"], "write it as table.key=value"),
        (["compress..rtol=1"], "write it as table.key=value"),
    ],
)
def test_mistakes_in_overrides(job_path, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        jobfile.load(job_path(MINIMAL), overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"by a table \[network.fit\], or as network.torch, one of them is missing"),
        ('[network]\nweights = "w.npz"', "data.inputs or as data.dataset, one of them is missing"),
        ('[network]\nweights = "w.npz"\n[data]\ninputs = "x.npy"', "data.targets is missing"),
        ('[network]\nweights = "w.npz"\n[data]\ntargets = "y.npy"', "one of them is missing"),
        ('[network.fit]\nepochs = 3\n[data]\ndataset = "digits"', "network.fit.hidden is missing"),
        ('[network.fit]\nhidden = [3, 0]\n[data]\ndataset = "digits"', "network.fit.hidden must be at least 1, not 0"),
        ('[network.fit]\nhidden = [3, true]\n[data]\ndataset = "digits"', "network.fit.hidden must be a list of integers"),
        ('[network.fit]\nhidden = 3\n[data]\ndataset = "digits"', "network.fit.hidden must be a list of integers"),
        (FITTED + 'targets = "y.npy"', "data.targets is not wanted: data.dataset has its own"),
        (FITTED.replace("digits", "digit"), r"data.dataset must be digits or .*\(did you mean digits\?\)"),
        ('[network]\nloss = "squared-error"\n' + FITTED, "network.loss must be cross-entropy"),
        ("rtol = 1e-3\n" + MINIMAL, "unknown key rtol: did you mean compress.rtol?"),
        ("network = 3", "network must be a table"),
        ("[[network]]\nx = 1", "network must be a table"),
        (MINIMAL + "[networks]", "unknown table networks: did you mean network?"),
        ("[network\n", "is not TOML"),
        (MINIMAL + MINIMAL, "is not TOML"),
    ],
)
def test_mistakes_in_files(job_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        jobfile.load(job_path(text))
    assert "job.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot read the job file .*none.toml: No such file"):
        jobfile.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="directory"):
        jobfile.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(InputError, match="cannot read the job file"):
        jobfile.load(tmp_path / "latin.toml")


def test_reference_names_every_key_with_its_default():
    lines = jobfile.reference().splitlines()
    for table, keys in schema.SCHEMA.items():
        assert f"[{table}]" in lines
        for name, key in keys.items():
            assert key.doc and any(line.startswith(f"{name} =") and key.doc in line for line in lines)
    assert any(line.startswith("rtol = 0.01 ") for line in lines)


MATRIX = '[matrix]\nfile = "K.f32"\nn = 12\n'


def test_a_job_of_a_matrix_has_only_the_tables_in_use(job_path):
    job = jobfile.load(job_path(MATRIX), ["compress.rtol=0.1"])
    assert list(job.tables) == ["matrix", "compress"]
    assert job["matrix"] == {"file": "K.f32", "n": 12} and job["compress"]["rtol"] == 0.1
    assert job.path("matrix", "file") == job_path(MATRIX).parent / "K.f32"
    assert jobfile.Job.from_text(job.text, job.directory).tables == job.tables
    assert "matrix" not in jobfile.load(job_path(MINIMAL)).tables


@pytest.mark.parametrize(
    "text, words",
    [
        (MATRIX + '[network]\nweights = "w.npz"\n', r"\[matrix\] takes the place of \[network\]"),
        (MATRIX + "[network.fit]\nhidden = [3]\n", r"\[matrix\] takes the place of \[network\]"),
        (MATRIX + '[data]\ndataset = "digits"\n', r"\[matrix\] takes the place of \[data\]"),
        (MATRIX + '[curvature]\nkind = "gauss-newton"\n', r"\[matrix\] takes the place of \[curvature\]"),
        ("[matrix]\nn = 12\n", "matrix.file is missing"),
        ('[matrix]\nfile = "K.f32"\nn = 0\n', "matrix.n must be at least 1"),
        ('[matrix]\nfil = "K.f32"\n', "did you mean matrix.file"),
        ('matrix = "K.f32"\n', r"write \[matrix\]"),
    ],
)
def test_a_matrix_and_a_network_contradict_each_other(job_path, text, words):
    with pytest.raises(InputError, match=words):
        jobfile.load(job_path(text))
