"""The pool launcher on real processes, and in DomainBed's registry."""

import os
import shlex
import sys

import pytest
from domainbed.command_launchers import REGISTRY

from domainbed_carft import launchers


def python(code, *arguments):
    """A command as a sweep writes it."""
    return " ".join(["python", "-c", shlex.quote(code), *map(shlex.quote, arguments)])


def test_the_registry_has_it():
    assert REGISTRY["pool"] is launchers.pool


def test_jobs_run_with_this_interpreter_and_one_thread(tmp_path):
    target = tmp_path / "it's one job's folder"
    code = (
        "import os, sys; open(sys.argv[1], 'w')"
        ".write(sys.executable + ' ' + os.environ['OMP_NUM_THREADS'])"
    )
    assert launchers.pool([python(code, str(target))]) == []
    assert target.read_text() == f"{sys.executable} 1"


def test_variables_before_the_command_are_set_as_a_shell_would(tmp_path):
    """T3A's and DPLCLIP's sweeps write their commands so."""
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['A'] + os.environ['B'])"
    command = python(code, str(tmp_path / "a=b"))
    assert launchers.pool([f"A='one two' B= {command}"]) == []
    assert (tmp_path / "a=b").read_text() == "one two"


def test_a_failure_is_told_and_stops_nothing(tmp_path, capfd):
    commands = [
        python("import sys; print('shown?'); sys.exit('no such data')"),
        python("import os; os.kill(os.getpid(), 9)"),
        python("open(__import__('sys').argv[1], 'w')", str(tmp_path / "ran")),
    ]
    first, second = launchers.pool(commands)
    assert first.startswith("exit status 1: python -c") and first.endswith(": no such data")
    assert second.startswith("exit status -9") and second.endswith("no message")
    assert (tmp_path / "ran").exists()
    said = capfd.readouterr()
    assert "no such data" in said.err and "shown?" not in said.out


@pytest.mark.skipif(launchers.cores() < 2, reason="two jobs at once need two cores")
def test_jobs_run_at_the_same_time(tmp_path):
    """Each waits until the other has started, so one after another would time out."""
    code = (
        "import os, sys, time; mine, other = sys.argv[1:]; open(mine, 'w')\n"
        "end = time.monotonic() + 60\n"
        "while not os.path.exists(other):\n"
        "    assert time.monotonic() < end; time.sleep(0.01)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert launchers.pool([python(code, a, b), python(code, b, a)]) == []


def test_the_cores_are_those_this_process_may_use(monkeypatch):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to cores")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert launchers.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
