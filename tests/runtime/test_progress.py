"""Phases: what is shown, what is timed."""

import io
import os
import re
import time

import pytest

from hpcHess.runtime.progress import Progress, Silent, ends_at_terminal
from hpcHess.runtime.timing import Timings


def test_lines_at_start_and_end_of_nested_phases():
    stream = io.StringIO()
    progress = Progress(stream, bar=False)
    with progress.phase("compress"), progress.phase("sketch", total=3) as steps:
        steps.advance()
        steps.advance(2)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["compress …", "  sketch …"]
    assert re.fullmatch(r"  sketch: done in \d+\.\d s", lines[2]) and re.fullmatch(r"compress: done in \d+\.\d s", lines[3])
    assert len(lines) == 4


def test_at_most_one_line_per_interval():
    stream = io.StringIO()
    with Progress(stream, bar=False, interval=0.05).phase("sketch", total=1000) as steps:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.18:
            steps.advance()
    between = stream.getvalue().splitlines()[1:-1]
    assert 1 <= len(between) <= 4 and all(re.match(r"sketch: \d+/1000, \d\.\d s", line) for line in between)


def test_a_failed_phase_is_not_called_done():
    stream = io.StringIO()
    progress = Progress(stream, bar=False)
    with pytest.raises(ZeroDivisionError), progress.phase("sketch"):
        raise ZeroDivisionError
    assert "done" not in stream.getvalue()
    with progress.phase("next"):
        pass
    assert "\nnext …" in stream.getvalue()  # the depth is put back


def test_bars():
    pytest.importorskip("tqdm")
    stream = io.StringIO()
    progress = Progress(stream, bar=True)
    with progress.phase("sketch", total=4) as steps:
        for _ in range(4):
            steps.advance()
        progress.write("between")
    with progress.phase("unknown length") as steps:
        steps.advance(7)
    shown = stream.getvalue()
    assert "sketch:" in shown and "0/4" in shown and "between\n" in shown
    assert re.search(r"sketch: done in \d+\.\d s\n", shown) and "unknown length … " in shown


def test_a_pipe_is_no_terminal_and_a_pseudo_terminal_is():
    assert not ends_at_terminal(io.StringIO())
    parent, child = os.openpty()
    with os.fdopen(parent, "rb"), os.fdopen(child, "w") as stream:
        assert ends_at_terminal(stream)


def test_a_reader_that_has_gone_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    progress = Progress(stream, bar=False)
    with progress.phase("sketch"):
        pass
    progress.write("more")
    stream.close()


def test_timings_nest_and_add_up():
    timings = Timings()
    for _ in range(2):
        with timings.phase("compress"):
            time.sleep(0.01)
            with timings.phase("sketch"):
                time.sleep(0.02)
    seconds = timings.as_dict()
    assert list(seconds) == ["compress", "compress/sketch"]
    assert 0.04 <= seconds["compress/sketch"] <= seconds["compress"] - 0.02


@pytest.mark.parametrize("progress", [Silent(), Progress(io.StringIO(), bar=False)])
def test_silent_and_shown_phases_keep_the_same_times(progress, capsys):
    with pytest.raises(ZeroDivisionError), progress.phase("a"), progress.phase("b", total=2) as steps:
        steps.advance(2)
        raise ZeroDivisionError
    with progress.phase("c"):
        pass
    assert list(progress.timings.as_dict()) == ["a", "a/b", "c"]
    assert capsys.readouterr() == ("", "")
