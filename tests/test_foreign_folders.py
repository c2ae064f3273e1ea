"""Untrusted folders: links are not written through, and pipes and devices are not read."""

import os
import shutil
import signal

import collect_sweeps
import pytest
import report_page
import runs_jobs
from domainbed.scripts import train

from domainbed_carft import cli, files
from domainbed_carft.jobs.job_folder import JobFolder

JOB = "0" * 32
SUMMARY = "evaluation_step0.json"
PRECIOUS = "export PATH=$PATH:~/bin\n"


@pytest.fixture
def time_limit():
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
    """Create the output folder of a sweep with one job."""
    folder = tmp_path / "OUT"
    collect_sweeps.write_job(folder, JOB, at=[0])
    return folder


def test_links_are_written_through_only_for_the_option_o(victim, tmp_path):
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


def test_report_replaces_a_link_at_its_figures_folder(sweep, victim, tmp_path, monkeypatch):
    report_page.skip_drawing(monkeypatch)
    figures = tmp_path / "page" / "figures"
    assert report_page.report(sweep, figures.parent) == 0
    names = os.listdir(figures)
    shutil.rmtree(figures)
    figures.symlink_to(tmp_path)

    assert report_page.report(sweep, figures.parent) == 0
    assert not figures.is_symlink() and sorted(os.listdir(figures)) == sorted(names)
    assert victim.read_text() == PRECIOUS


# Files whose fault ends a command early, each separately, and all others together.
PLACES = (
    ("sweep.json",),
    ("JOB/results.jsonl",),
    (
        *("sweep.yaml", "preflight.json", "launches/a.json", "JOB/lock", "JOB/attempts.jsonl"),
        *("JOB/out.txt", "JOB/err.txt", "JOB/evaluation_step0_imagenet.json", f"JOB/{SUMMARY}"),
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
@pytest.mark.usefixtures("time_limit")
def test_commands_neither_wait_for_pipes_nor_read_devices(
    places, kind, sweep, tmp_path, monkeypatch
):
    report_page.skip_drawing(monkeypatch)
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


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_lock_that_is_not_a_file_is_not_held(make, tmp_path, time_limit):
    folder = JobFolder(tmp_path)
    make(folder.lock_path)
    assert not folder.is_held() and folder.get_holder() is None and folder.get_last_step() is None
    with pytest.raises(OSError, match="it is a|Is a directory"), folder.claim():
        pass


def write_dataset(folder, class_name):
    """Create a dataset with three environments and a class called ``class_name``."""
    images = runs_jobs.write_images(folder / "own", count=5)
    for environment in runs_jobs.ENVIRONMENTS:
        (images / environment / "cat").rename(images / environment / os.fsdecode(class_name))
    return images


def train_on(images, output):
    flags = "--algorithm CLIPLinearProbe --test_envs 0 --steps 1 --workers 0 --hparams".split()
    hparams = '{"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}'
    return train.main([*flags, hparams, "--dataset", str(images), "--output_dir", str(output)])


def test_class_names_are_printed_without_control_characters(tmp_path, capsys):
    images = write_dataset(tmp_path, b"\x1b]0;owned\x07cat")
    assert train_on(images, tmp_path / "job") == 0
    for printed in (capsys.readouterr().out, (tmp_path / "job" / "out.txt").read_text()):
        assert r"\x1b]0;owned\x07cat" in printed and not {"\x1b", "\x07"} & set(printed)


def test_class_folder_that_is_not_utf8_is_named_in_the_error(tmp_path, capsys):
    assert train_on(write_dataset(tmp_path, b"caf\xe9"), tmp_path / "job") == 2
    assert r"'caf\udce9'" in capsys.readouterr().err


def test_image_truncated_before_its_first_pixel_is_named_in_the_error(tmp_path, capsys):
    images = write_dataset(tmp_path, b"CAT")
    path = images / "photo" / "CAT" / "3.png"
    os.truncate(path, 50)
    assert train_on(images, tmp_path / "job") == 1
    assert f"{path} cannot be read: image file is truncated" in capsys.readouterr().err
