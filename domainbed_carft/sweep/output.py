"""The output folder of a sweep: which jobs lie where in it, and what was launched into it.

``sweep.yaml`` is a copy of the declaration, ``sweep.json`` what is to be known beside it; each
job's ``job.json`` has its arguments.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import DESCRIPTION, DONE, RECORDS
from domainbed_carft.sweep.jobs import Job, same_but_for_the_data

FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
DECLARATION, LAUNCHED = "sweep.yaml", "sweep.json"


@dataclass(frozen=True)
class Launched:
    """What was launched last into an output folder.

    ``flags`` are DomainBed's own flags, where they were given in place of a file; ``datasets``
    the facts of each data set (``host.Dataset``), so that nobody has to be asked for them again.
    """

    name: str
    data_dir: str
    declared_in: str | None
    flags: Mapping[str, Any] | None
    datasets: Mapping[str, Mapping[str, Any]]
    launcher: str
    at: float


def job_folders(output: Path) -> Iterator[Path]:
    """Folders called as jobs are, in the output folder and in the variants' folders."""
    if not output.is_dir():
        return
    for entry in sorted(os.scandir(output), key=lambda e: e.name):
        if not entry.is_dir():
            continue
        if FOLDER_NAME.fullmatch(entry.name):
            yield Path(entry.path)
        elif entry.name != "launches" and not entry.name.startswith("."):  # being deleted
            for inner in sorted(os.scandir(entry.path), key=lambda e: e.name):
                if inner.is_dir() and FOLDER_NAME.fullmatch(inner.name):
                    yield Path(inner.path)


def arguments_of(folder: Path) -> dict[str, Any] | None:
    """Arguments of the job in a folder: from job.json, else from its first whole record."""
    described = _json(folder / DESCRIPTION)
    if described is not None and isinstance(described.get("train_args"), dict):
        return dict(described["train_args"])
    for record in records(folder):
        return dict(record["args"])
    return None


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a job; a line that was cut off is passed over."""
    try:
        with (folder / RECORDS).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(record, dict) and isinstance(record.get("args"), dict):
                    yield record
    except OSError:
        return


def last_record(folder: Path) -> dict[str, Any] | None:
    """The last whole record, read from the end of the file."""
    try:
        with (folder / RECORDS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            reach = 1 << 16
            while True:
                file.seek(max(0, size - reach))
                for line in reversed(file.read().split(b"\n")):
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(record, dict) and "step" in record:
                        return record
                if reach >= size:
                    return None
                reach *= 8
    except OSError:
        return None


def settle(jobs: Iterable[Job], output: Path) -> list[Job]:
    """The jobs, each in the folder where it has been begun, if it has.

    One whose own folder is not there is looked for by its arguments apart from the data folder:
    data that moved, or another spelling of its place, makes no other job of it.
    """
    listed = list(jobs)
    if all(job.folder.is_dir() for job in listed):
        return listed
    own = {job.folder for job in listed}
    begun: dict[tuple[Path, str], Path] = {}
    for folder in job_folders(output):
        if folder not in own and (train_args := arguments_of(folder)) is not None:
            key = (folder.parent, same_but_for_the_data(train_args))
            # Of several that one is gone on with which is done.
            if key not in begun or not (begun[key] / DONE).exists():
                begun[key] = folder
    return [job if job.folder.is_dir() else _settled(job, begun) for job in listed]


def _settled(job: Job, begun: Mapping[tuple[Path, str], Path]) -> Job:
    found = begun.get((job.folder.parent, same_but_for_the_data(job.train_args)))
    return replace(job, folder=found) if found else job


def found_jobs(output: Path, known: Iterable[Job] = ()) -> list[Job]:
    """Jobs in the output folder that are not among ``known``."""
    taken = {job.folder for job in known}
    found = []
    for folder in job_folders(output):
        if folder not in taken:
            variant = "" if folder.parent == output else folder.parent.name
            found.append(Job(_complete(arguments_of(folder)), folder, variant))
    return found


def _complete(train_args: Mapping[str, Any] | None) -> dict[str, Any]:
    blank = {"dataset": "?", "algorithm": "?", "test_envs": [], "trial_seed": "?"}
    return {**blank, "hparams_seed": "?", **(train_args or {})}


def describe(job: Job, declared_in: str | None) -> None:
    """Make the job's folder and write its arguments there."""
    job.folder.mkdir(parents=True, exist_ok=True)
    _write_json(
        job.folder / DESCRIPTION,
        {"train_args": dict(job.train_args), "declared_in": declared_in},
    )


def remember(output: Path, launched: Launched, declaration: str | None) -> None:
    """Write what is launched into the output folder; ``declaration`` is the text of its file."""
    _write_json(output / LAUNCHED, vars(launched))
    copy = output / DECLARATION
    if declaration is None:
        copy.unlink(missing_ok=True)
    else:
        files.write(copy, lambda path: path.write_text(declaration, encoding="utf-8"))


def recall(output: Path) -> Launched | None:
    """What was launched last; None for a folder that ``carft sweep`` did not launch into."""
    if not output.is_dir():
        raise CarftError(f"there is no folder {output}, expected the --output_dir of a sweep")
    found = _json(output / LAUNCHED)
    try:
        return None if found is None else Launched(**found)
    except TypeError as error:
        raise CarftError(f"{output / LAUNCHED} is not of this version: {error}") from error


def now() -> float:
    """Seconds since 1970."""
    return time.time()


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1) + "\n"
    try:
        files.write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CarftError(f"{path} cannot be written: {error}") from error
