"""Where any command's results go: full disks, closed pipes, links, pipes, and who may read them."""

import os
import secrets
import stat
import subprocess
import sys

import collect_sweeps
import pytest

from domainbed_carft import cli, files
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import pool
from domainbed_carft.report import page


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
def test_a_full_disk_is_an_error_and_a_closed_pipe_is_none(sweep):
    with open("/dev/full", "w") as full:
        done = collect(sweep, full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("carft: the disk is full (")

    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        enough = collect(sweep, closed)
    assert enough.returncode == 0

    for stderr in (done.stderr, enough.stderr):
        assert "Traceback" not in stderr and "Exception" not in stderr


def test_characters_that_the_terminal_lacks_are_escaped(sweep):
    done = collect(sweep, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and r"N\xe4\xefve" in done.stdout


@pytest.mark.parametrize("words", [["collect"], ["sweep", "status"], ["predict"], ["report"]])
def test_control_characters_in_errors_are_escaped(words, tmp_path, capsys):
    flags = {"predict": [str(tmp_path)], "report": ["-o", str(tmp_path)]}.get(words[0], [])
    assert cli.main([*words, str(tmp_path / "no\x1b[31m\u202esuch"), *flags]) == 1
    output = capsys.readouterr()
    assert r"no\x1b[31m\u202esuch" in output.err
    assert not {"\x1b", "\u202e"} & set(output.err + output.out)


def test_ctrl_c_prints_no_traceback(sweep, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "require_place", interrupt)
    assert cli.main(["report", str(sweep), "-o", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "carft: interrupted\n"


def test_ctrl_c_in_a_launch_or_the_demo_says_that_the_command_resumes(
    tmp_path, monkeypatch, capsys
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool.Pool, "__call__", interrupt)
    for words in (["demo"], ["sweep", "launch", "demo", "--yes"]):
        assert cli.main([*words, "--output_dir", str(tmp_path / words[0])]) == 130
        last_line = capsys.readouterr().err.splitlines()[-1]
        assert last_line == "carft: interrupted; to resume, run the same command again"


def test_a_symlink_at_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".carft-0.part").symlink_to("victim")
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0")
    with pytest.raises(CarftError, match="table.txt could not be written: File exists"):
        files.save_text(tmp_path / "table.txt", "new")
    assert (tmp_path / "victim").read_text() == "precious"


def write(path, text):
    with files.stream(path) as out:
        out.write(text)


def test_output_keeps_symlinks_and_permissions(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "target").chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_output_can_be_written_into_a_pipe(tmp_path):
    """A device, too, as /dev/null, which root could replace by a file."""
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write(tmp_path / "pipe", "new")
        assert reader.stdout.read() == b"new"
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_leaves_the_old_table(sweep, tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("old")
    limited = (
        "import resource, sys; from domainbed_carft import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "collect", str(sweep), "-o", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and f"{path} could not be written" in done.stderr
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.txt"]
