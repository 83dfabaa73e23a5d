"""The page of exact and sampled entries, docs/ENTRIES.md, from the results of `benchmarks.entries`."""

from statistics import median

from benchmarks.tables_page import milliseconds, origin, table

HEAD = """# Entries: exact and sampled

Made by `python -m benchmarks.entries --write`: not written by hand. Formulas: [MATHEMATICS.md](MATHEMATICS.md), "Sampled entries".

Four ways to H[I, J] of a matrix of Gram type with n samples, d outputs, N parameters:

* **grouped** (`[curvature] entries = "exact"`, the default): exact, by pairs of neurons (`curvature/entries.py`);
* **Gram**: exact, the product of the Jacobian's columns, n·d multiplications an entry; **one by one**: the same for every entry alone;
* **sampled** (`entries = "sampled"`): c of the n samples a block, c = 1/ε² or `samples_per_entry`, drawn with probabilities made for the block
  (`curvature/sampled.py`), here ε = 0.1, c = 100; of a single entry it is the published method;
* **one draw** (`SampledEntries(…, global_draw=True)`, no key of a job): the same c samples for all blocks: positive semidefinite.

Deviations of sampled entries are those of the mean over draws: E ‖H̃_IJ − H_IJ‖_F² ≤ tr H_II tr H_JJ / c, of the whole matrix (tr H)² / c. Where the bound is far above ‖H_IJ‖_F — blocks off
the diagonal, whose samples cancel — the deviation is too: sampling knows the size of the samples' parts, not of their sum.
"""

USE = """## How to use them

Products, diagonal and certificates stay exact with `entries = "sampled"`: what a compression says of its error holds. `sampling = "rows"` (the default then), dense and block-diagonal
matrices use entries alone; a sketch, `format = "auto"`, `distance = "auto"`, structured parts combine them with exact products and are refused: the difference is noise of
full rank. kronecker-sum, low-rank, none and data-woodbury use no entries and are as exact as ever (jobs refuse the combination). Where c ≥ n entries are exact. Fewer samples with a
known error for products and entries alike: `[data] quadrature` (MATHEMATICS.md, "Fewer samples").
"""

KINDS = {"neighbours": "next to each other", "scattered": "scattered"}


def page(found):
    """Markdown of {cases}."""
    cases = found["cases"]
    blocks = [(case, row) for case in cases for row in case["rows"] if row["size"] > 1]
    pairs = [(case, row) for case in cases for row in case["rows"] if row["size"] == 1]
    parts = [HEAD, "## When each wins\n", conclusions(cases, blocks, pairs), USE, "## Networks\n", networks(cases)]
    parts += ["## Single entries, microseconds\n", table(("network", "n", "grouped", "Gram", "sampled", "one draw"), [pair_row(*each) for each in pairs])]
    columns = ("network", "n", "block", "parameters", "grouped", "Gram", "one by one", "sampled", "one draw", "c = 10,000")
    errors = ("sampled: error of block", "of bound", "one draw: error of block")
    parts += ["## Blocks, milliseconds\n", table((*columns, *errors), [block_row(*each) for each in blocks])]
    parts += [f"Processor seconds of one thread, medians; Gram and one by one from 1,000 samples, for n of them. {measured_on(found)}.\n"]
    return "\n".join(parts)


def measured_on(found):
    """Where, when."""
    return "Measured " + origin(found["cases"])


def networks(cases):
    """What was measured, and what the noise of the whole matrix is."""
    columns = ("network", "layers", "N", "d", "n", "κ", "tr H / ‖H‖_F", "error of the whole with c = 100, at most", "c for 1e-2")
    rows = []
    for case in cases:
        widths, ratio = "-".join(map(str, case["widths"])), case["ratio"]
        kernel = "stored" if case["stored"] else "made anew"
        rows.append((case["case"], widths, f"{case['N']:,}", str(case["d"]), f"{case['n']:,}", kernel, f"{ratio:.3g}", f"{ratio / 10:.2g}", f"{(100 * ratio) ** 2:,.0f}"))
    return table(columns, rows)


def pair_row(case, row):
    """Microseconds."""
    ways = ("grouped", "gram", "sampled", "one draw")
    return case["case"], f"{case['n']:,}", *(f"{1e6 * row['seconds'][way]:,.0f}" for way in ways)


def block_row(case, row):
    """Milliseconds, and errors."""
    ways = ("grouped", "gram", "one by one", "sampled", "one draw", "sampled, 10,000")
    times = (milliseconds(row["seconds"][way]) if way in row["seconds"] else "" for way in ways)
    sampled, one = row["errors"]["sampled"], row["errors"]["one draw"]
    errors = (f"{sampled['of block']:.2g}", f"{sampled['of bound']:.2f}", f"{one['of block']:.2g}")
    return case["case"], f"{case['n']:,}", f"{row['size']} × {row['size']}", KINDS[row["kind"]], *times, *errors


def ratios(rows, slow, fast):
    """[times of `slow` over those of `fast`], increasing."""
    return sorted(row["seconds"][slow] / row["seconds"][fast] for _, row in rows if fast in row["seconds"])


def factor(value):
    """A ratio, for a sentence."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def compared(rows, slow, fast):
    """How often and by how much `fast` takes less, in words."""
    found = ratios(rows, slow, fast)
    if not found:
        return "not measured"
    wins = sum(each > 1 for each in found)
    return f"in {wins} of {len(found)} cases (ratio {factor(found[0])} … {factor(found[-1])}, median {factor(median(found))})"


def conclusions(cases, blocks, pairs):
    """What the numbers say, made from them."""
    lines = [f"* **Grouped against Gram** (both exact): grouped is faster {compared(blocks, 'gram', 'grouped')} of blocks, than one by one {compared(blocks, 'one by one', 'grouped')}."]
    lines += [f"* **A single entry**: sampled is faster than grouped {compared(pairs, 'grouped', 'sampled')}, than Gram {compared(pairs, 'gram', 'sampled')}.{dear(pairs)}"]
    for kind, name in KINDS.items():
        some = [each for each in blocks if each[1]["kind"] == kind]
        lines += [f"* **Blocks of parameters {name}**: sampled with c = 100 is faster than grouped {compared(some, 'grouped', 'sampled')}{by_samples(some)}."]
    many = [each for each in blocks if "sampled, 10,000" in each[1]["seconds"]]
    if many:
        found = [row["errors"]["sampled, 10,000"]["of block"] for _, row in many]
        lines += [f"* **c = 10,000** (n = {many[-1][0]['n']:,}): faster than grouped {compared(many, 'grouped', 'sampled, 10,000')}, its error {min(found):.2g} … {max(found):.2g} of the block's norm."]
    lines += [f"* **One draw for all** is faster than grouped {compared(blocks, 'grouped', 'one draw')}, than a draw a block {compared(blocks, 'sampled', 'one draw')}: no probabilities of a block, and all of `entries.py` with c in place of n."]
    errors = sorted(row["errors"]["sampled"]["of block"] for _, row in blocks)
    bound = sorted(row["errors"]["sampled"]["of bound"] for _, row in blocks)
    large = sum(each > 1 for each in errors)
    lines += [f"* **Errors with c = 100**: {bound[0]:.2f} … {bound[-1]:.2f} of the bound √(tr H_II tr H_JJ / c), but {errors[0]:.2g} … {errors[-1]:.2g} of ‖H_IJ‖_F (median {median(errors):.2g}); in {large} of {len(errors)} blocks the error is larger than the block."]
    ratio = sorted(case["ratio"] for case in cases)
    reached = f"{ratio[0] / 10:.2g} … {ratio[-1] / 10:.2g}"
    lines += [f"* **Of the whole matrix** c = 100 leaves up to {reached} of ‖H‖_F here (table below): an rtol below that takes c ∝ 1/rtol², soon more than n, and then exact entries cost less.{verdict(blocks, errors)}"]
    return "\n".join(lines) + "\n"


def dear(pairs):
    """Where a single sampled entry pays."""
    wins = [f"{case['case']}, n = {case['n']:,}" for case, row in pairs if row["seconds"]["sampled"] < row["seconds"]["grouped"]]
    return f" It pays for: {'; '.join(wins)}." if wins else " Grouped entries with few samples or a stored κ cost less than the probabilities."


def by_samples(rows):
    """Medians of the ratio grouped / sampled by n, in words."""
    counts = sorted({case["n"] for case, _ in rows})
    parts = [f"n = {n:,}: {factor(median(ratios([each for each in rows if each[0]['n'] == n], 'grouped', 'sampled')))}" for n in counts]
    return f"; medians of the ratio by n: {', '.join(parts)}"


def verdict(blocks, errors):
    """Whether exact or sampled entries are to be had by default."""
    gain, error = median(ratios(blocks, "grouped", "sampled")), median(errors)
    saved = f"With c = 100 sampling takes 1/{factor(gain)} of the time of exact entries (median) for an error of {100 * error:.0f} % of a block (median)."
    if error <= 0.1:
        return f" {saved}"
    return f" {saved} Exact grouped entries are the right default; sampled ones are for rough looks at many scattered entries of many samples and outputs."
