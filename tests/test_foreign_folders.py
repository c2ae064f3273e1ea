"""Folders from elsewhere: no link is written through, no pipe waited for, no device read."""

import os
import shutil
import signal

import collect_sweeps
import pytest
import report_page
import runs_jobs
from domainbed.scripts import train

from domainbed_carft import cli, files
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.suites import records as suite_records

JOB = "0" * 32
SUMMARY = "evaluation_step0.json"
PRECIOUS = "export PATH=$PATH:~/bin\n"


@pytest.fixture
def impatient():
    """Ends what waits for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "bashrc"
    path.write_text(PRECIOUS)
    return path


@pytest.fixture
def sweep(tmp_path):
    """The output folder of a sweep of one job, which its manifest lists."""
    folder = tmp_path / "OUT"
    collect_sweeps.write_job(folder, JOB, at=[0])
    return folder


def test_only_what_the_user_names_is_written_through_a_link(victim, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(OSError, match="it is a link, which is not written through"):
        files.append_line(link, "text")
    files.save_text(link, "text")
    assert victim.read_text() == PRECIOUS
    assert link.read_text() == "text" and not link.is_symlink()

    link.unlink()
    link.symlink_to(victim)
    with files.open_output(link) as out:
        out.write("asked for")
    assert victim.read_text() == "asked for" and link.is_symlink()


def test_a_report_replaces_a_link_in_place_of_its_figures(sweep, victim, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    figures = tmp_path / "page" / "figures"
    assert report_page.report(sweep, figures.parent) == 0
    names = os.listdir(figures)
    shutil.rmtree(figures)
    figures.symlink_to(tmp_path)

    assert report_page.report(sweep, figures.parent) == 0
    assert not figures.is_symlink() and sorted(os.listdir(figures)) == sorted(names)
    assert victim.read_text() == PRECIOUS


# The files that end a command early if they cannot be read, and all others.
PLACES = (
    ("sweep.json",),
    ("JOB/results.jsonl",),
    (
        *("sweep.yaml", "preflight.json", "launches/a.json", "JOB/lock", "JOB/attempts.jsonl"),
        *("JOB/out.txt", "JOB/err.txt", f"JOB/{suite_records.FILE}", f"JOB/{SUMMARY}"),
    ),
)
COMMANDS = (
    ("collect", "--columns", "average,ece"),
    ("top",),
    ("sweep", "status"),
    ("report", "-o", "PAGE"),
)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.usefixtures("impatient")
def test_no_command_waits_for_a_pipe_or_reads_a_device(places, kind, sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    for place in places:
        path = sweep / place.replace("JOB", JOB)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    for words in COMMANDS:
        command = [word.replace("PAGE", str(tmp_path / "page")) for word in words]
        assert cli.main([*command, str(sweep)]) in (0, 1), words


def test_a_link_to_a_file_is_read_and_a_folder_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to(path)  # as in a snapshot of a hub
    assert files.read_regular(tmp_path / "link") == b"0123456789"
    with pytest.raises(OSError, match="Is a directory"):
        files.read_regular(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_lock_that_is_no_file_is_held_by_nobody(make, tmp_path, impatient):
    folder = JobFolder(tmp_path)
    make(folder.lock_path)
    assert not folder.is_held() and folder.holder() is None and folder.last_step() is None
    with pytest.raises(OSError, match="it is a|Is a directory"), folder.claim():
        pass


def own_data(folder, class_name):
    """Images of a user's in three environments, one class called ``class_name``."""
    images = runs_jobs.write_images(folder / "own", count=5)
    for environment in runs_jobs.ENVIRONMENTS:
        place = os.fsencode(images / environment)
        os.rename(place + b"/cat", place + b"/" + class_name)
    return images


def train_on(images, output):
    words = "--algorithm CLIPLinearProbe --test_envs 0 --steps 1 --workers 0 --hparams".split()
    hparams = '{"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}'
    return train.main([*words, hparams, "--dataset", str(images), "--output_dir", str(output)])


def test_names_of_classes_are_printed_without_control_characters(tmp_path, capsys):
    images = own_data(tmp_path, b"\x1b]0;owned\x07cat")
    assert train_on(images, tmp_path / "job") == 0
    for printed in (capsys.readouterr().out, (tmp_path / "job" / "out.txt").read_text()):
        assert r"\x1b]0;owned\x07cat" in printed and not {"\x1b", "\x07"} & set(printed)


def test_a_class_folder_that_is_not_utf8_is_refused_by_name(tmp_path, capsys):
    assert train_on(own_data(tmp_path, b"caf\xe9"), tmp_path / "job") == 2
    stderr = capsys.readouterr().err
    assert r"the class name 'caf\udce9' is not UTF-8" in stderr and "rename the class" in stderr


def test_a_png_of_which_nothing_is_left_is_refused_by_name(tmp_path, capsys):
    """As a JPEG is that ends before its first pixel: Pillow would fill up both."""
    images = own_data(tmp_path, b"CAT")
    path = images / "photo" / "CAT" / "3.png"
    os.truncate(path, 50)
    assert train_on(images, tmp_path / "job") == 1
    assert f"{path} cannot be read: image file is truncated" in capsys.readouterr().err
