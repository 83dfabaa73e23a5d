"""What the program knows of a format: its name, how to make, read and describe a matrix of it, and what it would cost."""

from collections.abc import Callable
from dataclasses import dataclass


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
    predict     predict(facts) → `formats.planner`'s Prediction, or None where the planner has no prediction for it
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
