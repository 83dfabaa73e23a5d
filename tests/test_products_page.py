"""The page of the products: made of real runs; a tiny one here."""

import numpy as np
import pytest
from mpi4py import MPI

from benchmarks import products
from hpcHess.curvature.from_job import KINDS

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="one process")


def test_the_page_has_a_row_for_every_case_and_kind():
    text = products.PAGE.read_text("utf-8")
    for case in products.CASES:
        for kind in products.PEERS:
            assert kind in KINDS and f"| {case} | {kind} |" in text


def test_a_tiny_run(capsys):
    products.main(["--tiny", "--samples", "20", "--vectors", "3", "--repeat", "1"])
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("| 12-5-12")]
    assert len(rows) == len(products.PEERS)
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert float(cells[2]) >= 0 and float(cells[3]) >= 0 and (cells[-1] == "–" or float(cells[-1]) < 1e-4)


@pytest.mark.parametrize("kind", products.PEERS)
def test_operations_are_those_of_the_sweeps(kind):
    """2 n k operations for every multiplication of a layer's matrices: [V] forward and its gradient; W forward and back above the first."""
    network, inputs, _ = products.problem("12-5-12, squared error", 7)
    args = type("Arguments", (), {"samples": 7, "vectors": 3})
    least = 2 * 7 * 3 * (2 * (5 * 13 + 12 * 6) + (4 if kind == "hessian" else 2) * 12 * 5)
    assert least <= products.flops(network, kind, args) <= 1.2 * least and inputs.dtype == np.float32
