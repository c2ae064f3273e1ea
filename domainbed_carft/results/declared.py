"""What the declaration of a sweep, which lies in its output folder, says of its results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, planned
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.planned import Planned
from domainbed_carft.jobs.scan import DECLARATION, LAUNCHED
from domainbed_carft.results import selection
from domainbed_carft.results.jobs import identity
from domainbed_carft.results.settings import Group

_DEFAULT = ("training-domain", "oracle")  # as domainbed_carft.sweep has it, which a test compares


def compare_with(folders: Iterable[Path | str]) -> list[str]:
    """The published methods that the declared sweeps in ``folders`` are about.

    Raises CarftError for a declaration that cannot be read.
    """
    found: dict[str, None] = {}
    for folder in folders:
        path = Path(folder) / DECLARATION
        try:
            found |= dict.fromkeys((_read(path) or {}).get("compare_with", ()))
        except (OSError, ValueError, TypeError) as error:
            raise CarftError(
                f"{path} cannot be read ({error}); expected the copy of the declaration that "
                "`carft sweep launch` left there. Without that file all published figures count"
            ) from error
    return list(found)


def selections(folders: Iterable[Path | str]) -> tuple[list[list[str] | None], list[Fault]]:
    """The methods of selection that the sweep in each folder declares; None where none does."""
    found: list[list[str] | None] = []
    faults = []
    for folder in folders:
        path = Path(folder) / DECLARATION
        try:
            found.append(_selection(_read(path)))
        except (OSError, ValueError) as error:
            what = f"{error}; passed over, and so are the methods of selection that it declares"
            faults.append(Fault("unreadable", str(path), what))
            found.append(None)
    return found, faults


def jobs(folders: Iterable[Path | str]) -> tuple[list[Planned], list[Fault]]:
    """The jobs of the sweeps that were launched into ``folders``, run or not."""
    found: list[Planned] = []
    faults = []
    for folder in map(Path, folders):
        if not (folder / LAUNCHED).is_file():
            continue
        try:
            found += _jobs(folder)
        except Exception as error:  # whatever somebody has made of these files
            path = folder / DECLARATION
            path = path if path.is_file() else folder / LAUNCHED
            told = "; ".join(line.removeprefix("- ") for line in str(error).splitlines())
            what = f"{told}; passed over: the jobs of the folder tell which were to be run"
            faults.append(Fault("unreadable", str(path), what))
    return found, faults


def _jobs(folder: Path) -> list[Planned]:
    sweep = manifest.read(folder)
    if sweep is None:
        return []
    return [
        planned.of(os.fspath(job.folder), job.args)._replace(
            declared=True, environments=sweep.datasets[job.args["dataset"]].labels
        )
        for job in sweep.jobs
    ]


def placed(groups: Sequence[Group]) -> list[Group]:
    """Without the declared jobs that were run in another group, where they are not missed.

    Missed they are among runs of the same trial, and of the algorithm's same hyperparameters.
    """
    if len(groups) < 2:
        return list(groups)
    ran = [{identity(run) for run in group.runs} for group in groups]
    where: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        for job in group.planned:
            where.setdefault(id(job), []).append(number)
    result = []
    for number, group in enumerate(groups):
        trials = {(run.dataset, run.trial) for run in group.runs}
        choices = {(run.dataset, run.algorithm, run.choice) for run in group.runs}
        kept = [
            job
            for job in group.planned
            if not job.declared
            or not any(identity(job) in ran[other] for other in where[id(job)] if other != number)
            or identity(job) in ran[number]
            or (
                (job.dataset, job.trial) in trials
                and (job.dataset, job.algorithm, job.choice) in choices
            )
        ]
        result.append(group._replace(planned=kept))
    return result


def _selection(declared: dict[str, Any] | None) -> list[str] | None:
    # Others have files of that name, too.
    if declared is None or not {"datasets", "algorithms"} <= declared.keys():
        return None
    chosen = declared.get("selection", _DEFAULT)
    names = [name for name in selection.METHODS if name != selection.IN_DOMAIN]
    if not isinstance(chosen, list | tuple) or not chosen or any(n not in names for n in chosen):
        raise ValueError(f"selection is {chosen!r}, expected a list of {', '.join(names)}")
    return list(chosen)


def _read(path: Path) -> dict[str, Any] | None:
    """The declaration, None if there is none; raises OSError or ValueError if it is no mapping."""
    if not path.is_file():
        return None
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(declared, dict):
        raise ValueError(f"it is {type(declared).__name__}, expected a mapping")
    return declared
