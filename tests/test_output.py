"""Output of commands: full disks, closed pipes, terminals, and permissions of files."""

import io
import itertools
import os
import resource
import subprocess
import sys

import collect_sweeps
import pytest
from sweep_folders import add_attempts, write_launched_sweep
from tqdm import tqdm

from domainbed_carft import cli, escaping, files


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    collect_sweeps.write_job(folder, algorithm="Näïve")
    return folder


def collect(sweep, stdout, **environment):
    return subprocess.run(
        [sys.executable, "-m", "domainbed_carft", "collect", str(sweep)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_error_and_closed_pipe_is_not(sweep):
    with open("/dev/full", "w") as full:
        done = collect(sweep, full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("carft: the disk is full (")

    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        piped = collect(sweep, closed)
    assert piped.returncode == 0
    for stderr in (done.stderr, piped.stderr):
        assert "Traceback" not in stderr and "Exception" not in stderr


def test_characters_outside_terminal_encoding_are_escaped(sweep):
    done = collect(sweep, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and r"N\xe4\xefve" in done.stdout


@pytest.mark.parametrize("words", ["collect {}", "predict {} x"])
def test_control_characters_in_errors_are_escaped(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [word.format("no\x1b[31m\u202esuch\ncarft: done") for word in words.split()]
    assert cli.main(command) == 1
    output = capsys.readouterr()
    assert r"no\x1b[31m\u202esuch\ncarft: done" in output.err
    assert not {"\x1b", "\u202e"} & {*output.err, *output.out}
    assert output.err.count("\n") == 1


class Terminal(io.StringIO):
    """A terminal that keeps what is printed on it."""

    def isatty(self):
        return True


def print_bars(stream, description):
    """Print two bars, one below the other, and a line above them."""
    with tqdm(range(2), description, file=stream, ncols=60, position=0, mininterval=0) as outer:
        for _ in outer:
            for _ in tqdm(range(2), "inner", file=stream, ncols=60, position=1, mininterval=0):
                pass
            tqdm.write("a line", stream)


def test_stream_passes_bars_and_line_breaks_and_escapes_names(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock) % 1000)
    terminal, escaped = Terminal(), Terminal()
    print_bars(terminal, "epochs")
    clock = itertools.count()
    print_bars(escaping.EscapedStream(escaped), "epochs")
    assert escaped.getvalue() == terminal.getvalue()

    print_bars(escaping.EscapedStream(escaped), "a\x1b]0;owned\x07")
    assert r"a\x1b]0;owned\x07" in escaped.getvalue()
    assert not {"\x1b", "\x07"} & {*escaped.getvalue().replace("\x1b[A", "")}


class InterruptedTerminal(Terminal):
    """A terminal at which the user answers a question with Ctrl-C."""

    def readline(self, size=-1):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep clean OUT --incomplete", "carft: interrupted"),
        (
            "sweep launch demo --output_dir NEW",
            "carft: interrupted; to resume, run the same command again",
        ),
    ],
)
def test_ctrl_c_prints_one_line(words, message, tmp_path, monkeypatch, capsys):
    add_attempts(write_launched_sweep(tmp_path / "OUT")[0], 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", InterruptedTerminal())
    assert cli.main(words.split()) == 130
    assert capsys.readouterr().err.splitlines()[-1] == message


def write(path, text):
    with files.open_output(path) as out:
        out.write(text)


def test_output_can_be_written_to_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write(tmp_path / "pipe", "new")
        assert reader.stdout.read() == b"new"
    assert (tmp_path / "pipe").is_fifo()


def test_failed_write_keeps_old_file(sweep, tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "domainbed_carft", "collect", str(sweep), "-o", str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and f"{path} could not be written" in done.stderr
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.txt"]
