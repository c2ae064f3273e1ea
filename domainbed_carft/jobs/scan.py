"""Finding the folders of jobs below the folders that a user names. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.folder import DESCRIPTION, DONE, ERRORS, OUTPUT, RECORDS

# One of these makes a folder a job's. What else a job prints into has names that a shell is told
# for a whole sweep, too: `nohup ... > OUT/out.txt`.
SURE = frozenset({RECORDS, DESCRIPTION, DONE})
_OF_A_JOB = SURE | {OUTPUT, ERRORS}
_READ = (RECORDS, OUTPUT, DESCRIPTION)
# What `carft sweep launch` leaves in its output folder, as domainbed_carft.sweep has it, which a
# test compares: the declaration, and what is to be known beside it.
DECLARATION, LAUNCHED = "sweep.yaml", "sweep.json"
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
    walk = _Walk()
    roots: list[str] = []
    for folder in map(str, folders):
        real = os.path.realpath(folder)
        walk.again = any(_is_within(real, root) for root in roots)
        if walk.again:
            walk.faults.append(Fault("named twice", folder, "its jobs count once"))
        roots.append(real)
        walk.visit(folder, real, DEPTH)
    return walk.jobs, list(dict.fromkeys([*walk.faults, *walk.too_deep.values()]))


class _Walk:
    """Goes through folders, each real one once, however many links lead there.

    ``again``: whether the folder gone through was named within another, which is told already.
    """

    def __init__(self) -> None:
        self.jobs: list[Found] = []
        self.faults: list[Fault] = []
        self.too_deep: dict[str, Fault] = {}
        self.again = False
        self._levels: dict[str, int] = {}  # real path -> how many levels below it were looked at

    def visit(self, folder: str, real: str, depth: int) -> None:
        """Look at a folder, of which ``real`` is the path without links, and ``depth`` levels."""
        if self._levels.get(real, -1) >= depth:
            if not self.again:
                what = f"this is {real}, which was found already; its jobs count once"
                self.faults.append(Fault("found twice", folder, what))
            return
        self._levels[real] = depth
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.faults.append(Fault("unreadable", folder, f"{error.strerror}; passed over"))
            return
        named = [
            entry
            for entry in listed
            if entry.name in _OF_A_JOB and not self._is_folder_of_done(entry)
        ]
        sure = not SURE.isdisjoint(entry.name for entry in named)
        inner = [] if sure else self._inner(listed)
        if sure or (named and not inner):
            self._levels[real] = DEPTH
            self.jobs.append(Found(folder, self._regular(named)))
        elif not listed:
            self.faults.append(Fault("empty folder", folder, "no records"))
        elif inner:
            self._go_on(folder, real, inner, depth)

    def _go_on(self, folder: str, real: str, inner: list[os.DirEntry[str]], depth: int) -> None:
        self.too_deep.pop(real, None)
        if not depth:
            what = (
                f"its {len(inner)} folders are more than {DEPTH} levels below what was named, and "
                "were not looked at; name this one to have them collected"
            )
            self.too_deep[real] = Fault("too deep", folder, what)
            return
        for entry in inner:
            if not entry.is_symlink():
                self.visit(entry.path, os.path.join(real, entry.name), depth - 1)
                continue
            target = os.path.realpath(entry.path)
            if _is_within(real, target):
                what = f"a link to {target}, in which it is itself; not followed"
                self.faults.append(Fault("link upwards", entry.path, what))
            else:
                self.visit(entry.path, target, depth - 1)

    def _inner(self, listed: Iterable[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
        shown = (entry for entry in listed if not entry.name.startswith("."))
        return [entry for entry in shown if self._check(entry, entry.is_dir)]

    def _is_folder_of_done(self, entry: os.DirEntry[str]) -> bool:
        """Whether this is a folder into which somebody has put what is done."""
        return entry.name == DONE and self._check(entry, entry.is_dir)

    def _regular(self, named: Iterable[os.DirEntry[str]]) -> frozenset[str]:
        """Names of what may be opened: a named pipe would be waited for without an end."""
        names = set()
        for entry in named:
            if entry.name not in _READ or self._check(entry, entry.is_file):
                names.add(entry.name)
            else:
                what = "no regular file; passed over"
                self.faults.append(Fault("no regular file", entry.path, what))
        return frozenset(names)

    def _check(self, entry: os.DirEntry[str], check: Callable[[], bool]) -> bool:
        """``check()``; False, and told, where it cannot be said, as of a link to itself."""
        try:
            return check()
        except OSError as error:
            self.faults.append(Fault("unreadable", entry.path, f"{error.strerror}; passed over"))
            return False


def _is_within(path: str, folder: str) -> bool:
    """Whether ``path``, a real one as ``folder`` is, is this folder or below it."""
    return os.path.commonpath([path, folder]) == folder
