"""Random numbers determined by seed, stream name, global row and column alone, hence independent of the number of ranks."""

import zlib

import numpy as np

from hpcHess.parallel.threads import in_turn

_CHUNK = 1 << 16
_TURNED = 8  # columns of a chunk that are drawn before they are stored


def gaussian_rows(seed, stream, lo, hi, columns, dtype=np.float32):
    """Rows lo … hi − 1 of a standard normal matrix, [hi − lo, len(columns)].

    `stream` names the matrix, `columns` (a range) its columns. Entry (i, j) comes from Philox (Salmon and others, SC 2011)
    with key (seed, stream) and counter (row chunk, column); drawn in float32, so float64 holds the same numbers. Not collective.
    """
    return _rows(lambda generator, count: generator.standard_normal(count, np.float32), seed, stream, lo, hi, columns, dtype)


def uniform_rows(seed, stream, lo, hi, columns):
    """The same of numbers that are uniform in [0, 1), float64."""
    return _rows(lambda generator, count: generator.random(count), seed, stream, lo, hi, columns, np.float64)


def _rows(draw, seed, stream, lo, hi, columns, dtype):
    """[hi − lo, k], row-major: a chunk at a time by column, turned while it is in the cache; the chunks on the threads of the rank."""
    result = np.empty((hi - lo, len(columns)), dtype)
    key = np.array([seed, zlib.crc32(stream.encode())], np.uint64)

    def fill(chunk):
        first = chunk * _CHUNK
        a, b = max(lo, first), min(hi, first + _CHUNK)
        for at in range(0, len(columns), _TURNED):
            part = columns[at : at + _TURNED]
            drawn = np.empty((len(part), b - a), dtype)
            for row, column in zip(drawn, part, strict=True):
                bits = np.random.Philox(key=key, counter=np.array([0, chunk, column, 0], np.uint64))
                row[:] = draw(np.random.Generator(bits), b - first)[a - first :]
            result[a - lo : b - lo, at : at + len(part)] = drawn.T

    in_turn(range(lo // _CHUNK, -(-hi // _CHUNK)), fill)
    return result


def scramble(indices, seed):
    """A pseudo-random uint64 for each index (splitmix64, Steele and others, OOPSLA 2014): sampling by index, whoever owns it."""
    with np.errstate(over="ignore"):
        x = np.asarray(indices).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64((seed * 2 + 1) % (1 << 64))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
