"""What is done with jobs beside running them: tried again, stopped, cleared away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.job_folder import Held, JobFolder
from domainbed_carft.sweep import states
from domainbed_carft.sweep.states import Launch, Status

# Of a finished job: what only an unfinished one needs, or what was being written when it died.
LEFTOVERS = ("state.pt", "*.part")


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


def remove_folder(status: Status) -> bool:
    """Delete the folder of a job, unless a process has it by now or it has become done."""
    folder = JobFolder(status.job.folder)
    try:
        with folder.claim():
            if folder.done:
                return False
            shutil.rmtree(folder.path)
    except Held:
        return False
    except OSError as error:
        raise CarftError(f"{folder.path} cannot be deleted: {error}") from error
    return True


def live_launchers(folder: Path) -> list[Launch]:
    """Launchers of ours that run jobs of this folder now, not SLURM's."""
    return [launch for launch in states.queues(folder).launches if launch.alive]


def slurm_ids(folder: Path) -> list[str]:
    """SLURM jobs of this folder that have not ended."""
    return sorted(states.queues(folder).slurm)


def stop(pid: int) -> bool:
    """Tell a process of this machine to save and leave; whether there was one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


def is_here(host: str) -> bool:
    """Whether a process of that host is one of this machine."""
    return host == socket.gethostname()


def trains_in(pid: int, folder: Path) -> bool:
    """Whether a process is the job of that folder: a number may have been given away again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(folder.name.encode() in word for word in words)


def wait_until_free(folders: Sequence[Path], seconds: float) -> list[Path]:
    """Wait until nobody has these jobs; those that somebody still has."""
    give_up = time.monotonic() + seconds
    left = list(folders)
    while True:
        left = [folder for folder in left if JobFolder(folder).is_held()]
        if not left or time.monotonic() > give_up:
            return left
        time.sleep(0.2)
