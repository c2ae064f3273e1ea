"""How far a task is: a bar on a terminal, plain lines in files and pipes, and a pool's log."""

import ast
import io
import re
import sys
from pathlib import Path

import pytest
from domainbed.lib import misc
from sweep_folders import finish, launched, record
from sweep_jobs import command, run, wait_until

from domainbed_carft import text
from domainbed_carft.sweep import printing, states


class Terminal(io.StringIO):
    def isatty(self):
        return True


def count(numbers, **options):
    return list(text.progress(numbers, description="counting", unit="batch", **options))


def test_a_pipe_gets_a_line_at_each_interval_and_a_last_one(capsys, monkeypatch):
    count(range(3))
    first, last = capsys.readouterr().err.splitlines()
    assert first == "counting: 0 of 3 batches (0%), after 00:00"
    assert last == "counting: 3 of 3 batches (100%), after 00:00"

    monkeypatch.setattr(text, "LINE_SECONDS", 0)
    assert count(range(3)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "counting: 1 of 3 batches (33%), after 00:00"
    assert lines[0] == first and lines[-1] == last and len(lines) in (4, 5)


def test_a_short_task_with_a_delay_prints_nothing_into_a_pipe(capsys):
    count(range(3), delay=1)
    assert not capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert count(range(3)) == [0, 1, 2]
    assert "\rcounting: 100%|" in terminal.getvalue()


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_no_progress_goes_into_a_jobs_errors(tmp_path, monkeypatch, kind):
    """Its last line is taken for the reason why the job failed."""
    monkeypatch.setattr(text, "LINE_SECONDS", 0)
    original = kind()
    monkeypatch.setattr(sys, "stderr", original)
    monkeypatch.setattr(sys, "__stderr__", original)
    with misc.tee_output(str(tmp_path)):
        count(range(3))
        print("an error", file=sys.stderr)

    assert (tmp_path / "err.txt").read_text() == "an error\n"
    assert ("counting" in original.getvalue()) == (kind is Terminal)


def test_a_closed_pipe_does_not_end_a_task(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(closed, "isatty", lambda: False)
    monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(text, "LINE_SECONDS", 0)
    assert count(range(3)) == [0, 1, 2]


def test_all_long_tasks_show_progress():
    """A bar of their own would print carriage returns into logs."""
    calls = {
        path.name
        for path in Path(text.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm"
    }
    assert not calls  # text.progress makes them all


def test_a_sweeps_bar_estimates_the_rest_once_a_job_has_ended(tmp_path, monkeypatch):
    """Before, a demo of three minutes began with an estimate of 36."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(printing, "LEAST_SECONDS", 0.01)
    jobs = launched(tmp_path / "out")
    finish(jobs[0])

    with printing.bar([states.status(job, {}) for job in jobs], {}):
        record(jobs[1], step=5)
        wait_until(lambda: "17/" in terminal.getvalue(), 20)
        assert "<" not in terminal.getvalue() and "step/s" not in terminal.getvalue()
        finish(jobs[1])
        wait_until(lambda: f"2 of {len(jobs)} jobs" in terminal.getvalue(), 20)
    last_line = terminal.getvalue().rpartition("\r")[2]
    assert re.search(r"\[\d\d:\d\d<\d", last_line)


def test_a_sweep_into_a_pipe_prints_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "LINE_SECONDS", 0)
    jobs = launched(tmp_path / "out")
    with printing.bar([states.status(job, {}) for job in jobs], {}):
        pass
    printed = capsys.readouterr().err

    assert "\r" not in printed
    assert printed.splitlines()[-1].endswith(f"0 of {len(jobs)} jobs done, after 00:00")


@pytest.mark.parametrize("name", ["local", "pool"])
def test_a_pool_prints_the_jobs_that_are_not_done_and_no_others(name, tmp_path, capfd):
    good = tmp_path / "good"
    bad = tmp_path / "bad"
    code = "sys.exit(2)"
    run(name, [command(good), command(bad, code=code, words="no \x1b]0;own flag")])
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"{name}: {bad}: failed 1 time, exit status 2: no \\x1b]0;own flag"

    run(name, [command(good)])  # nothing is run
    assert not capfd.readouterr().err
