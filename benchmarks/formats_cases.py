"""The cases of docs/FORMATS.md: the matrices, and the rows of each: every format of the registry, what is compared with it, and auto."""

from dataclasses import dataclass, field
from pathlib import Path

JOBS = Path(__file__).parents[1] / "jobs"
RTOLS = (1e-1, 1e-2, 1e-3, 1e-4)
EXACT, STORAGE, TIME = "exact", "auto, storage", "auto, time"  # rows: the operator itself, and the choices (`TIME` by right-hand sides)
RHS_COUNTS = (64, 10_000)  # of `TIME`
MOST_DENSE = 20_000  # parameters of a matrix whose N² numbers are stored
UNSTEERED = ("block-diagonal",)  # approximate, but rtol has no say
# rough seconds of a row of the case of weight 1 at 1e-1: they order the runs, nothing else
ROUGH = {"kronecker-sum": 2, "block-diagonal": 3, "low-rank": 4, "hss": 5, "dense": 8, "none": 3, "data-woodbury": 8, "fmm": 8, "auto": 6}


@dataclass(frozen=True)
class Row:
    """One way to compress a case.

    sets         what it changes in the case's job
    kind         format: a format alone; reference: K-FAC, sums of parts; auto
    approximates whether its storage is judged
    steered      whether rtol decides what is made: else it is run once, and met or not at every rtol
    left_out     why it is not run at all, or ""
    """

    name: str
    format: str
    sets: tuple = ()
    kind: str = "format"
    approximates: bool = True
    steered: bool = True
    left_out: str = ""

    @property
    def solves(self):
        """With H̃ + λI (solve), with H + λI (refined): those of auto are those of the format that it chose, as far as its time is not judged."""
        return ("solve", "refined") if self.kind != "auto" else () if self.name == STORAGE else ("solve",)


@dataclass(frozen=True)
class Case:
    """A matrix of the page.

    title, job   for people; file of jobs/, changed by `sets`
    gallery, n   a matrix of `hpcHess.gallery` of that order instead of a network
    n_params     N
    columns      right-hand sides of the solves with H̃ + λI, vectors of the products
    exact_columns of these, how many are solved with the exact H + λI
    weight       of its runs, next to those of mnist: what is cheap is run first
    formats      {format: what it changes in the job}
    left_out     {row: why it is not run}
    sums         structured parts that are tried before the tree
    """

    name: str
    title: str
    job: str
    n_params: int
    sets: tuple = ()
    rtols: tuple = RTOLS
    gallery: str = ""
    columns: int = 64
    exact_columns: int = 64
    weight: float = 1.0
    formats: dict = field(default_factory=dict)
    left_out: dict = field(default_factory=dict)
    sums: tuple = ()

    @property
    def file(self):
        """Name of the matrix's file, or of the fitted network's, in the folder of results."""
        return f"{self.gallery}-{self.n_params}.npy" if self.gallery else f"formats-{self.name}.npz"


def rows_of(case, formats):
    """The `Row`s of a case, without `EXACT`, for the `formats` of a registry {name: Format}."""
    found = []
    for name, entry in formats.items():
        if entry.compress is not None:
            steered = entry.approximates and name not in UNSTEERED
            found.append(Row(name, name, case.formats.get(name, ()), "format", entry.approximates, steered, _left_out(case, name)))
    if not case.gallery and "block-diagonal" in formats:
        found.append(Row("block-diagonal, neuron", "block-diagonal", ("compress.blocks=neuron",), steered=False))
    if not case.gallery and "kronecker-sum" in formats:
        found.append(Row("K-FAC", "kronecker-sum", ("compress.terms=kfac",), "reference", steered=False))
    found += [Row(f"hss + {part}", "hss", (f"compress.structured={part}",), "reference") for part in case.sums]
    found.append(Row(STORAGE, "auto", ("compress.objective=storage",), "auto"))
    found += [Row(f"{TIME} {n}", "auto", ("compress.objective=time", f"compress.rhs_count={n}"), "auto") for n in RHS_COUNTS]
    return found


def _left_out(case, name):
    if name == "dense" and case.n_params > MOST_DENSE:
        return f"N² numbers: not for more than {MOST_DENSE:,} parameters"
    return case.left_out.get(name, "")


def roughly(case, row, rtol):
    """Seconds of a run, as far as its place in the order needs them."""
    tight = 2.0 ** (case.rtols.index(rtol) if row.steered else 1)
    return case.weight * ROUGH.get(row.format, 5) * tight * (2 if "+" in row.name else 1)


_GALLERY = {"exact_columns": 16, "weight": 0.4, "formats": {"fmm": ("compress.budget=0.1",)}}
_MNIST_FMM = ("compress.leaf_size=192", "compress.distance=input", "compress.budget=0.02")
CASES = (
    Case(
        "mnist",
        "784-20-30-10 ReLU network with biases, cross-entropy, 1,000 samples of MNIST",
        "mnist-hss-low.toml",
        16640,
        exact_columns=16,
        formats={"fmm": _MNIST_FMM},
        sums=("low-rank", "kronecker-sum"),
    ),
    Case(
        "autoencoder",
        "784-77-784 sigmoid network with biases, squared error, 1,000 samples of MNIST",
        "autoencoder-hss-low.toml",
        121597,
        exact_columns=4,
        weight=4.0,
        formats={"fmm": ("compress.budget=0.001",)},
    ),
    Case(
        "wide",
        "784-1000-200-10 ReLU network with biases, cross-entropy, 1,000 samples of MNIST",
        "wide.toml",
        987210,
        rtols=RTOLS[:2],
        columns=16,
        exact_columns=4,
        weight=12.0,
        left_out={"fmm": "left out: its neighbours' votes among a million parameters take longer than a run may"},
    ),
    Case("K02", "gallery: squared inverse of a regularized Laplacian on a 64 × 64 grid", "kernel.toml", 4096, gallery="K02", **_GALLERY),
    Case("K06", "gallery: Gaussian kernel of 4,096 points in six dimensions, h = 2", "kernel.toml", 4096, gallery="K06", **_GALLERY),
)
_SMALL = {"rtols": RTOLS[:2], "columns": 8, "exact_columns": 8, "weight": 0.1}
QUICK = (
    Case("digits", "64-20-20-10 network on scikit-learn's digits", "quickstart.toml", 1930, sums=("low-rank",), **_SMALL),
    Case("K06-256", "gallery: Gaussian kernel of 256 points", "kernel.toml", 256, gallery="K06", **_SMALL),
)
