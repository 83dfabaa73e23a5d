"""The cases: jobs as `hpcHess.compress` reads them, from jobs/ or from here."""

from dataclasses import dataclass
from pathlib import Path

from hpcHess.networks import datasets
from hpcHess.runtime.jobfile import Job, load

JOBS = Path(__file__).parents[1] / "jobs"

AUTOENCODER = """
[network]
activation = "sigmoid"
loss = "squared-error"
[network.fit]
hidden = [77]
epochs = 10
[data]
dataset = "mnist"
samples = 1000
task = "autoencode"
[compress]
leaf_size = 128
distance = "parameter"
rtol = 1e-1
"""

ADULT = """
[network]
activation = "relu"
[network.fit]
hidden = [30, 20]
epochs = 20
[data]
dataset = "adult"
samples = 2000
[compress]
leaf_size = 48
distance = "input"
rtol = 1e-2
"""


@dataclass(frozen=True)
class Case:
    """A name, what it is, and its job: a file of jobs/ or a text."""

    name: str
    description: str
    file: str = ""
    text: str = ""

    def job(self):
        """`runtime.jobfile.Job`. Not collective; raises InputError."""
        return load(JOBS / self.file) if self.file else Job.from_text(self.text, JOBS)

    def unavailable(self):
        """Why the case cannot run here, "" where it can. Not collective."""
        name = self.job()["data"].get("dataset")
        absent = datasets.missing(name) if name else []
        if not absent:
            return ""
        return f"{datasets.folder(name)} lacks {', '.join(absent)}: python -m hpcHess.datasets fetch {name}, or set HPCHESS_DATA"


CASES = {
    case.name: case
    for case in (
        Case("small", "the small network that comes with the project, seconds", file="small.toml"),
        Case("digits", "64-20-20-10 on scikit-learn's digits (jobs/quickstart.toml)", file="quickstart.toml"),
        Case("mnist", "784-20-30-10 on 1,000 images of MNIST (jobs/mnist.toml)", file="mnist.toml"),
        Case("adult", "108-30-20-2 on 2,000 rows of the census data", text=ADULT),
        Case("autoencoder", "784-77-784 on 1,000 images of MNIST, squared error: N = 121,597, minutes", text=AUTOENCODER),
        Case("mlp1m", "784-1000-200-10 on 1,000 images of MNIST (jobs/mlp1m.toml): N = 987,210, minutes", file="mlp1m.toml"),
    )
}
