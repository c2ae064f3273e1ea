"""The file in which a launch says what it has in hand: SWEEP/launches/*.json.

A launcher that runs its jobs itself holds a lock on the file while it lives, and removes it; one
that hands them to SLURM leaves it behind, with their SLURM ids.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder

FOLDER = "launches"


class Launch:
    """One launch of jobs of the sweep in `sweep`; the file appears with the first `write`."""

    def __init__(self, launcher: str, sweep: Path) -> None:
        since, host, pid = time.time(), socket.gethostname(), os.getpid()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(since))
        self.path = sweep / FOLDER / f"{stamp}-{host}-{pid}.json"
        self._content = {"launcher": launcher, "host": host, "pid": pid, "since": since}

    def write(self, jobs: Mapping[str, str | None]) -> int:
        """Write the file anew; return a descriptor that holds its lock, for the caller to close.

        Args:
            jobs: name of the job's folder to its SLURM id, if it has one.
        """
        content = json.dumps({**self._content, "jobs": dict(jobs)}).encode() + b"\n"
        opened = []

        def fill(beside: Path) -> None:
            beside.write_bytes(content)
            opened.append(os.open(beside, os.O_RDWR))
            fcntl.flock(opened[0], fcntl.LOCK_EX)  # before the file has its name

        try:
            files.write(self.path, fill)
        except OSError as error:
            folder = self.path.parent
            raise CarftError(f"the launch cannot be noted in {folder}: {error}") from error
        return opened[0]


@contextlib.contextmanager
def in_hand(launcher: str, folders: Sequence[JobFolder]) -> Iterator[None]:
    """Say, while the block runs, that this process will run the jobs of these folders."""
    with contextlib.ExitStack() as stack:
        for sweep in sorted({folder.path.parent for folder in folders}):
            launch = Launch(launcher, sweep)
            jobs = {folder.path.name: None for folder in folders if folder.path.parent == sweep}
            stack.callback(os.close, launch.write(jobs))
            stack.callback(launch.path.unlink, missing_ok=True)
        yield
