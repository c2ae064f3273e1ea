"""Verification of a sweep's data before its jobs start, without decoding any image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from domainbed_carft.data import benchmarks, tasks, verification
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Job, parse_overrides
from domainbed_carft.method.hparams import UNVERIFIED
from domainbed_carft.suites import imagenet_training, known_data

_VERIFIED_BY_JOBS = "each job verifies its data where it runs"


@dataclass(frozen=True)
class DataFinding:
    """What verifying the data of one dataset found.

    Attributes:
        description: the result in words, for people.
        broken: the problem if the data is broken and a job would refuse it.
        missing: the problem if the data is not on this machine, which matters only to jobs that
            run here.
        dataset: the dataset's name, or "" if the result holds for all datasets of the sweep.
    """

    description: str
    broken: str | None = None
    missing: str | None = None
    dataset: str = ""


def default_data_dir(datasets: Sequence[str]) -> str:
    """Return a placeholder ``--data_dir`` for a sweep whose datasets do not need one.

    Raises CarftError if a dataset needs one.
    """
    folders = [known_data.find_image_folder(name, "--data_dir") for name in datasets]
    if any(folder is None or folder.startswith("--data_dir") for folder in folders):
        raise CarftError("--data_dir is missing; expected the folder of the datasets' folders")

    are_embedded = all(name in benchmarks.BENCHMARKS for name in datasets)
    return "embedded" if are_embedded else "."


def verify_datasets(
    datasets: Sequence[str], jobs: Iterable[Job], data_dir: str
) -> list[DataFinding]:
    """Verify each dataset's folder, if it is on this machine.

    Broken data is a problem only if one of the package's algorithms would train on it, because its
    job would refuse the data. Jobs of other algorithms print a warning.
    """
    from domainbed_carft.method.algorithms import CLASSES  # takes the seconds of importing torch

    verifying_datasets = {
        job.key.dataset
        for job in jobs
        if job.key.algorithm in CLASSES
        and parse_overrides(job.args).get("data_edition") != UNVERIFIED
    }
    no_data_dir = benchmarks.data_dir_problems(data_dir)

    distinct: dict[str, DataFinding] = {}
    for name in datasets:
        folder = known_data.find_image_folder(name, data_dir)
        if no_data_dir and folder and not os.path.exists(folder):
            description = (
                f"not verified: {data_dir} does not exist on this machine; {_VERIFIED_BY_JOBS}"
            )
            finding = DataFinding(description, missing=no_data_dir[0])
        else:
            is_required = name in verifying_datasets
            finding = _verify_dataset(name, folder, data_dir, is_required)
            finding = replace(finding, dataset=name)
        distinct.setdefault(finding.description, finding)
    return list(distinct.values())


def _verify_dataset(name: str, folder: str | None, data_dir: str, is_required: bool) -> DataFinding:
    """Verify one dataset; ``is_required`` is True if one of its jobs refuses broken data."""
    if folder is None:
        return DataFinding(f"{name}: not verified, its folder is unknown")
    if not folder:
        return DataFinding(f"{name}: needs no folder")
    if not os.path.exists(folder):
        return DataFinding(
            f"{name}: not verified: {folder} does not exist on this machine; each job verifies "
            "it where it runs",
            missing=f"{name} is missing, expected its folder {folder}; "
            f"is --data_dir {data_dir} right?",
        )

    try:
        report = _verify(name, Path(data_dir))
    except CarftError as error:  # the folder, or a list in it, cannot be read at all
        return DataFinding(f"{name}: {error}", broken=str(error))

    if not report.problems:
        edition = report.data_edition
        return DataFinding(f"{name}: {edition}, {report.images:,} images in {report.root}")
    problem = f"{report.error_text}; fix the data, or set the hparam data_edition to {UNVERIFIED}"
    return DataFinding(
        f"{name}: broken: {'; '.join(report.problems)}", broken=problem if is_required else None
    )


def _verify(name: str, data_dir: Path) -> verification.DataReport:
    """Run `carft data verify` on the images that jobs of the dataset train on."""
    if name == "ImageNet":
        return imagenet_training.verify(data_dir)
    if name in tasks.TASKS:
        return tasks.verify(name, data_dir)
    return verification.verify(name, data_dir)
