"""Arrays once per host: contents, sharing, sub-communicators, sizes of zero, and when memory goes."""

import gc

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.parallel import shared
from hpcHess.parallel.shared import HostArray, share


@pytest.mark.parametrize("shape", [(7, 5), (0, 4), (), (3,)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_share_gives_rank_0s_array_to_all_read_only(comm, shape, dtype):
    expected = np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
    found = share(comm, expected if comm.rank == 0 else None)
    assert found.shape == shape and found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError):
        found[...] = 0


def test_share_in_pieces_and_from_a_transposed_array(comm, monkeypatch):
    monkeypatch.setattr(shared, "_PIECE", 24)
    expected = np.arange(35.0).reshape(5, 7).T
    np.testing.assert_array_equal(share(comm, expected if comm.rank == 0 else None), expected)


def test_ranks_of_a_host_fill_one_array(comm):
    with HostArray(comm, (11, 3), np.float64) as held:
        mine = held.share_of(11)
        held.array[mine] = held.host_comm.rank
        held.fence()
        size = held.host_comm.size
        owner = np.concatenate([np.full(11 * (r + 1) // size - 11 * r // size, r) for r in range(size)])
        np.testing.assert_array_equal(held.array, np.repeat(owner[:, None], 3, axis=1))
        held.host_comm.Barrier()
        if held.host_comm.rank == 0:
            held.array[0] = 17  # the same memory, not copies
        held.fence()
        assert np.all(held.array[0] == 17)
    assert held.array is None
    held.close()


def test_sub_communicators(comm):
    part = comm.Split(comm.rank % 2, comm.rank)
    found = share(part, np.full(4, comm.rank) if part.rank == 0 else None)
    assert np.all(found == comm.rank % 2)
    alone = share(MPI.COMM_SELF, np.full(2, comm.rank))
    assert np.all(alone == comm.rank)
    part.Free()


def test_memory_is_freed_when_no_rank_has_a_view_any_more(comm):
    duplicate = comm.Dup()
    windows = shared._host(duplicate)[1]
    many = shared._host(duplicate)[0].size > 1
    kept = HostArray(duplicate, (8,), np.float64)
    dropped = HostArray(duplicate, (8,), np.float64)
    view = dropped.array.reshape(2, 4)[1:].T if duplicate.rank == 0 else None
    del dropped
    gc.collect()
    third = HostArray(duplicate, (8,), np.float64)
    assert len(windows) == (3 if many else 0)  # rank 0 still has a view
    if view is not None:
        view[...] = 3.0
    del view
    gc.collect()
    fourth = HostArray(duplicate, (8,), np.float64)
    assert len(windows) == (3 if many else 0)  # one gone, one new
    for held in (fourth, third, kept):
        held.close()
    assert not windows
    duplicate.Free()
