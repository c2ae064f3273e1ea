"""Launchers."""

from __future__ import annotations

import sys

from domainbed.command_launchers import local_launcher
from test_launchers import python


def test_local_runs_in_order_with_this_interpreter_and_no_shell(tmp_path):
    note = "import sys; open(sys.argv[1], 'a').write(sys.executable + ' ' + sys.argv[2] + '\\n')"
    path = str(tmp_path / 'it\'s a "file"')
    awkward = "$HOME; `ls` * 'x'"
    assert local_launcher([python(note, path, "1"), python(note, path, awkward)]) == []
    with open(path) as file:
        assert file.read() == f"{sys.executable} 1\n{sys.executable} {awkward}\n"


def test_local_goes_on_after_a_failure_and_reports_it_at_the_end(tmp_path, capfd):
    silent = python("raise SystemExit(4)", "--output_dir", str(tmp_path / "gone"))
    last = python("print('still here')")
    assert len(local_launcher([silent, last, "no-such-program --flag"])) == 2
    out, err = capfd.readouterr()
    assert out == "still here\n"
    assert err.splitlines()[:2] == [
        "sweep: 2 of 3 jobs failed:",
        f"- exit status 4: {tmp_path / 'gone'}: no message in err.txt",
    ]
    assert "exit status 127: no-such-program --flag: " in err
