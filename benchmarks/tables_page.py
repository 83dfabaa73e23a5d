"""The page of the published tables, docs/TABLES.md, from the results of `benchmarks.tables`."""

import numpy as np

from benchmarks.tables_cases import COVERED, SOLVED

HEAD = """# The published tables

Made by `python -m benchmarks.tables --write`: not written by hand. Jobs: `jobs/*.toml`, of the names in the first column.
"""

COMPRESSION = """## Compression of Gauss–Newton matrices

mnist: 784-20-30-10 ReLU network with biases, cross-entropy, 1,000 samples of MNIST, N = 16,640. autoencoder: 784-77-784 sigmoid network with
biases, squared error, 1,000 samples, 10 epochs, N = 121,597. Published: storage, error, seconds (where it says factors, for these) of C. Yu, S.
Reiz, G. Biros and others for networks of these sizes on 4 nodes × 48 Skylake cores (distributed GOFMM: SC 2018, MCSoC 2019; the exact layer sizes
are not published).
"""

SOLVES = f"""## Solves

(H̃ + λI)X = B in float64, B standard normal, λ = 0.01 λ_max; autoencoder: λ = 2 ‖H̃ − H‖₂ (`{COVERED}`), above the certified error; dense matrices:
λ = 10, as GOFMM beside. Residuals are the largest ‖b − (· + λI)x‖/‖b‖ of the columns. FMM matrices have no direct factors: PETSc's KSP,
preconditioned by the factors of a coarser HSS matrix. Refined: with the exact matrix, as `hpcHess.solve --refine exact`.
"""

DENSE = """## Dense Gauss–Newton matrices from float32 files

`python -m benchmarks.gauss_newton_matrix` makes them: a trained 196-h-10 tanh network with softmax on 14 × 14 pixels, 2,000 samples, the N
parameters with the largest diagonal. Published beside: GOFMM's newest source (C++/OpenMP) on a 2-core machine, 2 threads, κ = 32, tolerance 1e-5,
its rank and leaf size chosen for the error (512; 256 at 4,096): storage, error, seconds, product with 1 / 64 vectors.
"""

NOTES = """## How to read them

* storage: numbers stored, bases, couplings and near blocks, symmetric ones once, over N². error: ‖H̃ − H‖_F/‖H‖_F from fresh probes, 95 % interval.
  attempts: passes over the levels.
* compression: all phases of `hpcHess.compress` but reading or fitting (`input`: network and data, or reading and checking the matrix) and writing;
  the median where repeated. Verification is part of it.
* products: median over repeats, exchange included, H̃V in the stored type, HV with the uncompressed matrix in the same type and the same run. of
  bound: the least time that the machine allows by the ceilings of the same run (benchmarks/README.md), divided by the median.
* solve: the median over repeats; of FMM matrices one solve with all its iterations.
"""

TABLES = {
    "compression": (
        COMPRESSION,
        ("case", "format", "asked", "storage, % of N²", "MB", "error (95 %)", "attempts", "compression, s", "input, s",
         "product 1 / 64, ms", "of bound", "exact product 1 / 64, ms", "published: storage, error, time"),
    ),
    "solves": (
        SOLVES,
        ("case", "solver", "λ", "‖H̃ − H‖₂", "factors, s", "solve 1 / 64 / all, ms", "right-hand sides",
         "against H̃ + λI", "against H + λI", "refined: residual", "iterations", "s", "others: factors, solve 1 / 64"),
    ),
    "dense": (
        DENSE,
        ("case", "N", "asked", "storage, % of N²", "MB", "error (95 %)", "attempts", "compression, s", "input, s",
         "product 1 / 64, ms", "of bound", "dense product 1 / 64, ms", "GOFMM: storage, error, time, products"),
    ),
}  # fmt: skip


def page(cases, results):
    """The text of the page for `tables_cases.Case`s and {case name: result of `tables`}; what was not run says so."""
    parts = [HEAD, provenance(list(results.values()))]
    for name, (text, columns) in TABLES.items():
        parts += [text, table(columns, [row for case in cases for row in _rows(name, case, results.get(case.name, {"failed": "not run"}))])]
    return "\n".join([*parts, NOTES])


def table(columns, rows):
    """Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines) + "\n"


def structure(text):
    """Headings, tables' headers and first cells of a page: what does not depend on the machine. [str]"""
    found, within = [], False
    for line in text.splitlines():
        if line.startswith("#"):
            found.append(line)
            within = line.startswith("## ")
        elif within and line.startswith("| "):
            cells = line.strip("| ").split(" | ")
            found.append(line if cells[0] == "case" else cells[0])
    return found


def provenance(results):
    """When, where, how, and the machine's ceilings: medians over the cases."""
    done = [each for each in results if "machine" in each]
    if not done:
        return "Nothing was measured.\n"
    lines = [
        f"{origin(done)}. Of each case",
        "",
        *(f"    {line}" for line in done[0]["commands"]),
        "",
        "What this machine reached in the same run, all ranks together (median over the cases, least … most):",
        "",
    ]
    rates = [each["ceilings"]["together"] for each in done if each["layout"] == done[0]["layout"]]
    rows = [(f"{name}, GFLOP/s", *_spread([rate[f"{name}_gflops"] for rate in rates])) for name in ("sgemm", "dgemm")]
    rows += [(f"memory (triad of {size}), GB/s", *_spread([rate["triad_gbytes"][size] for rate in rates])) for size in rates[0]["triad_gbytes"]]
    return "\n".join(lines) + "\n" + table(("ceiling", "median", "least … most"), rows)


def origin(done):
    """When, of which commit and on what these results were measured; those of `machine.describe` are in them."""
    machine, dates = done[-1]["machine"], sorted(each["machine"]["date"] for each in done)
    commits = ", ".join(dict.fromkeys(map(_commit, done)))
    load = max(each["machine"]["load_average"][0] for each in done)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{dates[0]} … {dates[-1]}, commit {commits}; {machine['cpu']}, {machine['cores']} cores, load average up to {load:.1f}; "
        f"{machine['ranks']} ranks × {machine['threads']['OMP_NUM_THREADS']} threads where nothing else is said; {versions}"
    )


def _commit(result):
    commit = result["machine"]["commit"]
    return "unknown" if commit is None else commit[:9] + "+" * commit.endswith("+")


def _spread(values):
    return f"{np.median(values):.1f}", f"{min(values):.1f} … {max(values):.1f}"


def _rows(name, case, result):
    """The rows of a case in one table."""
    columns = len(TABLES[name][1])
    if name != "solves":
        if case.table == name:
            label = case.name
            yield _failed([label], columns, result, case.beside) if "report" not in result else [label, *_compressed(case, result), case.beside]
    elif case.solves is not None:
        solves = {each["solver"]: each for each in result.get("solves", ())}
        for solver in case.solves.solvers:
            beside = SOLVED.get((case.name, solver), "")
            done = solver in solves
            yield [case.name, solver, *_solved(solves[solver]), beside] if done else _failed([case.name, solver], columns, result, beside)


def _failed(cells, columns, result, last=None):
    cells = [*cells, f"**{result.get('failed') or 'not run'}**".replace("|", "¦")]
    cells += [""] * (columns - len(cells))
    return cells if last is None else [*cells[:-1], last]


def _compressed(case, result):
    report, error = result["report"], result["report"]["error_estimate"]
    first = report["format"].upper() if case.table == "compression" else f"{report['n_params']:,}"
    met = "" if report["rtol_met"] else " **not met**"
    return [
        first,
        f"{report['rtol']:g}",
        f"{report['storage_percent']:.3g}",
        f"{report['storage_bytes'] / 1e6:,.1f}",
        f"{error['value']:.2e} ({error['low']:.2e} … {error['high']:.2e}){met}",
        str(report["attempts"]),
        seconds(np.median(result["compression_seconds"])),
        seconds(np.median(result["input_seconds"])),
        *_products(result),
    ]


def _products(result):
    """Products of H̃, their part of the bound, products of H."""
    found = result.get("products")
    if found is None:
        return [f"**{result.get('failed')}**", "", ""]
    times = {name: milliseconds(each["seconds"]["median"]) for name, each in found.items()}
    bound = " / ".join(f"{100 * found[f'compressed {k}']['fraction']:.0f}" for k in (1, 64))
    return [f"{times['compressed 1']} / {times['compressed 64']}", f"{bound} %", f"{times['exact 1']} / {times['exact 64']}"]


def _solved(found):
    refined = found["refined"]
    how = "" if "iterations" not in found else f" ({found['iterations']} iterations, {found['method'].upper()})"
    return [
        f"{found['damping']:.3g}",
        f"{found['error_spectral']:.2e}",
        seconds(found["factor_seconds"]),
        " / ".join(map(milliseconds, found["solve_seconds"].values())) + how,
        str(found["columns"]),
        f"{found['compressed_residual']:.1e}",
        f"{found['exact_residual']:.1e}",
        f"{refined['residual']:.1e} ({refined['columns']} columns, asked {refined['rtol']:g})",
        str(refined["iterations"]),
        seconds(refined["seconds"]),
    ]


def seconds(value):
    """For a table."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def milliseconds(value):
    """Of seconds, for a table."""
    return f"{1e3 * value:,.{0 if value >= 0.1 else 1 if value >= 1e-3 else 2}f}"
