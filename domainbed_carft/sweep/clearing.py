"""What is done with jobs beside running them: tried again, stopped, cleared away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import Held, JobFolder
from domainbed_carft.sweep import states
from domainbed_carft.sweep.states import Status

# Of a finished job: what only an unfinished one needs, or what was being written when it died.
LEFTOVERS = ("state.pt", "*.part")

_DELETED = ".deleted-"
# How long to look for who holds a job: processes start and end while one looks.
_LOOK_AGAIN_S = 1.0


def matches(status: Status, pattern: str | None) -> bool:
    """Whether a pattern is about a job: part of its folder's name or of its words, or a glob."""
    if pattern is None:
        return True
    names = (status.job.folder.name, str(status.job))
    return any(pattern in name or fnmatch(name, pattern) for name in names)


def forgive(failed: Sequence[Status]) -> None:
    """Let failed jobs be tried again; how they ended is kept in attempts-1.jsonl and so on."""
    for status in failed:
        path = JobFolder(status.job.folder).attempts_path
        number = 1
        while path.with_name(f"attempts-{number}.jsonl").exists():
            number += 1
        path.rename(path.with_name(f"attempts-{number}.jsonl"))


def leftovers(done: Sequence[Status]) -> list[Path]:
    """Files that finished jobs do not need."""
    return [path for s in done for name in LEFTOVERS for path in s.job.folder.glob(name)]


def ended_launches(folder: Path) -> list[Path]:
    """Launch files that say nothing any more: their process is dead, or no job of theirs waits."""
    queues = states.queues(folder)
    return [
        launch.path
        for launch in queues.launches
        if launch.alive is False or (launch.alive is None and queues.ended(launch))
    ]


def remove_files(paths: Sequence[Path]) -> tuple[int, int]:
    """Delete files; how many there were still, and their bytes."""
    count = size = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # the job, or another clean, was faster
            taken = path.stat().st_size
            path.unlink()
            count, size = count + 1, size + taken
    return count, size


def remove_folder(status: Status, sweep: Path) -> bool:
    """Delete the folder of a job, unless it is done, run by a process or waited for by now.

    Args:
        sweep: the output folder, whose launches say what waits.

    Raises:
        CarftError: it is not known whether it waits, or the folder cannot be deleted.
    """
    folder = JobFolder(status.job.folder)
    away = folder.path.with_name(f"{_DELETED}{folder.name}-{os.getpid()}")
    try:
        with folder.claim():
            if folder.done or _waits(folder, sweep):
                return False
            # All at once: whoever launches the job now makes a folder with a lock of its own.
            folder.path.rename(away)
            shutil.rmtree(away)
    except (Held, FileNotFoundError):
        return False
    except OSError as error:
        raise CarftError(f"{folder.path} cannot be deleted: {error}") from error
    return True


def half_deleted(folder: Path) -> list[Path]:
    """What is left of folders whose deletion was cut short."""
    return [*folder.glob(f"{_DELETED}*"), *folder.glob(f"*/{_DELETED}*")]


def _waits(folder: JobFolder, sweep: Path) -> bool:
    queues = states.queues(sweep)
    if queues.note:
        raise CarftError(f"{queues.note}; so it is not known which jobs wait")
    return folder.failed() is None and queues.waiting(folder.name) is not None


def stop(pid: int) -> bool:
    """Tell a process of this machine to save and leave; whether there was one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


def is_here(host: str) -> bool:
    """Whether a process of that host is one of this machine."""
    return host == socket.gethostname()


def stop_job(folder: Path, told: Collection[int]) -> bool:
    """Tell a job of this machine to save and leave, unless its launcher, one of these, does.

    False if it could not be told.
    """
    reached = set(told)
    give_up = time.monotonic() + _LOOK_AGAIN_S
    while True:
        pids = roots_of_holders(folder)
        reached |= {pid for pid in pids if pid not in reached and stop(pid)}
        if pids and reached.issuperset(pids):
            return True
        # Who was just seen may have ended since, and others of the job are then to be told.
        if not JobFolder(folder).is_held():
            return True
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)


def roots_of_holders(folder: Path) -> list[int]:
    """The processes of this machine that hold a job's lock, without those that these started.

    A job whose launcher was killed has the lock from it, and its loaders have it from the job.
    """
    lock = JobFolder(folder).lock_path
    pids = {pid for pid in _processes() if _holds(pid, lock)}
    return sorted(pid for pid in pids if _parent(pid) not in pids)


def _processes() -> list[int]:
    with contextlib.suppress(OSError):  # a system without /proc
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return []


def _holds(pid: int, lock: Path) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if _is_held_through(pid, number, lock):
                    return True
    return False


def _is_held_through(pid: int, number: str, lock: Path) -> bool:
    """Whether the descriptor is the lock's and has it; others only ask, or wait for it."""
    link = f"/proc/{pid}/fd/{number}"
    # By name first: to look at files of any kind may take long, as on a network that is gone.
    if os.path.basename(os.readlink(link)) != lock.name:
        return False
    if not os.path.samestat(os.stat(link), os.stat(lock)):
        return False
    told = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    return any(line.startswith("lock:") and "WRITE" in line for line in told)


def _parent(pid: int) -> int | None:
    try:
        # The second word is the program's name, which may have any characters in it.
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(words[1])


def wait_until_free(folders: Sequence[Path], seconds: float) -> list[Path]:
    """Wait until nobody has these jobs; those that somebody still has."""
    give_up = time.monotonic() + seconds
    left = list(folders)
    while True:
        left = [folder for folder in left if JobFolder(folder).is_held()]
        if not left or time.monotonic() > give_up:
            return left
        time.sleep(0.2)
