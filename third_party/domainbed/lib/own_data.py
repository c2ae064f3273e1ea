"""A user's own data: pictures in folders domain/class, without a class in Python.

`--dataset` takes the folder's path; or a name, with a line `NAME = PATH` for it in `datasets.txt`
in the current folder, or in the file that the environment variable DOMAINBED_DATASETS names. Paths
in it count from where the file lies. Upstream has nothing like it.
"""

from __future__ import annotations

import os
import re

from domainbed.lib import errors

VARIABLE = "DOMAINBED_DATASETS"
DEFAULT_FILE = "datasets.txt"

# What archives and tools leave behind; DomainBed would take it for an environment or a class.
STRAY = re.compile(r"\.|__MACOSX$|eccv_18_")


def spelled(name: str) -> str:
    """Return `name`, a path in its shortest form that still is one.

    `./pets/` and `pets/` are `./pets`, one data set; `pets` is a name, perhaps of another one.
    """
    if os.sep not in name:
        return name
    path = os.path.normpath(name)
    return path if os.sep in path else os.path.join(os.curdir, path)


def folder_of(name: str, taken: bool = False) -> str | None:
    """Return the folder that `name` stands for; None for a name that is no path and not listed.

    Raises:
        UsageError: a data set in Python has that name already (`taken`), and the file lists it; or
            the file is wrong.
    """
    if os.sep in name:
        return name
    listed = _listed(name)
    if taken and listed is not None:
        raise errors.UsageError(
            [f"{_file()} gives a folder for {name}, which is a data set of DomainBed's: rename it."]
        )
    if listed is not None or taken:
        return listed
    return name if os.path.isdir(name) else None


def environments(folder: str) -> list[str]:
    """Return the domains' names, sorted; the folders in `folder`, of which there must be one.

    Raises:
        UsageError: there is no such folder, or none in it, or one that is no domain; or it cannot
            be read.
    """
    if not os.path.isdir(folder):
        raise errors.UsageError(
            [f"There is no folder {folder}: expected one with a sub-folder a domain."]
        )
    found = _folders_in(folder)
    if not found:
        raise errors.UsageError([f"{folder} has no sub-folders; expected one a domain."])
    return found


def problems(folder: str) -> list[str]:
    """Say what is wrong with the tree, by the names of its folders; no picture is looked at."""
    classes: dict[str, list[str]] = {}
    unread: list[str] = []
    try:
        for domain in environments(folder):
            try:
                classes[domain] = _folders_in(os.path.join(folder, domain))
            except errors.UsageError as error:
                unread += error.problems
    except errors.UsageError as error:
        return error.problems
    if unread:
        return unread
    result = [
        f"The domain {os.path.join(folder, domain)} has no sub-folders; expected one a class."
        for domain, found in classes.items()
        if not found
    ]
    first, *others = classes
    for other in others:
        differing = sorted(set(classes[first]) ^ set(classes[other]))
        if differing and classes[other]:
            result.append(
                f"The domains {first!r} and {other!r} of {folder} have different classes: only one "
                f"of them has {', '.join(differing)}. One label must mean the same in all."
            )
    return result


def _folders_in(path: str) -> list[str]:
    at = path
    try:
        found = []
        for entry in os.scandir(path):
            at = entry.path
            if entry.is_dir():
                found.append(entry.name)
        found.sort()
    except OSError as error:
        what, remedy = ("folder", "its permissions") if at == path else ("link", "or delete it")
        raise errors.UsageError(
            [f"The {what} {at} cannot be read ({error.strerror}): mend {remedy}."]
        ) from error
    stray = [name for name in found if STRAY.match(name)]
    if stray:
        raise errors.UsageError(
            [
                f"{path} holds {', '.join(stray)}, which would count as a domain or a class: "
                "delete it or move it away."
            ]
        )
    return found


def _file() -> str:
    return os.environ.get(VARIABLE) or DEFAULT_FILE


def _listed(wanted: str) -> str | None:
    """Return the folder that the file of data sets gives for the name `wanted`, if it does.

    A `datasets.txt` that nobody has named may be about something else: it need not be there, and
    what is wrong with its other lines does not matter.
    """
    path, meant = _file(), bool(os.environ.get(VARIABLE))
    base = os.path.dirname(os.path.abspath(path))
    result: dict[str, str] = {}
    for number, line in enumerate(_lines(path, meant), start=1):
        text = line.strip()
        name, separator, folder = (part.strip() for part in text.partition("="))
        if not text or text.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if separator and name and folder:
            place = os.path.join(base, os.path.expanduser(folder))
            other = result.setdefault(name, place)
            same = os.path.normpath(other) == os.path.normpath(place)
            if not same and (meant or name == wanted):
                raise errors.UsageError(
                    [f"{where}: {name} is {place}, and {other} further up: keep one of them."]
                )
        elif meant:
            raise errors.UsageError([f"{where}: expected NAME = PATH, not: {text}"])
    return result.get(wanted)


def _lines(path: str, meant: bool) -> list[str]:
    if not (meant or os.path.isfile(path)):
        return []
    try:
        # Windows' editors put a mark at the beginning, which would be part of the first name.
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.readlines()
    except OSError as error:
        said = f"{VARIABLE} is {path}" if meant else path
        raise errors.UsageError(
            [
                f"{said}, which cannot be read ({error.strerror}): expected a file with a line "
                f"NAME = PATH a data set{f', or no {VARIABLE}' if meant else ''}."
            ]
        ) from error
