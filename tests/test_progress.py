"""Progress of a task: a bar on a terminal, plain lines in files and pipes."""

import io
import sys

import pytest
from domainbed.lib import misc

from domainbed_carft import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def frequent(monkeypatch):
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0)


def count(numbers, **options):
    return list(progress_bar.progress(numbers, description="counting", unit="batch", **options))


def test_pipe_gets_line_per_interval_and_none_for_short_task(capsys, monkeypatch):
    assert count(range(3)) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "counting: 0 of 3 batches (0%), after 00:00",
        "counting: 3 of 3 batches (100%), after 00:00",
    ]
    count(range(3), delay=100)
    assert not capsys.readouterr().err

    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0)
    count(range(3))
    assert "counting: 1 of 3 batches (33%), after 00:00" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_progress_is_not_written_to_errors_of_job(tmp_path, monkeypatch, frequent, kind):
    """The last line of the errors is reported as the reason why a job failed."""
    original = kind()
    monkeypatch.setattr(sys, "stderr", original)
    monkeypatch.setattr(sys, "__stderr__", original)
    with misc.tee_output(str(tmp_path)):
        count(range(3))
        print("an error", file=sys.stderr)
    assert (tmp_path / "err.txt").read_text() == "an error\n"
    assert ("\rcounting: 100%|" in original.getvalue()) == (kind is Terminal)
