"""What MPI says of device arrays, and exchanges of them: stand-ins whose pointers any MPI can read."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from hpcHess.parallel.device import cuda_aware, library_is_cuda_aware
from hpcHess.parallel.exchange import Halo, repartition
from hpcHess.parallel.ownership import starts_of
from tests.backend.fake_cupy import FakeCupy


def library(**functions):
    return SimpleNamespace(**functions)


def mpich(answer):
    def query(kind, found):
        assert kind == 0
        found._obj.value = answer
        return 0

    return library(MPIX_GPU_query_support=query)


@pytest.mark.parametrize(
    "answer, given, environment",
    [
        (False, library(), {}),
        (True, library(MPIX_Query_cuda_support=lambda: 1), {}),
        (False, library(MPIX_Query_cuda_support=lambda: 0), {}),
        (True, mpich(1), {}),
        (False, mpich(0), {}),
        (True, library(), {"MPICH_GPU_SUPPORT_ENABLED": "1"}),
        (False, library(), {"MPICH_GPU_SUPPORT_ENABLED": "0"}),
        (True, library(), {"HPCHESS_CUDA_AWARE_MPI": "1"}),
        (False, library(MPIX_Query_cuda_support=lambda: 1), {"HPCHESS_CUDA_AWARE_MPI": "0"}),
    ],
)
def test_what_libraries_say(answer, given, environment):
    assert library_is_cuda_aware(given, environment) is answer


def test_ranks_agree_once(comm, monkeypatch):
    """One rank without support is enough for the host; the communicator remembers."""
    monkeypatch.setenv("HPCHESS_CUDA_AWARE_MPI", "0" if comm.rank == comm.size - 1 else "1")
    mine = comm.Dup()
    assert cuda_aware(mine) is False
    os.environ["HPCHESS_CUDA_AWARE_MPI"] = "1"
    other = comm.Dup()
    assert cuda_aware(mine) is False and cuda_aware(other) is True
    for each in (mine, other):
        each.Free()


@pytest.mark.parametrize("k", [1, 3])
def test_exchanges_of_device_arrays(comm, k):
    """The same rows as from host arrays, and nothing is converted on the way (the stand-in would raise)."""
    cupy, rng = FakeCupy(), np.random.default_rng(0)
    counts = np.array([3, 0, 4, 2, 5, 1, 2, 3])
    owned = np.array([i * 8 // comm.size for i in range(comm.size + 1)])
    own = starts_of(counts)[owned]
    whole = rng.standard_normal((20, k))
    mine = whole[own[comm.rank] : own[comm.rank + 1]]
    target = np.array([0, *([20] * comm.size)])
    found = repartition(comm, cupy.asarray(mine), own, target, cupy)
    np.testing.assert_array_equal(cupy.asnumpy(found), repartition(comm, mine, own, target))
    pairs = np.array([(a, b) for a in range(8) for b in range(a, 8) if (a + b) % 3 != 1])
    halo = Halo(comm, pairs, owned, counts)
    fetched = halo.fetch(mine)
    np.testing.assert_array_equal(cupy.asnumpy(halo.fetch(cupy.asarray(mine), cupy)), fetched)
    expected = halo.accumulate(mine.copy(), 2 * fetched)
    np.testing.assert_array_equal(cupy.asnumpy(halo.accumulate(cupy.asarray(mine.copy()), cupy.asarray(2 * fetched), cupy)), expected)
    owner = np.searchsorted(owned, np.arange(8), side="right")
    needed = {(owner[a], b) for a, b in pairs if owner[a] != owner[b]}  # (who needs it, the node)
    times = np.array([1 + 2 * sum(node == b for _, b in needed) for node in range(8)])
    np.testing.assert_allclose(expected, mine * np.repeat(times, counts)[own[comm.rank] : own[comm.rank + 1], None])
