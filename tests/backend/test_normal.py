"""Normal numbers by counter: Random123's known answers, the compiled kernel against its twin, any rows and columns, their distribution."""

import numpy as np
import pytest

from hpcHess.backend import normal

ROWS = np.array([5, 0, 3, 2**33 + 7, 5, 1000], np.int64)


def test_known_answers_of_philox():
    """Random123 1.14, tests/kat_vectors."""
    ones = 0xFFFFFFFF
    for counter, key, known in (
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones, ones), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        found = normal.philox(np.array(counter, np.uint64)[:, None], key)
        assert " ".join(f"{int(value):08x}" for value in found[:, 0]) == known


def reference(columns):
    result = np.empty((len(ROWS), len(columns)), np.float32)
    normal.normal_rows(normal.key_of(3, "a"), ROWS, columns, result)
    return result


@pytest.mark.parametrize("columns", [range(0, 8), range(3, 4), range(5, 18), range(4, 4)])
def test_any_rows_and_columns_are_those_of_the_matrix(columns):
    whole, found = reference(range(20)), normal.gaussian(3, "a", ROWS, columns)
    assert found.shape == (len(ROWS), len(columns)) and found.dtype == np.float32
    assert np.abs(found - whole[:, columns.start : columns.stop]).max(initial=0) <= 2e-6, "the polynomials' rounding"
    assert np.array_equal(reference(columns), whole[:, columns.start : columns.stop])
    assert np.array_equal(normal.gaussian(3, "a", ROWS[::-1], columns, np.float64), found[::-1])


def test_matrices_of_other_names_and_seeds_differ():
    first = normal.gaussian(3, "a", ROWS, range(4))
    for other in (normal.gaussian(3, "b", ROWS, range(4)), normal.gaussian(4, "a", ROWS, range(4)), normal.gaussian(3 + 2**32, "a", ROWS, range(4))):
        assert not np.isclose(first, other).any()
    assert np.array_equal(first[0], first[4]) and np.abs(first[0] - first[1]).min() > 0


def test_moments():
    """Means, variances, fourth moments and correlations of neighbours within five of their standard deviations."""
    X = normal.gaussian(1, "moments", np.arange(100_000), range(16), np.float64)
    n = X.size
    for value, expected, variance in ((X.mean(), 0, 1), ((X**2).mean(), 1, 2), ((X**4).mean(), 3, 96), ((X[1:] * X[:-1]).mean(), 0, 1)):
        assert abs(value - expected) <= 5 * np.sqrt(variance / n)
    assert abs((X[:, 1:] * X[:, :-1]).mean()) <= 5 / np.sqrt(n) and 4.5 < np.abs(X).max() < 5.9
