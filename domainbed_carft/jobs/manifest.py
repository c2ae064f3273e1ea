"""The manifest of a sweep: ``sweep.json`` in its output folder lists every job launched there.

A folder that upstream's own sweep filled has none; its jobs are found by their folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """Facts of a data set, and its defaults, kept so that reading them again needs no domainbed.

    ``labels`` of the environments, ``pictures`` of each; ``held_out``: only out-splits count.
    """

    labels: tuple[str, ...]
    pictures: tuple[int, ...] | None
    steps: int
    checkpoint_freq: int
    held_out: bool = False


@dataclass(frozen=True)
class Sweep:
    """The jobs launched into an output folder, with what the last launch declared.

    ``algorithms`` is the order in which they were declared, those of the last launch first. The
    manifests of 0.1.0 have neither that nor ``skip_training_in_splits``.
    """

    jobs: tuple[Job, ...]
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    selection: tuple[str, ...] = ()
    compare_with: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    skip_training_in_splits: bool | None = None

    @property
    def declared_algorithms(self) -> tuple[str, ...]:
        """The algorithms in the declared order; of a manifest without it, in that of the jobs."""
        return self.algorithms or tuple(dict.fromkeys(job.key.algorithm for job in self.jobs))


def read(output: Path) -> Sweep | None:
    """The manifest of an output folder, if any; raises CarftError for one that is none."""
    if not output.is_dir():
        raise CarftError(f"{output} does not exist; expected the --output_dir of a sweep")
    path = output / NAME
    try:
        return _sweep(parsing.parse_json(path.read_bytes()), output)
    except FileNotFoundError:
        return None
    except (ArithmeticError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise CarftError(
            f"{path} is not a readable manifest ({error}); move the file away and launch the sweep "
            "again: that rewrites the manifest and keeps all finished jobs"
        ) from error


def add(output: Path, sweep: Sweep) -> None:
    """Add the jobs of a launch to the manifest; its other facts replace the earlier ones."""
    with _locked(output) as found:
        before = found or Sweep(())
        jobs = {job.folder: job for job in (*before.jobs, *sweep.jobs)}
        datasets = {**before.datasets, **sweep.datasets}
        algorithms = dict.fromkeys((*sweep.declared_algorithms, *before.declared_algorithms))
        merged = replace(
            sweep, jobs=tuple(jobs.values()), datasets=datasets, algorithms=tuple(algorithms)
        )
        _write(output, merged)


def drop(output: Path, folders: Iterable[Path]) -> None:
    """Remove the jobs of these folders from the manifest, if there is one."""
    gone = set(folders)
    with _locked(output) as sweep:
        if sweep:
            left = (job for job in sweep.jobs if job.folder not in gone)
            _write(output, replace(sweep, jobs=tuple(left)))


def settle(jobs: Sequence[Job], output: Path) -> list[Job]:
    """The jobs, each in the folder where it was started or is listed, if there is one.

    A job whose own folder is missing is looked up by its arguments without the data folder: moved
    data, or another spelling of its path, does not make it another job.
    """
    if not output.is_dir() or all(job.folder.is_dir() for job in jobs):
        return list(jobs)
    # Of several folders of one job that one is resumed which is done, or else has begun.
    found = of_output(output)[1][::-1]
    found.sort(key=lambda job: JobFolder(job.folder).done + job.folder.is_dir())
    known = {(job.variant, same_but_for_the_data(job.args)): job.folder for job in found}

    def place(job: Job) -> Path:
        key = job.variant, same_but_for_the_data(job.args)
        return job.folder if job.folder.is_dir() else known.get(key, job.folder)

    return [replace(job, folder=place(job)) for job in jobs]


def of_output(output: Path) -> tuple[Sweep | None, list[Job]]:
    """The manifest, if any, and the jobs: those it lists, and others whose folders are there."""
    sweep = read(output)
    jobs = {job.folder: job for job in (sweep.jobs if sweep else ())}
    # Those with a dot are being deleted.
    variants = [p for p in output.glob("[!.]*") if not FOLDER_NAME.fullmatch(p.name)]
    for place in (output, *sorted(variants)):
        for folder in sorted(place.glob("*")):
            if folder not in jobs and FOLDER_NAME.fullmatch(folder.name) and folder.is_dir():
                variant = "" if place is output else place.name
                jobs[folder] = Job(records.arguments(folder) or {}, folder, variant)
    return sweep, list(jobs.values())


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[Sweep | None]:
    """The manifest, while no other process changes it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise CarftError(f"{output} cannot be used as --output_dir: {error.strerror}") from error
    try:
        # The folder itself is locked: the file is replaced, and a lock would go with the old one.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield read(output)
    finally:
        os.close(descriptor)


def _write(output: Path, sweep: Sweep) -> None:
    import orjson

    jobs = [
        {"folder": os.path.relpath(job.folder, output), "variant": job.variant, "args": job.args}
        for job in sweep.jobs
    ]
    content = {"version": VERSION, **vars(sweep), "jobs": jobs}
    try:
        text = orjson.dumps(content, option=orjson.OPT_INDENT_2)
    except TypeError as error:  # such as a name that is not UTF-8
        raise CarftError(f"{output / NAME} could not be written: {error}") from error
    files.save(output / NAME, lambda beside: beside.write_bytes(text + b"\n"))


def _sweep(found: Any, output: Path) -> Sweep:
    if found["version"] != VERSION:
        raise ValueError(f"version is {found['version']!r}, expected {VERSION}")
    datasets = {}
    for name, facts in found["datasets"].items():
        labels, pictures = tuple(map(str, facts["labels"])), facts["pictures"]
        counts = None if pictures is None else tuple(map(int, pictures))
        steps, every = int(facts["steps"]), int(facts["checkpoint_freq"])
        datasets[name] = Dataset(labels, counts, steps, every, bool(facts.get("held_out")))
    skips = found.get("skip_training_in_splits")
    return Sweep(
        jobs=tuple(_job(one, output) for one in found["jobs"]),
        datasets=datasets,
        selection=tuple(map(str, found["selection"])),
        compare_with=tuple(map(str, found["compare_with"])),
        algorithms=tuple(map(str, found.get("algorithms", ()))),
        skip_training_in_splits=None if skips is None else bool(skips),
    )


def _job(found: Any, output: Path) -> Job:
    """A stranger's manifest may name only folders of jobs below the output folder."""
    folder, variant, args = str(found["folder"]), str(found["variant"]), dict(found["args"])
    *above, name = folder.split("/")
    is_below = above == ([variant] if variant else []) and variant not in (".", "..")
    if not is_below or not FOLDER_NAME.fullmatch(name) or "\0" in variant:
        raise ValueError(f"a job's folder is {folder!r}")
    job = Job(args, output / folder, variant)
    hash(job.key)
    return job
