"""The page of exact and sampled entries: made from a real run of two tiny networks; its conclusions follow from the numbers."""

import copy
import json

import numpy as np
import pytest
from mpi4py import MPI

from benchmarks import entries
from benchmarks.entries_page import page
from benchmarks.gram import gram_pairs
from hpcHess.curvature.gauss_newton import GaussNewton

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="one process")


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    store = tmp_path_factory.mktemp("entries") / "r.json"
    assert entries.main(["--quick", "--output", str(store)]) == 0
    return json.loads(store.read_text("utf-8"))


def test_the_page_has_the_sections_and_networks(found):
    written = entries.PAGE.read_text("utf-8")
    assert headings(written) == headings(page(found))
    for case in entries.CASES:
        for n in case.counts:
            assert f"| {case.name} | {'-'.join(map(str, case.widths))} |" in written and f"| {case.name} | {n:,} | " in written


def test_a_quick_run(found):
    for case in found["cases"]:
        assert [(row["kind"], row["size"]) for row in case["rows"]] == [("pair", 1), ("neighbours", 16), ("scattered", 16)]
        for row in case["rows"]:
            assert all(value > 0 for value in row["seconds"].values())
            assert row["errors"]["sampled"]["draws"] == 100 and 0 <= row["errors"]["sampled"]["of bound"] < 1.5


def test_conclusions_follow_from_the_numbers(found):
    changed = copy.deepcopy(found)
    for case in changed["cases"]:
        for row in case["rows"]:
            row["seconds"]["grouped"], row["seconds"]["sampled"] = 0.6, 0.2
            row["errors"]["sampled"] |= {"of block": 2.0}
    text = page(changed)
    assert "sampled with c = 100 is faster than grouped in 2 of 2 cases (ratio 3.0 … 3.0, median 3.0)" in text
    assert "in 4 of 4 blocks the error is larger than the block" in text and "an error of 200 % of a block (median)" in text


def test_the_gram_route_gives_the_same_block():
    for case in entries.QUICK:
        operator = GaussNewton(*entries.problem(case.widths, case.loss, 50), comm=MPI.COMM_SELF)
        I, J = entries.indices(operator, "scattered", 9)
        for (found, _), (rows, columns) in zip(gram_pairs(operator, [(I, J[::-1]), (J[:1], I)], 50), [(I, J[::-1]), (J[:1], I)], strict=True):
            np.testing.assert_allclose(found, operator.entries(rows, columns), atol=1e-12)


def test_bad_arguments():
    with pytest.raises(SystemExit) as ended:
        entries.main(["--quick", "--write"])
    assert ended.value.code == 2
