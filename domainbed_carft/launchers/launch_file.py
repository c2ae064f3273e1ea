"""The file in which a launch lists its jobs, SWEEP/launches/*.json.

On this machine the file is locked while the launcher runs, and then removed. For SLURM it remains,
and contains the ids of the jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.jobs.job import Job

FOLDER = "launches"


@dataclass(frozen=True)
class Launch:
    """One launch of jobs in a folder."""

    path: Path
    launcher: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    jobs: dict[str, str | None] = field(default_factory=dict)  # SLURM id, if any, by folder name

    def write(self) -> None:
        """Rewrite the file atomically. Raises CarftError if it cannot be written."""
        os.close(self.write_locked())

    def write_locked(self) -> int:
        """Rewrite the file, and return a descriptor that holds its lock until it is closed."""
        content = {name: value for name, value in vars(self).items() if name != "path"}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with files.replace_atomically(self.path) as temporary:
                temporary.write_bytes(json.dumps(content).encode() + b"\n")
                descriptor = os.open(temporary, os.O_RDWR)
                files.try_lock(descriptor)  # before the file gets its final name
        except OSError as error:
            raise files.write_error(self.path, error) from error
        return descriptor

    def is_alive(self) -> bool:
        """Return True if the process that wrote the file still runs."""
        with contextlib.suppress(OSError), files.open_regular(self.path) as file:
            return not files.try_lock(file.fileno(), shared=True)
        return False  # the file is gone


def begin(launcher: str, sweep: Path, purpose: str = "") -> Launch:
    """Make a launch by this process, whose file is not written yet.

    Args:
        launcher: name of the launcher.
        sweep: folder that contains the jobs.
        purpose: part of the file name, to distinguish several launches of one process.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    parts = [stamp, socket.gethostname(), str(os.getpid()), purpose]
    name = "-".join(part for part in parts if part)
    return Launch(sweep / FOLDER / f"{name}.json", launcher)


def read(output: Path) -> list[Launch]:
    """Read the launches of an output folder and its variants, oldest first; skip damaged files."""
    paths = [*output.glob(f"{FOLDER}/*.json"), *output.glob(f"*/{FOLDER}/*.json")]
    launches = []
    for path in sorted(paths, key=lambda path: path.name):
        with contextlib.suppress(ArithmeticError, KeyError, OSError, TypeError, ValueError):
            launches.append(_parse(path, json.loads(files.read_regular(path))))
    return launches


def _parse(path: Path, content: Any) -> Launch:
    return Launch(
        path=path,
        launcher=str(content["launcher"]),
        host=str(content["host"]),
        pid=int(content["pid"]),
        jobs={
            str(name): slurm_id and str(slurm_id)
            for name, slurm_id in dict(content["jobs"]).items()
        },
    )


@contextlib.contextmanager
def announce(launcher: str, jobs: Sequence[Job]) -> Iterator[None]:
    """List these jobs in a locked launch file while the block runs."""
    with contextlib.ExitStack() as stack:
        for sweep in sorted({job.folder.parent for job in jobs}):
            launch = begin(launcher, sweep)
            for job in jobs:
                if job.folder.parent == sweep:
                    launch.jobs[job.folder.name] = None
            stack.callback(os.close, launch.write_locked())
            stack.callback(launch.path.unlink, missing_ok=True)
        yield
