"""The CUDA sources of this folder's cuda/: one text a file, compiled by whoever has a compiler (CuPy on a device; tests)."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "cuda"
OPTIONS = ("--std=c++17",)


def names():
    """The sources there are."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


@cache
def source(name):
    """The whole text of one source, what all share before it."""
    return (FOLDER / "common.cuh").read_text() + (FOLDER / f"{name}.cu").read_text()
