"""Finding the folders of jobs below the folders that a user names. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from domainbed_carft.collect.faults import Fault
from domainbed_carft.errors import CarftError

RECORDS = "results.jsonl"
OUTPUT = "out.txt"
DESCRIPTION = "job.json"
DONE = "done"
_OF_A_JOB = frozenset({RECORDS, OUTPUT, "err.txt", DESCRIPTION, DONE})
# A folder of sweeps, a sweep, its variants, their jobs.
DEPTH = 3


class Found(NamedTuple):
    """The folder of a job, and which of a job's files it has."""

    path: str
    files: frozenset[str]


def find(folders: Sequence[Path | str]) -> tuple[list[Found], list[Fault]]:
    """Job folders among ``folders`` and below, each once, sorted by name within each of them.

    Raises CarftError, naming all of them, where one of ``folders`` is not there.
    """
    missing = [str(folder) for folder in folders if not os.path.isdir(folder)]
    if missing:
        raise CarftError(
            f"there is no folder {', '.join(missing)}; expected the output folders of sweeps, "
            "or one that holds such folders"
        )
    jobs: list[Found] = []
    faults: list[Fault] = []
    roots: list[str] = []
    for folder in map(str, folders):
        real = os.path.realpath(folder)
        if any(real == root or real.startswith(root + os.sep) for root in roots):
            faults.append(Fault("named twice", folder, "its jobs count once"))
            continue
        roots.append(real)
        for found in _below(folder, DEPTH):
            (jobs if isinstance(found, Found) else faults).append(found)  # type: ignore[arg-type]
    return _once(jobs, len(roots)), faults


def _once(jobs: list[Found], roots: int) -> list[Found]:
    """A folder named first and then, with another, from above is found twice."""
    if roots == 1:
        return jobs
    return list({os.path.realpath(job.path): job for job in reversed(jobs)}.values())[::-1]


def _below(folder: str, depth: int) -> Iterator[Found | Fault]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Fault("unreadable", folder, f"{error.strerror}; passed over")
        return
    files = _OF_A_JOB.intersection(entry.name for entry in listed)
    if files:
        yield Found(folder, files)
    elif not listed:
        yield Fault("empty folder", folder, "no records")
    elif depth:
        for entry in listed:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _below(entry.path, depth - 1)
