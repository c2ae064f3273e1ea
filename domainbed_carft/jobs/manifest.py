"""The manifest of a sweep: ``sweep.json`` in its output folder lists every job launched there.

Upstream's sweep writes no manifest, so its jobs are found by their folders.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.files import validation
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import FOLDER_NAME, REPEAT, Job, Role, get_data_independent_key
from domainbed_carft.jobs.job_folder import JobFolder

Row = tuple[str, str, str]  # variant, dataset and algorithm


def get_row(job: Job) -> Row:
    """Return the row of the tables to which a job belongs."""
    return job.role.cell, job.key.dataset, job.key.algorithm


@dataclass(frozen=True)
class ChosenValues:
    """Values that the first stage of a search chose for one variant, dataset and algorithm."""

    cell: str  # name of the variant
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...] | None  # targets of the jobs that use the values; None for all
    values: Mapping[str, Any]  # by searched hyperparameter
    members: int  # number of members from which the values were chosen
    validation: float  # mean validation accuracy of the values, in [0, 1]

    @property
    def row(self) -> Row:
        """The row of the tables to which the values belong."""
        return self.cell, self.dataset, self.algorithm


@dataclass(frozen=True)
class Search:
    """A search in two stages."""

    rule: str  # the selection rule that chooses
    choose_by: str  # "dataset" or "target"
    choose_on: tuple[int, ...]  # trial seeds of the first stage, which trains every member
    repeat_on: tuple[int, ...]  # trial seeds of the second stage, which trains the chosen member
    repeats: int  # number of jobs in the second stage
    is_choosing: bool  # True until the first stage of the last launch is done
    chosen: tuple[ChosenValues, ...] = ()  # in the manifest, also those of earlier launches

    def is_chosen(self, job: Job) -> bool:
        """Return True if a job of the second stage trains the values that the first one chose."""
        chosen_values = [
            chosen.values
            for chosen in self.chosen
            if chosen.row == get_row(job)
            and (chosen.test_envs is None or {*chosen.test_envs} <= job.key.test_envs)
        ]
        return not chosen_values or job.role.values in chosen_values


def format_trials(seeds: Sequence[int]) -> str:
    """Return text such as ``trial 5`` or ``trials 0, 1, 2``."""
    return f"{'trial' if len(seeds) == 1 else 'trials'} {', '.join(map(str, seeds))}"


SWEEP_FILE = "sweep.json"
VERSION = 1

# Files next to the manifest in the output folder.
LOCK_FILE = ".sweep.lock"  # separate, because the manifest itself is replaced
DECLARATION_FILE = "sweep.yaml"  # the launched declaration
PREFLIGHT_FILE = "preflight.json"


@dataclass(frozen=True)
class Dataset:
    """Facts and defaults of a dataset, kept because reading them again would need domainbed."""

    labels: tuple[str, ...]  # names of the environments
    images: tuple[int, ...] | None  # number of images in each environment
    steps: int
    checkpoint_freq: int
    held_out: bool = False  # True if only out-splits are evaluated


@dataclass(frozen=True)
class Sweep:
    """All jobs launched into an output folder, and what the last launch declared."""

    jobs: tuple[Job, ...]
    datasets: Mapping[str, Dataset] = field(default_factory=dict)  # by name
    selection: tuple[str, ...] = ()  # selection rules
    compare_with: tuple[str, ...] = ()  # algorithms
    algorithms: tuple[str, ...] = ()  # in declared order, beginning with the last launch
    skip_training_in_splits: bool | None = None  # None if domainbed's train always evaluates them
    search: Search | None = None  # the search of the last launch, if it has stages


def read(output: Path) -> Sweep | None:
    """Read the manifest of an output folder, or return None if there is none.

    Raises CarftError if the folder does not exist or the manifest cannot be read.
    """
    if not output.is_dir():
        fault = "is a file" if output.exists() else "does not exist"
        raise CarftError(f"{output} {fault}; expected the --output_dir of a sweep")

    path = output / SWEEP_FILE
    try:
        return _parse_sweep(json.loads(files.read_regular(path)), output)
    except FileNotFoundError:
        return None
    except (ArithmeticError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or validation.describe(error)
        raise CarftError(
            f"{path} is not a readable manifest ({reason}). Move the file away and launch the "
            "sweep again, which rewrites the manifest and keeps all finished jobs"
        ) from error


def add(output: Path, sweep: Sweep, keeps_declared: bool = False) -> None:
    """Add the jobs of a launch to the manifest, and replace what the launch before declared.

    With ``keeps_declared`` it is not replaced, because DomainBed's sweep declares nothing. Values
    that a search has chosen for a row are kept until a launch has jobs of the row's second stage.
    """
    with _locked(output) as earlier:
        before = earlier or Sweep(())
        if sweep.search and before.search:
            repeated_rows = {get_row(job) for job in sweep.jobs if job.role.stage == REPEAT}
            kept = (chosen for chosen in before.search.chosen if chosen.row not in repeated_rows)
            search = replace(sweep.search, chosen=(*kept, *sweep.search.chosen))
            sweep = replace(sweep, search=search)

        jobs = {job.folder: job for job in (*before.jobs, *sweep.jobs)}
        datasets = {**before.datasets, **sweep.datasets}
        algorithms = dict.fromkeys((*sweep.algorithms, *before.algorithms))
        merged = replace(
            before if keeps_declared else sweep,
            jobs=tuple(jobs.values()),
            datasets=datasets,
            algorithms=tuple(algorithms),
        )
        _write(output, merged)


def drop(output: Path, folders: Iterable[Path]) -> None:
    """Remove the jobs of these folders from the manifest, if there is one."""
    dropped = set(folders)
    with _locked(output) as sweep:
        if sweep:
            jobs = tuple(job for job in sweep.jobs if job.folder not in dropped)
            _write(output, replace(sweep, jobs=jobs))


def reuse_folders(jobs: Sequence[Job], known_jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with the folders in which they were started before, if there are any.

    A job whose own folder is missing is looked up by its arguments without the data folder, because
    moved data, or another spelling of its path, does not make a different job.

    Args:
        jobs: the jobs.
        known_jobs: the jobs that `read_jobs` finds in the output folder.
    """
    if not known_jobs or all(job.folder.is_dir() for job in jobs):
        return list(jobs)

    # If a job has several folders, prefer one that is done, then one that has begun.
    ordered = sorted(
        reversed(known_jobs), key=lambda job: JobFolder(job.folder).done + job.folder.is_dir()
    )
    folders = {(job.variant, get_data_independent_key(job.args)): job.folder for job in ordered}

    def find_folder(job: Job) -> Path:
        if job.folder.is_dir():
            return job.folder
        return folders.get((job.variant, get_data_independent_key(job.args)), job.folder)

    return [replace(job, folder=find_folder(job)) for job in jobs]


def read_jobs(output: Path) -> tuple[Sweep | None, list[Job]]:
    """Read the manifest, if any, and the jobs: listed ones, and others that have a folder."""
    sweep = read(output)
    jobs = {job.folder: job for job in (sweep.jobs if sweep else ())}

    # Folders that begin with a dot are being deleted.
    variant_folders = [
        path for path in output.glob("[!.]*") if not FOLDER_NAME.fullmatch(path.name)
    ]
    for parent in (output, *sorted(variant_folders)):
        variant = "" if parent is output else parent.name
        for folder in sorted(parent.glob("*")):
            if folder not in jobs and FOLDER_NAME.fullmatch(folder.name) and folder.is_dir():
                jobs[folder] = Job(records.read_recorded_arguments(folder) or {}, folder, variant)
    return sweep, list(jobs.values())


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[Sweep | None]:
    """Read the manifest and lock it inside the block."""
    from filelock import FileLock

    lock = FileLock(output / LOCK_FILE)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise CarftError(f"{output} cannot be used as --output_dir: {error.strerror}") from error

    try:
        yield read(output)
    finally:
        lock.release()


def _write(output: Path, sweep: Sweep) -> None:
    import orjson

    jobs: list[dict[str, Any]] = []
    for job in sweep.jobs:
        folder = os.path.relpath(job.folder, output)
        jobs.append({"folder": folder, "variant": job.variant, "args": job.args})
        if job.role != Role():
            jobs[-1]["role"] = job.role
    content = {"version": VERSION, **vars(sweep), "jobs": jobs}

    try:
        text = orjson.dumps(content, option=orjson.OPT_INDENT_2)
    except TypeError as error:  # for example, a name that is not UTF-8
        raise CarftError(f"{output / SWEEP_FILE} could not be written: {error}") from error
    files.save_bytes(output / SWEEP_FILE, text + b"\n")


def _parse_sweep(content: Any, output: Path) -> Sweep:
    """Parse the content of the file.

    Raises KeyError, TypeError or ValueError, such as pydantic's ValidationError, if it is invalid.
    """
    from pydantic import TypeAdapter

    if content["version"] != VERSION:
        raise ValueError(invalid("version", content["version"], str(VERSION)))
    sweep = TypeAdapter(Sweep).validate_python(content)
    jobs = (_resolve_job(job, output, f"jobs.{n}") for n, job in enumerate(sweep.jobs))
    return replace(sweep, jobs=tuple(jobs))


def _resolve_job(listed: Job, output: Path, keys: str) -> Job:
    """Return a listed job, which ``keys`` lead to, with its whole path.

    An untrusted manifest can name only job folders below the output folder, and it can set nothing
    else of a job, such as process variables.
    """
    *parents, name = listed.folder.parts or ("",)
    expected_parents = [listed.variant] if listed.variant else []
    is_below = parents == expected_parents and listed.variant not in (".", "..")
    if not is_below or not FOLDER_NAME.fullmatch(name) or "\0" in listed.variant:
        raise ValueError(invalid(f"{keys}.folder", str(listed.folder), "the folder of a job"))

    job = Job(listed.args, output / listed.folder, listed.variant, listed.role)
    try:
        hash(job.candidate)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{keys}.args: {validation.describe(error)}") from error
    return job
