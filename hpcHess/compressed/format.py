"""What the program knows of a format: its name, how to make, read and describe a matrix of it, and what it would cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """The registration of a format (`formats.registry`).

    name        in job files, factor files and the API
    summary     one line for people
    compress    compress(operator, *, rtol, seed, dtype, probes, backend, progress, **those of `options` that were given) → CompressedMatrix whose
                `report` holds what `compressed.certificate.reported` and docs/FORMAT.md name. Collective
    read        read(file, backend) → CompressedMatrix from an open `storage.factor_file.FactorFile`: datasets and `file.attributes` of the
                format; the report and the provenance are set by `formats.file.load`. Collective
    options     names of the keys of [compress] that `compress` takes besides rtol, seed, dtype, probes
    describe    describe(summary) → lines for `hpcHess.info`, from what the file's attributes tell alone (keys of the report among them)
    predict     predict(facts: `compressed.facts.Facts`) → `Prediction`; None: never chosen by itself. Collective
    cheap       whether `predict` costs so little that every job of this format is checked against the memory before it starts
    approximates  False for formats that are exact (they answer to no rtol, and no storage is judged against them)
    """

    name: str
    summary: str
    compress: Callable
    read: Callable
    options: tuple = ()
    describe: Callable = lambda summary: ()
    predict: Callable | None = None
    approximates: bool = True
    cheap: bool = False


@dataclass(frozen=True)
class Prediction:
    """What a format would cost, before anything of it is made.

    entries     numbers stored; `memory` bytes that all ranks together hold at the peak of the compression
    compress, apply, solve    seconds: of the compression; of a product with one vector, of a solve with one right-hand side, in blocks of 64
    error       relative Frobenius error that is expected: rtol where the format is steered by it, inf where it cannot say
    spread      `entries` may be off by this factor either way
    bound       whether numbers and seconds are lower bounds, no estimates: `refine` then gives those
    refused     why this format cannot serve here, "" where it can
    note        what the numbers come from, for people
    refine      refine() → a better Prediction at a higher cost, asked for where this one is not decisive; or None. Collective
    effort      seconds that `refine` takes, roughly
    made        what was computed on the way that the compression can take over: its argument `prepared`, or None
    """

    entries: float = 0.0
    memory: float = 0.0
    compress: float = 0.0
    apply: float = 0.0
    solve: float = 0.0
    error: float = 0.0
    spread: float = 1.0
    bound: bool = False
    refused: str = ""
    note: str = ""
    refine: Callable | None = None
    effort: float = 0.0
    made: Any = None
