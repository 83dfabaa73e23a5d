"""Standard normal numbers by counter, on the host: the same whatever the backend, the number of ranks and of threads.

`normal_rows` is the readable twin of native/normal.cpp, which is used where it is built.
"""

import zlib

import numpy as np

try:
    from hpcHess import _native
except ImportError:
    _native = None

ROUNDS = 10
_PIECE = 1 << 18  # numbers at a time


def gaussian(seed, stream, rows, columns, dtype=np.float32):
    """The rows `rows` (int64 [n]) and the columns `columns` (a range) of the standard normal matrix named `stream`, [n, k].

    Drawn in float32, so float64 holds the same numbers. Not collective.
    """
    result = np.empty((len(rows), len(columns)), np.float32)
    if _native is None:
        normal_rows(key_of(seed, stream), rows, columns, result)
    else:
        _native.normal_rows(*key_of(seed, stream), np.ascontiguousarray(rows, np.int64), columns.start, result)
    return result.astype(dtype, copy=False)


def key_of(seed, stream):
    """(k0, k1) uint32 of a matrix: its seed, and its name mixed with what the seed has beyond 32 bits."""
    high = int(seed) >> 32
    name = zlib.crc32(stream.encode() + high.to_bytes(8, "little") if high else stream.encode())
    return int(seed) & 0xFFFFFFFF, name


def normal_rows(key, rows, columns, out):
    """Rows `rows` (int64 [n]) and columns `columns` (a range) of a standard normal matrix → out float32 [n, k].

    (x₀, x₁, x₂, x₃) = Philox4x32-10 (Salmon and others, SC 2011) of the counter (i mod 2³², ⌊i / 2³²⌋, ⌊j / 4⌋, 0) gives the entries (i, j) of four
    columns by Box–Muller: √(−2 ln u) (cos πa, sin πa) with u = (⌊x₀ / 2⁸⌋ + 1) / 2²⁴, a = x₁ / 2³¹ as a signed number, and again of x₂, x₃.
    """
    first, last = columns.start // 4, -(-columns.stop // 4)
    step = max(1, _PIECE // max(1, 4 * (last - first)))
    for lo in range(0, len(rows), step):
        i = rows[lo : lo + step, None].astype(np.uint64)
        counter = np.zeros((4, len(i), last - first), np.uint64)
        counter[0], counter[1], counter[2] = i & 0xFFFFFFFF, i >> np.uint64(32), np.arange(first, last, dtype=np.uint64)
        x = philox(counter, key).astype(np.uint32)
        radius = np.sqrt(-2 * np.log(((x[::2] >> 8).astype(np.float64) + 1) / 2.0**24))
        turn = np.pi / 2.0**31 * x[1::2].view(np.int32)
        numbers = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)  # [2 pairs, 2, n, groups]
        numbers = numbers.reshape(4, len(i), -1).transpose(1, 2, 0).reshape(len(i), -1)
        out[lo : lo + step] = numbers[:, columns.start - 4 * first : columns.stop - 4 * first]


def philox(counter, key):
    """Philox4x32-10 of counters uint64 [4, …] < 2³² under two 32-bit keys."""
    c0, c1, c2, c3 = counter
    k0, k1 = map(np.uint64, key)
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(ROUNDS):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> np.uint64(32)) ^ c1 ^ k0, b & mask, (a >> np.uint64(32)) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack([c0, c1, c2, c3])
