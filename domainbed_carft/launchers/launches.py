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
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder

FOLDER = "launches"


class Launch:
    """One launch of jobs of the sweep in `sweep`; the file appears with the first `write`."""

    def __init__(self, launcher: str, sweep: Path) -> None:
        self.folder = sweep / FOLDER
        self._since = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._since))
        self._host, self._pid = socket.gethostname(), os.getpid()
        self.path = self.folder / f"{stamp}-{self._host}-{self._pid}.json"
        self._launcher = launcher

    def write(self, jobs: Mapping[str, str | None]) -> int:
        """Write the file anew; return a descriptor that holds its lock, for the caller to close.

        Args:
            jobs: name of the job's folder to its SLURM id, if it has one.
        """
        content = {
            "launcher": self._launcher, "host": self._host, "pid": self._pid,
            "since": self._since, "jobs": dict(jobs),
        }  # fmt: skip
        try:
            return self._written(json.dumps(content).encode() + b"\n")
        except OSError as error:
            raise CarftError(f"the launch cannot be noted in {self.folder}: {error}") from error

    def _written(self, content: bytes) -> int:
        descriptor, name = self._temporary()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            os.fchmod(descriptor, 0o644)
            os.replace(name, self.path)
        except BaseException:
            os.close(descriptor)
            os.unlink(name)
            raise
        return descriptor

    def _temporary(self) -> tuple[int, str]:
        """A file not named *.json, before it is whole."""
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return tempfile.mkstemp(dir=self.folder, prefix=".launch-")
            except FileNotFoundError:  # removed by another launcher that has just ended
                continue


@contextlib.contextmanager
def in_hand(launcher: str, folders: Sequence[JobFolder]) -> Iterator[None]:
    """Say, while the block runs, that this process will run the jobs of these folders."""
    sweeps = {folder.path.parent for folder in folders}
    launches, held = [], []
    try:
        for sweep in sorted(sweeps):
            launch = Launch(launcher, sweep)
            jobs = {folder.name: None for folder in folders if folder.path.parent == sweep}
            held.append(launch.write(jobs))
            launches.append(launch)
        yield
    finally:
        for launch in launches:
            launch.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others' files are in it, or logs
                launch.folder.rmdir()
        for descriptor in held:
            os.close(descriptor)
