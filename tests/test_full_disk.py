"""A full disk: a status of its own, which uses no attempt, stops the launch, and can be resumed."""

import errno
import json
import os
import subprocess

import pytest
import torch
import warm
from domainbed import algorithms
from domainbed.scripts import train
from harness import fakes
from harness.fakes import quick
from sweep_jobs import carft, command, commands, events, look, run, statuses

from domainbed_carft.errors import CarftError, is_no_space
from domainbed_carft.jobs.folder import NO_SPACE, JobFolder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; `grow` gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(options, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(folder):
    subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)


def fill(folder):
    """Leave no space in the folder but for a few hundred bytes."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [-1, 0])
def test_torchs_error_of_a_full_disk_is_recognised(buffering):
    """It says "unexpected pos 2800512 vs 2800400"."""
    with (
        pytest.raises((OSError, RuntimeError)) as caught,
        open("/dev/full", "wb", buffering=buffering) as file,
    ):
        torch.save({"weights": torch.zeros(10**6)}, file)
    assert is_no_space(caught.value)
    assert is_no_space(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_no_space(OSError(errno.EFBIG, "File too large"))


def test_train_ends_with_a_status_of_its_own_and_goes_on_later(small_disk, monkeypatch, capsys):
    folder = small_disk / "job"
    original = fakes.LinearSGD.update
    steps = []

    def update(self, *args):
        steps.append(None)
        if len(steps) == 4:
            fill(small_disk)
        return original(self, *args)

    monkeypatch.setattr(fakes.LinearSGD, "update", update)
    monkeypatch.setattr(algorithms, "LinearSGD", fakes.LinearSGD, raising=False)
    monkeypatch.setattr(algorithms, "ALGORITHMS", ["LinearSGD"])
    arguments = quick(folder, "--checkpoint_freq", "1")
    assert train.main(arguments) == NO_SPACE == 74
    message = capsys.readouterr().err
    assert "No space left on device" in message and "unexpected pos" not in message
    assert "Traceback" not in message

    (small_disk / "filler").unlink()
    assert train.main(arguments) == 0
    assert len(steps) < 2 * 7  # it has resumed
    assert [record["step"] for record in fakes.records(folder)] == [*range(7)]


def test_no_space_stops_the_launch_and_uses_no_attempt(tmp_path, capfd):
    jobs = commands(tmp_path, 3, seconds=0.05)
    full = [command(tmp_path / "job00", code=f"sys.exit({NO_SPACE})"), *jobs[1:]]
    for _ in range(4):  # more often than a job may fail
        with pytest.raises(CarftError, match="no space left on the disk of .*job00") as caught:
            run("local", full)
    assert "Free some space, then run the same command again" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "failed" not in capfd.readouterr().err
    assert statuses(tmp_path / "job00") == [NO_SPACE] * 4
    assert not events(tmp_path / "job01")

    assert run("local", jobs) == []
    assert all(JobFolder(tmp_path / f"job{n:02}").done for n in range(3))


def test_a_checkouts_train_on_a_full_disk_fails_no_job(small_disk):
    """It ends with status 1; how it ended cannot even be noted beside it."""
    writes = "open(folder / 'x', 'wb').write(bytes(3 * 2**20))"
    job = command(small_disk / "job", code=writes)
    for _ in range(4):
        with pytest.raises(CarftError, match="no space left on the disk of"):
            run("pool", [job])
    assert JobFolder(small_disk / "job").failed() is None

    grow(small_disk)
    assert run("pool", [job]) == []


SWEEP = {
    "name": "small",
    "datasets": ["EmojiStyles"],
    "algorithms": ["CLIPLinearProbe"],
    "trials": 2,
    "steps": 2,
    "test_environments": ["line"],
}


@pytest.mark.slow
def test_the_same_sweep_command_goes_on_when_there_is_space_again(small_disk, tmp_path):
    declaration = tmp_path / "small.yaml"
    declaration.write_text(json.dumps(SWEEP))
    words = ["launch", declaration, "--output_dir", small_disk / "out", "--jobs", 1]

    full = carft(*words)
    assert full.returncode == 1 and "unexpected pos" not in full.stderr
    last_line = full.stderr.splitlines()[-1]
    assert last_line.startswith("carft: no space left on the disk of ")
    counts = look(small_disk / "out")["counts"]
    assert counts["failed"] == 0 and counts["interrupted"] == counts["not launched"] == 1

    grow(small_disk)
    done = carft(*words)
    assert done.returncode == 0, done.stderr
    assert look(small_disk / "out")["counts"]["done"] == 2


def test_a_sweep_that_cannot_be_noted_is_refused_in_one_line(small_disk, tmp_path):
    declaration = tmp_path / "small.yaml"
    declaration.write_text(json.dumps(SWEEP))
    fill(small_disk)
    words = ["sweep", "launch", str(declaration), "--output_dir", str(small_disk / "out")]
    refused = warm.run("-m", "domainbed_carft", *words)
    assert refused.returncode == 1
    assert "No space left on device" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
