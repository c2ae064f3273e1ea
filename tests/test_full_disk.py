"""A full disk has a separate exit status, stops the launch, and does not count as an attempt."""

import errno
import itertools
import os
import subprocess

import pytest
import torch
from domainbed import algorithms
from domainbed.scripts import train
from harness import fakes
from harness.fakes import quick_arguments
from sweep_jobs import command, commands, events, run, statuses

from domainbed_carft import cli
from domainbed_carft.cli import runs_output
from domainbed_carft.errors import CarftError, is_disk_full
from domainbed_carft.jobs.job_folder import NO_SPACE, JobFolder
from domainbed_carft.method.algorithm import CLIPAlgorithm


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(options, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Fill the folder, except for a few hundred bytes."""
    with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb", 0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [-1, 0])
def test_torchs_error_for_a_full_disk_is_recognised(buffering):
    with (
        pytest.raises((OSError, RuntimeError)) as caught,
        open("/dev/full", "wb", buffering=buffering) as file,
    ):
        torch.save({"weights": torch.zeros(10**6)}, file)
    assert is_disk_full(caught.value)  # torch's message is "unexpected pos 2800512 vs 2800400"
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(OSError(errno.EFBIG, "File too large"))


def test_train_exits_with_its_full_disk_status_and_resumes(small_disk, monkeypatch, capsys):
    steps = itertools.count(1)

    class FillsTheDisk(fakes.LinearSGD):
        def update(self, *args):
            if next(steps) == 4:
                fill(small_disk)
            return super().update(*args)

    monkeypatch.setattr(algorithms, "LinearSGD", FillsTheDisk, raising=False)
    monkeypatch.setattr(algorithms, "ALGORITHMS", ["LinearSGD"])
    arguments = quick_arguments(small_disk / "job", "--checkpoint_freq", "1")
    assert train.main(arguments) == NO_SPACE == 74
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "unexpected pos" not in message and "Traceback" not in message

    (small_disk / "filler").unlink()
    assert train.main(arguments) == 0
    assert next(steps) <= 2 * 7  # it has resumed
    assert [record["step"] for record in fakes.records(small_disk / "job")] == [*range(7)]


def test_full_disk_stops_the_launch_and_uses_no_attempt(tmp_path, capfd):
    jobs = commands(tmp_path, 3, seconds=0.05)
    full = [command(tmp_path / "job00", code=f"sys.exit({NO_SPACE})"), *jobs[1:]]
    for _ in range(4):  # more than the number of attempts
        with pytest.raises(CarftError, match="space .*job00"):
            run("local", full)
    assert "failed" not in capfd.readouterr().err
    assert statuses(tmp_path / "job00") == [NO_SPACE] * 4
    assert not events(tmp_path / "job01")

    assert run("local", jobs) == []
    assert all(JobFolder(tmp_path / f"job{number:02}").done for number in range(3))


def test_full_disk_in_a_checkout_fails_no_job(small_disk):
    # The job exits with status 1, and its folder cannot even record the outcome.
    writes = "open(folder / 'x', 'wb').write(bytes(3 * 2**20))"
    job = command(small_disk / "job", code=writes)
    for _ in range(4):
        with pytest.raises(CarftError, match="no space"):
            run("pool", [job])
    assert JobFolder(small_disk / "job").get_final_failure() is None
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert run("pool", [job]) == []


def test_sweep_launch_on_a_full_disk_fails_in_one_line(small_disk, capsys):
    fill(small_disk)
    assert cli.main(["sweep", "launch", "demo", "--output_dir", str(small_disk / "out")]) == 1
    printed = capsys.readouterr().err
    assert "No space left on device" in printed.splitlines()[-1] and "Traceback" not in printed


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_unwritable_output_is_found_before_anything_is_computed(
    state, small_disk, pets, carft, monkeypatch
):
    def compute(*arguments, **options):
        pytest.fail("the images were predicted")

    monkeypatch.setattr(CLIPAlgorithm, "features", compute)
    monkeypatch.setattr(runs_output, "measure_sweep", compute)
    if state == "full":
        fill(small_disk)
    else:  # not by permissions, which root does not need
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    job = pets / "CARFT"
    image = next((pets / "my pets").rglob("*.png"))
    for words in (
        ["evaluate", job, "-o", small_disk / "scores.json"],
        ["evaluate", pets, "-o", small_disk / "scores.json"],
        ["predict", job, image, "-o", small_disk / "predictions.jsonl"],
        ["wise-ft", job, "-o", small_disk / "new"],
    ):
        done = carft(*words)
        reason = "No space left" if state == "full" else "Read-only file system"
        assert done.returncode == 1 and f"could not be written: {reason}" in done.stderr, words
    assert {path.name for path in small_disk.iterdir()} <= {"filler"}
