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
    """Return `name`, a path in its shortest form: `./pets/` and `pets` are one data set."""
    return os.path.normpath(name) if os.sep in name else name


def folder_of(name: str, taken: bool = False) -> str | None:
    """Return the folder that `name` stands for; None for a name that is no path and not listed.

    Raises:
        UsageError: a data set in Python has that name already (`taken`), and the file lists it.
    """
    if os.sep in name:
        return name
    listed = _listed().get(name)
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
        UsageError: there is no such folder, or none in it, or one that is no domain.
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
    try:
        classes = {
            domain: _folders_in(os.path.join(folder, domain)) for domain in environments(folder)
        }
    except errors.UsageError as error:
        return error.problems
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
    found = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
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
    return os.environ.get(VARIABLE, DEFAULT_FILE)


def _listed() -> dict[str, str]:
    """Return name to folder, as the file of data sets has them.

    A `datasets.txt` that nobody has named may be about something else: its other lines are skipped.
    """
    path = _file()
    if not os.path.isfile(path):
        return {}
    base = os.path.dirname(os.path.abspath(path))
    result = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            text = line.strip()
            name, separator, folder = (part.strip() for part in text.partition("="))
            if separator and name and folder:
                result[name] = os.path.join(base, os.path.expanduser(folder))
            elif text and not text.startswith("#") and VARIABLE in os.environ:
                raise errors.UsageError(
                    [f"{path}, line {number}: expected NAME = PATH, not: {text}"]
                )
    return result
