"""The lock and the files of a job's folder, with real processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from sweep_jobs import wait_until

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job_folder import UNKNOWN_HOLDER, Attempt, HeldError, JobFolder

CLAIM = """
import subprocess, sys, time
from domainbed_carft.jobs.job_folder import JobFolder
with JobFolder(sys.argv[1]).claim() as lock:
    # Like the child of a launcher, it inherits the descriptor without using it.
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[lock.descriptor])
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "it's $(a) job's\nfolder"
    path.mkdir()
    return JobFolder(path)


def test_child_of_killed_process_holds_lock_until_it_ends(folder):
    words = [sys.executable, "-c", CLAIM, folder.path, "60"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    with (
        pytest.raises(HeldError, match=rf"process {process.pid}, since 20") as raised,
        folder.claim(),
    ):
        pass
    assert str(folder.get_holder()) in str(raised.value)

    process.kill()
    process.wait()
    assert folder.is_held() and folder.get_holder().pid == process.pid
    assert folder.get_last_holder() is None

    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not folder.is_held(), 5)
    assert folder.get_holder() is None and folder.get_last_holder().pid == process.pid
    with folder.claim():  # a stale lock is taken over
        assert folder.get_holder().pid == os.getpid()


def test_lock_is_held_by_one_process_at_a_time(folder):
    """Processes claim and release repeatedly, so that opening and removing the file interleave."""
    code = """
import os, sys, time
from domainbed_carft.jobs.job_folder import HeldError, JobFolder
folder, inside, won = JobFolder(sys.argv[1]), sys.argv[2], 0
end = time.monotonic() + 0.5
while time.monotonic() < end:
    try:
        with folder.claim():
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            os.unlink(inside)
            won += 1
    except HeldError:
        pass
print(won)
"""
    words = [sys.executable, "-c", code, folder.path, folder.path / "inside"]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate() for process in processes]

    assert all(process.returncode == 0 for process in processes), outputs
    assert sum(int(won) for won, _ in outputs) > 5


def test_inherited_lock_keeps_start_and_publishes_progress(folder):
    with folder.claim() as launcher:
        since = folder.get_holder().since
        with folder.claim(inherited=launcher.descriptor) as lock:
            lock.publish(step=3, steps=7)
            holder = folder.get_holder()
            assert (holder.step, holder.steps, holder.since) == (3, 7, since)
        assert folder.is_held()
    assert not folder.lock_path.exists()


@pytest.mark.parametrize("content", ["", '{"host": "a", "pid": 1, "sl', "[]", "\xff"])
def test_damaged_lock_file_has_unknown_holder(folder, content):
    folder.lock_path.write_text(content, encoding="latin-1")
    assert folder.get_last_holder() == UNKNOWN_HOLDER
    with open(folder.lock_path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert folder.get_holder() == UNKNOWN_HOLDER
        with pytest.raises(HeldError, match="by an unknown process"), folder.claim():
            pass


def test_file_system_without_locks_raises_error(folder, monkeypatch):
    def refused(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    words = "No locks available. Put the output folder on a file system with flock: a local disk"
    folder.lock_path.touch()
    with pytest.raises(CarftError, match=f"cannot be locked: .*{words}"):
        folder.is_held()


def test_attempts_are_kept_and_truncated_lines_skipped(folder):
    assert folder.read_attempts() == []

    first = Attempt(1.0, 2.0, "host", None, 1, 'it\'s\na "word"')
    second = first._replace(slurm="1_2", status=-9)
    folder.add_attempt(first)
    with folder.attempts_path.open("a") as file:
        file.write('{"started": 1.0, "en')
    folder.add_attempt(second)

    assert folder.read_attempts() == [first, second]
    assert folder.attempts_path.read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("statuses", "is_final"),
    [
        ([], False),
        ([1, 1], False),
        ([1, -9, 0], True),  # 0, but no file `done`
        ([2], True),
        ([1, 2], True),
        ([75, 75, 75, 75, 130, -15, -10, 73], False),
        ([1, 75, 1, 73], False),
        ([1, 75, 1, 130, 1, 75], True),  # stops in between are not successes
    ],
)
def test_job_fails_after_three_failures_without_counting_stops(folder, statuses, is_final):
    for number, status in enumerate(statuses):
        folder.add_attempt(Attempt(1.0, 2.0, "host", None, status, f"words {number}"))
    failure = folder.get_final_failure()
    assert (failure is not None) is is_final
    if failure:
        assert failure.status not in (73, 75, 130, -15, -10)

    (folder.path / "done").touch()
    assert folder.get_final_failure() is None
