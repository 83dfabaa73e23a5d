"""What the documents say is what the program does."""

from pathlib import Path

from hpcHess.runtime.jobfile import reference

DOCS = Path(__file__).parents[1] / "docs"


def test_job_reference_is_complete():
    assert reference().rstrip() in (DOCS / "JOBS.md").read_text()


def test_the_example_reader_stays_short():
    source = (DOCS / "read_factor_file.py").read_text()
    assert len(source.splitlines()) <= 60 and "import hpcHess" not in source
