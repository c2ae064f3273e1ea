"""What can be said of a sweep's data before its jobs start: verdicts without decoding images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from domainbed_carft.data import benchmarks, tasks, verify
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Job, overrides
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.suites import imagenet_training
from domainbed_carft.sweep import host

_CHECKED_BY_JOBS = "each job checks its data where it runs"


@dataclass(frozen=True)
class DataVerdict:
    """What the data of a dataset is like: the ``description``, and the problem of broken data.

    ``missing`` is the problem of data that is not here, which only jobs of this machine have.
    ``dataset``: its name, "" for all datasets of a sweep.
    """

    description: str
    broken: str | None = None
    missing: str | None = None
    dataset: str = ""


def default_data_dir(datasets: Sequence[str]) -> str:
    """The ``--data_dir`` of a sweep without one; it is not read.

    Raises CarftError if a dataset needs one.
    """
    folders = [host.image_folder(name, "--data_dir") for name in datasets]
    if any(folder is None or folder.startswith("--data_dir") for folder in folders):
        raise CarftError("--data_dir is missing; expected the folder of the datasets' folders")

    are_embedded = all(name in benchmarks.BENCHMARKS for name in datasets)
    return "embedded" if are_embedded else "."


def verdicts(datasets: Sequence[str], jobs: Iterable[Job], data_dir: str) -> list[DataVerdict]:
    """The verdict on each dataset's folder, as far as it is on this machine.

    Broken data is a problem where one of our algorithms would train on it, as its job would refuse
    it. Other algorithms' jobs warn of it.
    """
    checking_datasets = {job.key.dataset for job in jobs if _checks_data(job)}
    no_data_dir = benchmarks.data_dir_problems(data_dir)

    distinct: dict[str, DataVerdict] = {}
    for name in datasets:
        folder = host.image_folder(name, data_dir)
        if no_data_dir and folder and not os.path.isdir(folder):
            description = f"not checked, no --data_dir {data_dir} here; {_CHECKED_BY_JOBS}"
            verdict = DataVerdict(description, missing=no_data_dir[0])
        else:
            verdict = _verdict(name, folder, data_dir, is_checked=name in checking_datasets)
            verdict = replace(verdict, dataset=name)
        distinct.setdefault(verdict.description, verdict)
    return list(distinct.values())


def _checks_data(job: Job) -> bool:
    """Whether a job refuses broken data."""
    from domainbed_carft.method.algorithms import CLASSES  # takes the seconds of importing torch

    is_ours = job.key.algorithm in CLASSES
    return is_ours and overrides(job.args).get("data_edition") != UNCHECKED


def _verdict(name: str, folder: str | None, data_dir: str, is_checked: bool) -> DataVerdict:
    """The verdict on one dataset; ``is_checked``: whether a job refuses broken data."""
    if folder is None:
        return DataVerdict(f"{name}: not checked, its folder is unknown")
    if not folder:
        return DataVerdict(f"{name}: needs no folder")
    if not os.path.isdir(folder):
        return DataVerdict(
            f"{name}: not checked, no {folder} here; each job checks it where it runs",
            missing=f"{name} is missing, expected its folder {folder}; "
            f"is --data_dir {data_dir} right?",
        )

    try:
        report = _verify(name, Path(data_dir))
    except CarftError as error:  # a folder, or lists in it, that cannot be read at all
        return DataVerdict(f"{name}: {error}", broken=str(error))

    if not report.problems:
        edition = report.data_edition
        return DataVerdict(f"{name}: {edition}, {report.images:,} images in {report.root}")
    problem = f"{report.error_text}; fix the data, or set the hparam data_edition to {UNCHECKED}"
    return DataVerdict(
        f"{name}: broken: {'; '.join(report.problems)}", broken=problem if is_checked else None
    )


def _verify(name: str, data_dir: Path) -> verify.DataReport:
    """What `carft data verify` finds of the images that jobs of the dataset train on."""
    if name == "ImageNet":
        return imagenet_training.verify(data_dir)
    if name in tasks.TASKS:
        return tasks.verify(name, data_dir)
    return verify.verify(name, data_dir)
