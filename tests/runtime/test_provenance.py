"""Provenance is plain values, whatever the environment says."""

import json

import pytest
from mpi4py import MPI

from hpcHess.runtime.provenance import provenance


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("2,1", 2), ("0", 1)])
def test_threads_of_the_outermost_level(monkeypatch, given, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    found = provenance(MPI.COMM_SELF)
    assert found["threads"] == threads and found["ranks"] == 1 and json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("given", ["", "many"])
def test_threads_that_are_no_number(monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert provenance(MPI.COMM_SELF)["threads"] >= 1
