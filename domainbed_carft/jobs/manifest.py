"""The manifest of a sweep: ``sweep.json`` in its output folder lists every job launched there.

Each launch adds its jobs, under a lock, to those that are listed already; status, collect, report
and clean read the list. A folder that upstream's own sweep filled has none, and its records tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.jobs.job import FOLDER_NAME, Job, same_but_for_the_data

NAME = "sweep.json"
VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """Facts of a data set, so that nobody has to ask the domainbed in use for them again.

    ``labels`` of the environments; ``pictures`` of each, None where that is not known; default
    ``steps`` and ``checkpoint_freq``.
    """

    labels: tuple[str, ...]
    pictures: tuple[int, ...] | None
    steps: int
    checkpoint_freq: int


@dataclass(frozen=True)
class Sweep:
    """What was launched into an output folder; of its settings those of the last launch.

    ``selection`` are the methods that the sweep declares; ``compare_with`` published methods.
    """

    name: str
    data_dir: str
    jobs: tuple[Job, ...]
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    selection: tuple[str, ...] = ()
    compare_with: tuple[str, ...] = ()


def read(output: Path) -> Sweep | None:
    """The manifest of an output folder, None where ``carft sweep`` launched nothing into it.

    Raises CarftError for a missing folder and for a file that is no manifest.
    """
    if not output.is_dir():
        raise CarftError(f"{output} does not exist; expected the --output_dir of a sweep")
    path = output / NAME
    try:
        found = parsing.parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        return _sweep(found, output)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def add(output: Path, sweep: Sweep) -> Sweep:
    """Add the jobs of a launch to the manifest and return it; other facts are the launch's.

    Raises CarftError where it cannot be written.
    """
    return _update(output, lambda before: _joined(before, sweep))


def drop(output: Path, folders: Iterable[Path]) -> None:
    """Take the jobs of these folders from the manifest."""
    gone = set(folders)

    def without(before: Sweep | None) -> Sweep | None:
        if before is None:
            return None
        return replace(before, jobs=tuple(job for job in before.jobs if job.folder not in gone))

    _update(output, without)


def settle(jobs: Sequence[Job], output: Path) -> list[Job]:
    """The jobs, each in the folder where it has been begun or listed, if it has.

    One whose own folder is not there is looked for by its arguments apart from the data folder:
    data that moved, or another spelling of its place, makes no other job of it.
    """
    if all(job.folder.is_dir() for job in jobs):
        return list(jobs)
    sweep = read(output) if output.is_dir() else None
    listed = sweep.jobs if sweep else ()
    known: dict[tuple[str, str], Job] = {}
    for job in (*listed, *found(output, listed)):
        key = (job.variant, same_but_for_the_data(job.args))
        # Of several that one is resumed which is done, or else has begun.
        if key not in known or _progress(job) > _progress(known[key]):
            known[key] = job
    settled = []
    for job in jobs:
        other = known.get((job.variant, same_but_for_the_data(job.args)))
        moved = other is not None and not job.folder.is_dir()
        settled.append(replace(job, folder=other.folder) if moved and other else job)
    return settled


def _progress(job: Job) -> int:
    return JobFolder(job.folder).done + job.folder.is_dir()


def found(output: Path, listed: Iterable[Job] = ()) -> list[Job]:
    """Jobs whose folders are in the output folder: those ``listed``, or as their records say."""
    known = {job.folder: job for job in listed}
    jobs = []
    for folder in job_folders(output):
        if folder in known:
            jobs.append(known[folder])
        else:
            variant = "" if folder.parent == output else folder.parent.name
            jobs.append(Job(records.arguments(folder) or {}, folder, variant))
    return jobs


def job_folders(output: Path) -> Iterator[Path]:
    """Folders called as jobs are, in the output folder and in the variants' folders."""
    if not output.is_dir():
        return
    for entry in sorted(os.scandir(output), key=lambda e: e.name):
        if not entry.is_dir():
            continue
        if FOLDER_NAME.fullmatch(entry.name):
            yield Path(entry.path)
        elif not entry.name.startswith("."):  # being deleted
            with contextlib.suppress(PermissionError):
                for inner in sorted(os.scandir(entry.path), key=lambda e: e.name):
                    if inner.is_dir() and FOLDER_NAME.fullmatch(inner.name):
                        yield Path(inner.path)


def _update(output: Path, change: Callable[[Sweep | None], Sweep | None]) -> Any:
    path = output / NAME
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise CarftError(f"{output} cannot be used as --output_dir: {error.strerror}") from error
    try:
        # The folder itself is locked: the file is replaced, and a lock would go with the old one.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        changed = change(read(output))
        if changed is not None:
            try:
                text = _text(changed, output)
            except TypeError as error:  # such as a name that is not UTF-8
                raise CarftError(f"{path} could not be written: {error}") from error
            files.save(path, lambda beside: beside.write_bytes(text))
        return changed
    finally:
        os.close(descriptor)


def _joined(before: Sweep | None, sweep: Sweep) -> Sweep:
    if before is None:
        return sweep
    jobs = {job.folder: job for job in (*before.jobs, *sweep.jobs)}
    datasets = {**before.datasets, **sweep.datasets}
    return replace(sweep, jobs=tuple(jobs.values()), datasets=datasets)


def _text(sweep: Sweep, output: Path) -> bytes:
    import orjson

    content = {
        "version": VERSION,
        "name": sweep.name,
        "data_dir": sweep.data_dir,
        "selection": sweep.selection,
        "compare_with": sweep.compare_with,
        "datasets": {name: asdict(facts) for name, facts in sweep.datasets.items()},
        "jobs": [
            {
                "folder": os.path.relpath(job.folder, output),
                "variant": job.variant,
                "args": job.args,
            }
            for job in sweep.jobs
        ],
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n"


def _sweep(found: Any, output: Path) -> Sweep:
    if found["version"] != VERSION:
        raise ValueError(f"version is {found['version']!r}, expected {VERSION}")
    datasets = {
        name: Dataset(
            tuple(map(str, facts["labels"])),
            None if facts["pictures"] is None else tuple(map(int, facts["pictures"])),
            int(facts["steps"]),
            int(facts["checkpoint_freq"]),
        )
        for name, facts in found["datasets"].items()
    }
    return Sweep(
        str(found["name"]),
        str(found["data_dir"]),
        tuple(_job(one, output) for one in found["jobs"]),
        datasets,
        tuple(map(str, found["selection"])),
        tuple(map(str, found["compare_with"])),
    )


def _job(found: Any, output: Path) -> Job:
    """A stranger's manifest names no folder but those of jobs below the output folder."""
    folder, variant, args = found["folder"], found["variant"], dict(found["args"])
    *above, name = folder.split("/")
    if not FOLDER_NAME.fullmatch(name) or above != ([variant] if variant else []):
        raise ValueError(f"the folder of a job is {folder!r}")
    if variant in (".", "..") or re.search(r"[/\0]", variant):
        raise ValueError(f"the variant of a job is {variant!r}")
    job = Job(args, output / folder, variant)
    hash(job.key)
    return job


def _unreadable(path: Path, error: Exception) -> CarftError:
    return CarftError(
        f"{path} is not a manifest that can be read ({error}); move it away and launch the sweep "
        "again, which writes it anew and keeps all finished jobs"
    )
