"""mpiexec -n P python -m hpcHess.info F.h5 [--json] [--verify]: what a factor file holds, what was asked and what was reached."""

import argparse
import json

from hpcHess.compressed.certificate import exactness
from hpcHess.formats.registry import FORMATS
from hpcHess.runtime.errors import DONE, InputError
from hpcHess.runtime.jobfile import Job
from hpcHess.runtime.session import run_driver
from hpcHess.storage.factor_file import FactorFile

_ELSEWHERE = ("matrix_format", "report", "job", "job_directory", "provenance", "network", "format", "complete", "datasets")  # said otherwise


def build_parser():
    """Arguments of the driver."""
    parser = argparse.ArgumentParser(prog="hpcHess.info", description=__doc__)
    parser.add_argument("factors", metavar="F.h5", help="factor file of hpcHess.compress")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")
    parser.add_argument("--verify", action="store_true", help="also read all data and compare the checksums (the ranks share the work)")
    return parser


def main(session, args):
    """Print the summary of a factor file. Collective; without --verify only attributes are read."""
    with FactorFile(args.factors, session.comm, verify=False) as file:
        if args.verify:
            with session.phase("verify"):
                file.verify()
        summary = summarize(file, args.verify)
    session.output(json.dumps(summary, indent=2, ensure_ascii=False) if args.json else describe(summary))
    return DONE


def summarize(file, verified):
    """One dict of everything the attributes tell: the report's keys, `format` (of the matrix), sizes, provenance, job. Not collective."""
    given = file.attributes
    return {
        "path": file.path,
        "format": given["matrix_format"],
        "complete": given["complete"],
        "checksums_verified": bool(verified),
        **{key: value for key, value in given.items() if key not in _ELSEWHERE and "woodbury" not in key},
        **json.loads(given["report"], parse_constant=lambda _: None),  # NaN and Infinity are no JSON
        **_factors(given),
        "provenance": json.loads(given["provenance"]),
        "job_directory": given["job_directory"],
        "job": given["job"],
    }


def describe(summary):
    """The same as text: a line for every fact, and what the format has to tell (`compressed.format.Format.describe`)."""
    dead = summary["n_params"] - summary["n_alive"]
    lines = [
        f"{summary['path']}: {summary['format'].upper()} matrix, N = {summary['n_params']} ({dead} dead), {summary['dtype']}",
        _storage(summary),
        _error(summary),
    ]
    for key, text in (("norm_frobenius", "‖H‖_F"), ("lambda_max", "λ_max"), ("lambda_min", "λ_min"), ("error_spectral", "‖H̃ − H‖₂")):
        if summary.get(key) is not None:
            lines.append(f"{text + ' ≈':<12}{summary[key]:.4g}")
    lines += [*_curvature(summary), *_solver(summary)]
    chosen = FORMATS.get(summary["format"])
    lines += [*(chosen.describe(summary) if chosen else ()), "", *_plan(summary), *_provenance(summary)]
    lines += [f"warning: {text}" for text in summary.get("warnings", [])]
    return "\n".join(lines)


def _curvature(summary):
    """Which matrix it is, by the job: the kind and what is not the default of it; nothing where no job is recorded, or one of another version."""
    try:
        tables = Job.from_text(summary["job"], summary["job_directory"]).tables if summary["job"] else {}
    except InputError:
        tables = {}
    if "matrix" in tables:
        yield f"matrix      {tables['matrix']['file']}"
    if "curvature" in tables:
        curvature, network, data = tables["curvature"], tables["network"], tables["data"]
        said = [curvature["kind"] + (f" of {network['torch']}" if "torch" in network else "")]
        if curvature["kind"] == "mc-fisher":
            said.append(f"{curvature['draws']} label{'s' if curvature['draws'] > 1 else ''} a sample")
        if "layers" in curvature:
            said.append(f"layer{'s' if len(curvature['layers']) > 1 else ''} {', '.join(map(str, curvature['layers']))}")
        if "parameters" in curvature:
            said.append(f"parameters {curvature['parameters']}")
        if "weights" in data:
            said.append(f"samples weighted by {data['weights']}")
        if curvature["entries"] == "sampled":
            count, error = curvature["samples_per_entry"], curvature.get("entries_error", 0.1)
            said.append(f"sampled entries ({f'{count} draws a block' if count else f'error {error:g}'})")
        yield "curvature   " + ", ".join(said)
    if "l2" in summary:
        yield f"l2          {summary['l2']:g}·I besides what is compressed (error and ‖H‖_F are without it, λ_max is with it)"


def _factors(given):
    """What the attributes tell of stored direct factors, None where there are none: the matrix's own, or its preconditioner's."""
    name = "preconditioner_woodbury" if "preconditioner_woodbury_damping" in given else "woodbury"
    error = given.get(f"{name}_backward_error")
    damping, solver = given.get(f"{name}_damping"), given.get(f"{name}_solver", "elimination")
    return {
        "woodbury_damping": damping,
        "woodbury_solver": None if damping is None else solver,
        "woodbury_backward_error": error if error is not None and error < float("inf") else None,
    }


def _solver(summary):
    """The stored direct factors."""
    damping, error, of = summary["woodbury_damping"], summary["woodbury_backward_error"], " + l2 =" if "l2" in summary else ""
    if damping is None:
        yield "stored      no factors"
    else:
        yield f"stored      {summary['woodbury_solver']} factors for damping{of} {damping:g}{'' if error is None else f', backward error {error:.1e}'}"


def _plan(summary):
    """What the choice of the format was made from, where it was chosen, and the samples left out before."""
    quadrature = summary.get("quadrature")
    if quadrature:
        yield f"samples     {quadrature['samples']:,} of {quadrature['of']:,}, weighted: error {quadrature['error']:.3g} of ‖H‖_F (part of the above)"
    yield from summary.get("plan", {}).get("explanation", ())


def _storage(summary):
    return (
        f"storage     {summary['storage_entries']:,} numbers, {summary['storage_bytes']:,} bytes, {summary['storage_percent']:.4g} % of N²"
        f" (checksums {'verified' if summary['checksums_verified'] else 'not tried: --verify'})"
    )


def _error(summary):
    error = summary["error_estimate"]
    value, low, high = ("?" if error[key] is None else f"{error[key]:.3g}" for key in ("value", "low", "high"))
    interval = f"{100 * error.get('confidence', 0.95):.0f} % interval {low} … {high} ({error['probes']} probes)"
    return (
        f"error       {value} of ‖H‖_F, {exactness(error) or interval}; "
        f"asked rtol = {summary['rtol']:g}: {'met' if summary['rtol_met'] else 'NOT MET'}"
    )


def _provenance(summary):
    origin = dict(summary["provenance"])
    versions, timings = origin.pop("versions", {}), origin.pop("timings", None) or summary.get("timings", {})
    yield "written     " + ", ".join(f"{key} {value}" for key, value in origin.items() if value is not None and not key.endswith("_hash"))
    yield "with        " + ", ".join(f"{name} {version}" for name, version in versions.items())
    for key in ("network_hash", "data_hash", "parameters_hash", "matrix_hash"):
        if origin.get(key):
            yield f"{key.removesuffix('_hash'):<12}sha256 {origin[key]}"
    if timings:
        yield "seconds     " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in timings.items())


if __name__ == "__main__":
    run_driver("info", build_parser, main)
