"""How far a task is: a bar on a terminal, plain lines in files and pipes."""

import io
import sys

import pytest
from domainbed.lib import misc
from sweep_folders import write_launched_sweep

from domainbed_carft import text
from domainbed_carft.sweep import printing, states


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def frequent(monkeypatch):
    monkeypatch.setattr(text, "LINE_SECONDS", 0)


def count(numbers, **options):
    return list(text.progress(numbers, description="counting", unit="batch", **options))


def test_a_pipe_gets_a_line_at_each_interval_and_none_of_a_short_task(capsys, monkeypatch):
    assert count(range(3)) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "counting: 0 of 3 batches (0%), after 00:00",
        "counting: 3 of 3 batches (100%), after 00:00",
    ]
    count(range(3), delay=100)
    assert not capsys.readouterr().err

    monkeypatch.setattr(text, "LINE_SECONDS", 0)
    count(range(3))
    assert "counting: 1 of 3 batches (33%), after 00:00" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_progress_goes_to_the_terminal_and_not_into_a_jobs_errors(
    tmp_path, monkeypatch, frequent, kind
):
    """The last line of the errors is taken for the reason why the job failed."""
    original = kind()
    monkeypatch.setattr(sys, "stderr", original)
    monkeypatch.setattr(sys, "__stderr__", original)
    with misc.tee_output(str(tmp_path)):
        count(range(3))
        print("an error", file=sys.stderr)
    assert (tmp_path / "err.txt").read_text() == "an error\n"
    assert ("\rcounting: 100%|" in original.getvalue()) == (kind is Terminal)


def test_a_closed_pipe_does_not_end_a_task(monkeypatch, frequent):
    class Closed(io.StringIO):
        def isatty(self):
            return False

        def write(self, words):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    assert count(range(3)) == [0, 1, 2]


def test_a_sweep_into_a_pipe_prints_lines(tmp_path, capsys, frequent):
    jobs = write_launched_sweep(tmp_path / "out")
    with printing.show_progress([states.get_status(job, {}) for job in jobs], {}):
        pass
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert printed.splitlines()[-1].endswith(f"0 of {len(jobs)} jobs done, after 00:00")
