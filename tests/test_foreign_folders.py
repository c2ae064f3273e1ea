"""Folders from elsewhere: no link is written through, no pipe waited for, no device read."""

import json
import os
import signal

import collect_sweeps
import numpy as np
import pytest
import report_page
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli, files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
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
    for number, write in enumerate((files.save_text, append)):
        link = tmp_path / f"link{number}"
        link.symlink_to(victim)
        write(link, "text")
        assert victim.read_text() == PRECIOUS

    assert (tmp_path / "link0").read_text() == "text" and not (tmp_path / "link0").is_symlink()
    with files.stream(tmp_path / "link1") as out:
        out.write("asked for")
    assert victim.read_text() == "asked for" and (tmp_path / "link1").is_symlink()


def append(path, line):
    with pytest.raises(OSError, match="it is a link, which is not written through"):
        files.append_line(path, line)


def test_parents_of_a_file_may_be_links(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "OUT").symlink_to("scratch")
    files.save_text(tmp_path / "OUT/job/table.txt", "text")
    for line in ("one", "two"):
        files.append_line(tmp_path / "OUT/job/lines", line)
    assert (tmp_path / "scratch/job/table.txt").read_text() == "text"
    assert (tmp_path / "scratch/job/lines").read_text() == "one\ntwo\n"


def test_a_link_in_place_of_a_suites_records_is_not_appended_to(sweep, victim):
    job = sweep / JOB
    (job / suite_records.FILE).symlink_to(victim)
    record = dict.fromkeys(suite_records.FIELDS, "text")
    with pytest.raises(CarftError, match="suites.jsonl could not be written: it is a link"):
        suite_records.append(job, record)
    assert victim.read_text() == PRECIOUS


def test_a_report_replaces_a_link_in_place_of_its_figures(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    page = tmp_path / "page"
    assert report_page.report(sweep, page) == 0
    figures = {path.name for path in (page / "figures").iterdir()}
    (page / "figures").rename(tmp_path / "mine")
    (page / "figures").symlink_to(tmp_path / "mine")
    for path in (tmp_path / "mine").iterdir():
        path.write_text(PRECIOUS)

    assert report_page.report(sweep, page) == 0
    assert {path.name for path in (page / "figures").iterdir()} == figures
    assert {path.read_text() for path in (tmp_path / "mine").iterdir()} == {PRECIOUS}


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


def test_what_is_read_in_place_of_a_file_is_said(sweep, impatient, capsys):
    job = sweep / JOB
    for path in (job / suite_records.FILE, sweep / manifest.NAME):
        os.mkfifo(path)
    assert cli.main(["collect", str(sweep)]) == 0
    stderr = capsys.readouterr().err
    assert f"unreadable: {job / suite_records.FILE}: it is a pipe, a socket" in stderr
    assert f"{sweep / manifest.NAME} is not a readable manifest (it is a pipe, a socket" in stderr


def test_a_link_to_a_file_is_read_and_a_folder_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to(path)  # as in a snapshot of a hub
    assert files.read_regular(tmp_path / "link") == b"0123456789"
    with pytest.raises(OSError, match="Is a directory"):
        files.read_regular(tmp_path)


def test_a_lock_that_is_no_file_is_held_by_nobody(tmp_path, impatient):
    folder = JobFolder(tmp_path)
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
        make(folder.lock_path)
        assert not folder.is_held() and folder.holder() is None and folder.last_step() is None
        with pytest.raises(OSError, match="it is a|Is a directory"), folder.claim():
            pass
        folder.lock_path.rmdir() if folder.lock_path.is_dir() else folder.lock_path.unlink()


def write_environments(folder, class_name):
    """Three environments of two classes, one called ``class_name``, of pictures like noise."""
    draw = np.random.default_rng(0)
    for environment in (b"art", b"line", b"photo"):
        for name in (class_name, b"dog"):
            place = os.path.join(os.fsencode(folder), environment, name)
            os.makedirs(place)
            for number in range(5):
                picture = draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)
                Image.fromarray(picture).save(os.path.join(place, b"%d.png" % number))
    return folder


def trained(pictures, output):
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "total_steps": 2, "warmup_steps": 1}
    words = "--algorithm CLIPLinearProbe --test_envs 0 --steps 1 --workers 0 --dataset".split()
    words += [str(pictures), "--hparams", json.dumps({**hparams, "contexts": "emoji"})]
    return train.main([*words, "--output_dir", str(output)])


def test_names_of_classes_are_printed_without_control_characters(tmp_path, capsys):
    pictures = write_environments(tmp_path / "own", b"\x1b]0;owned\x07cat")
    assert trained(pictures, tmp_path / "job") == 0
    for printed in (capsys.readouterr().out, (tmp_path / "job" / "out.txt").read_text()):
        assert r"\x1b]0;owned\x07cat" in printed and not {"\x1b", "\x07"} & set(printed)


def test_a_class_folder_that_is_not_utf8_is_refused_by_name(tmp_path, capsys):
    pictures = write_environments(tmp_path / "own", b"caf\xe9")
    assert trained(pictures, tmp_path / "job") == 2
    stderr = capsys.readouterr().err
    assert r"the class name 'caf\udce9' is not UTF-8" in stderr and "rename the class" in stderr


def test_a_png_of_which_nothing_is_left_is_refused_by_name(tmp_path, capsys):
    """As a JPEG is that ends before its first pixel: Pillow would fill up both."""
    pictures = write_environments(tmp_path / "own", b"cat")
    path = pictures / "line" / "cat" / "3.png"
    os.truncate(path, 130)
    assert trained(pictures, tmp_path / "job") == 1
    assert f"{path} cannot be read: image file is truncated" in capsys.readouterr().err

    Image.new("RGB", (96, 96), "white").save(path)  # of one colour, and whole
    assert trained(pictures, tmp_path / "job") == 0
