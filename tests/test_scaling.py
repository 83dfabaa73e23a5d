"""The counting communicator against known operations, the model of the traffic, the rule that nothing grows faster than log P."""

import json
import pickle

import numpy as np
import pytest
from mpi4py import MPI

from benchmarks import scaling, scaling_counts
from benchmarks.figures.page import PAGE
from benchmarks.traffic import CountingComm, Traffic, buffer_size, size_of
from hpcHess.parallel.exchange import gather_rows, reduce_rows, repartition
from hpcHess.parallel.ownership import row_starts


@pytest.fixture
def counting(comm):
    traffic = Traffic()
    return CountingComm(comm, traffic), traffic


def of(traffic, phase):
    """(calls, bytes, messages) of a phase."""
    return np.array([*traffic.sites[phase].values()]).reshape(-1, 3).sum(axis=0).tolist()


def test_volumes_of_collectives(comm, counting):
    """By hand, with L = ⌈log₂P⌉; results are those of the communicator itself."""
    ranks, traffic = counting
    size, steps, part = comm.size, int(np.ceil(np.log2(comm.size))), (comm.size - 1) / comm.size
    a, total = np.full(12, float(comm.rank)), np.empty(12)
    text = "x" * 100
    words = len(pickle.dumps(text, -1))
    with traffic.phase("Allreduce"):
        ranks.Allreduce(a, total)
    with traffic.phase("bcast"):
        assert ranks.bcast(text) == text
    with traffic.phase("allgather"):
        assert ranks.allgather(text) == [text] * size
    with traffic.phase("allreduce"):
        assert ranks.allreduce(comm.rank, MPI.MAX) == size - 1
    with traffic.phase("Barrier"):
        ranks.Barrier()
    assert (total == size * (size - 1) / 2).all()
    if size == 1:
        assert not traffic.sites
        return
    assert of(traffic, "Allreduce") == [1, int(2 * 96 * part), 2 * steps] and of(traffic, "Barrier") == [1, 0, steps]
    assert of(traffic, "bcast") == [1, words * steps, steps] and of(traffic, "allgather") == [1, words * (size - 1), steps]
    assert of(traffic, "allreduce")[2] == 2 * steps
    ((where, call),) = traffic.sites["bcast"]
    assert call == "bcast" and where.startswith("tests/test_scaling.py:")


def test_volumes_of_exchanges(comm, counting):
    """gather_rows, reduce_rows, repartition of [n, k] float64 rows."""
    ranks, traffic = counting
    size, n, k = comm.size, 24, 3
    starts = row_starts(n, size)
    own = slice(*(int(at) for at in starts[comm.rank : comm.rank + 2]))
    whole = np.arange(n * k, dtype=float).reshape(n, k)
    with traffic.phase("gather"):
        np.testing.assert_array_equal(gather_rows(ranks, whole[own], starts), whole)
    with traffic.phase("reduce"):
        np.testing.assert_array_equal(reduce_rows(ranks, whole, starts), size * whole[own])
    all_to_first = np.array([0] + [n] * size)
    with traffic.phase("move"):
        moved = repartition(ranks, whole[own], starts, all_to_first)
    np.testing.assert_array_equal(moved, whole if comm.rank == 0 else whole[:0])
    if size == 1:
        return
    mine = 8 * k * (own.stop - own.start)
    assert of(traffic, "gather")[1] == 8 * n * k - mine and of(traffic, "reduce")[1] == int(8 * n * k * (size - 1) / size)
    sent = {call: counts for (_, call), counts in traffic.sites["move"].items()}["Alltoallv"]
    assert sent == [1, 8 * n * k - mine if comm.rank == 0 else mine, int(comm.rank != 0)]


def test_memory_of_a_phase(counting):
    import tracemalloc

    _, traffic = counting
    tracemalloc.start()
    with traffic.phase("large"):
        np.zeros(1 << 20)
    with traffic.phase("small"):
        pass
    tracemalloc.stop()
    assert 1 << 23 <= traffic.peaks["large"] < 1.1 * (1 << 23) and traffic.peaks["small"] < 1 << 16


def test_sizes_of_buffers():
    a = np.zeros(10)
    assert size_of(a) == buffer_size(a) == buffer_size([a, np.array([4, 6])]) == 80 and size_of([1, 2]) == len(pickle.dumps([1, 2], -1))


def test_counts_of_a_compression(comm):
    """Every phase is there, the matrix of several ranks moves what the model says at most, one rank tells nobody anything."""
    found = scaling_counts.counted(comm, 64)
    if comm.rank:
        return
    found = json.loads(json.dumps(found, allow_nan=False))
    phases = found["phases"]
    assert {"operator", "tree", "sketch", "skeletons", "verification", "exact product", "product H̃V", "Woodbury factors", "Woodbury solve"} <= set(phases)
    assert all(phase["memory"] > 0 for name, phase in phases.items() if name != "before") and found["n_params"] == 1210
    if comm.size == 1:
        assert all(phase["bytes"] == 0 for phase in phases.values())
        return
    exact = phases["exact product"]
    least = 2 * 8 * 1210 * scaling_counts.VECTORS * (comm.size - 1) / comm.size
    assert 0.99 * least <= exact["bytes"] <= 1.01 * exact["model"] + 16
    for name, phase in phases.items():
        if phase["model"]:
            assert phase["bytes"] <= 1.05 * phase["model"] + 64, name


def run_of(ranks, size, memory=1):
    site = {"a.py:1 bcast": [1, size, 1]}
    return {"ranks": ranks, "phases": {"p": {"sites": site, "memory": memory, "bytes": size, "messages": 1, "model": None}}}


def test_growth_beyond_the_logarithm_is_named():
    logarithmic = [run_of(p, int(1e6 * np.log2(p))) for p in (16, 32, 64)]
    assert scaling.violations(logarithmic) == ([], [])
    broken, small = scaling.violations([run_of(p, 10_000 * p) for p in (16, 32, 64)])
    assert len(broken) == 1 and "a.py:1 bcast" in broken[0] and "P^1.00" in broken[0] and not small
    broken, small = scaling.violations([run_of(p, 10 * p) for p in (16, 32, 64)])
    assert not broken and len(small) == 1
    broken, _ = scaling.violations([run_of(p, 1, 1_000_000 * p) for p in (16, 32, 64)])
    assert len(broken) == 1 and "memory" in broken[0]


def test_page_keeps_its_other_sections():
    text = "# P\n\n## Ranks: volume, messages, memory\n\nwords\n\n## GPUs\n\nmore\n"
    once = scaling.written(text, ["| a |"])
    again = scaling.written(once, ["| b |"])
    assert "words" in once and "| a |" in once and once.endswith("\n## GPUs\n\nmore\n") and "| a |" not in again and "| b |" in again
    assert "## Ranks: volume, messages, memory" in PAGE.read_text("utf-8")
