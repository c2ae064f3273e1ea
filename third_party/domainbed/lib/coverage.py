"""What a sweep's tables leave out, so that nobody averages over fewer trials unawares."""

from __future__ import annotations

import itertools
import os
from typing import Any

from domainbed import datasets
from domainbed.lib import checks, reporting
from domainbed.lib.query import Q

_SHOWN = 20
_OF_A_JOB = ("out.txt", "err.txt", "results.jsonl")


def columns(records: Q) -> dict[str, list[str]]:
    """Return data set to environment labels for each that has tables, in the order of the tables.

    Those in DATASETS come first; then users' own data, whose records hold the labels.
    """
    found = records.select("args.dataset").unique()
    known = [
        name for name in datasets.DATASETS if name in found and not checks.dataset_problems(name)
    ]
    result = {name: list(datasets.get_dataset_class(name).ENVIRONMENTS) for name in known}
    for record in records:
        name = record["args"]["dataset"]
        if name not in datasets.DATASETS and "environments" in record:
            result.setdefault(name, list(record["environments"]))
    return result


def conflicts(records: Q) -> list[str]:
    """Say which data sets have jobs whose environments differ, so that no column is of one of them.

    Only records of users' own data hold their environments.
    """
    found: dict[str, dict[tuple[str, ...], str]] = {}
    for record in records:
        args, labels = record["args"], record.get("environments")
        if isinstance(labels, list):
            known = found.setdefault(args["dataset"], {})
            known.setdefault(tuple(map(str, labels)), args.get("output_dir", "one job"))
    return [
        f"{name} has not the same environments in all jobs: "
        + "; ".join(f"{', '.join(labels)} in {folder}" for labels, folder in known.items())
        + ". One column would stand for several: move the jobs of one kind to another folder, or "
        "use `carft collect`, which gives each kind its own table."
        for name, known in found.items()
        if len(known) > 1
    ]


def remarks(records: Q) -> list[str]:
    """Return sentences on data sets without a table, cells without a value, missing jobs."""
    found = records.select("args.dataset").unique()
    missing = [sentence for dataset in found for sentence in _missing_jobs(records, dataset)]
    result = [
        f"Data set {name} is not in domainbed.datasets.DATASETS: its records are in no table."
        for name in found
        if name not in datasets.DATASETS and name not in columns(records)
    ]
    result += [
        f"{problem} Its records are in no table."
        for name in found
        if name in datasets.DATASETS
        for problem in checks.dataset_problems(name)
    ]
    result += [
        f"{name} has no jobs with two test environments: leave-one-domain-out cross-validation "
        "needs them, so its cells are X."
        for name in found
        if {len(job["test_envs"]) for job in _jobs(records, name)} == {1}
    ]
    result += missing[:_SHOWN]
    if len(missing) > _SHOWN:
        result.append(f"... and {len(missing) - _SHOWN} more missing jobs.")
    return result


def unfinished(path: str) -> list[str]:
    """Return a sentence for each job folder below `path` without the file `done`.

    Its records, if any, count in the tables, as they do upstream; so a mean may be over runs that
    stopped half-way.
    """
    result = []
    for folder in sorted(os.scandir(path), key=lambda entry: entry.name):
        started = any(os.path.exists(os.path.join(folder.path, name)) for name in _OF_A_JOB)
        if started and not os.path.exists(os.path.join(folder.path, "done")):
            steps = [record["step"] for record in reporting.read_records(folder.path)]
            what = f"its last record is of step {steps[-1]}" if steps else "it has no record"
            result.append(f"Not finished: {folder.path}: {what}.")
    return result


def _missing_jobs(records: Q, dataset: str) -> list[str]:
    """Compare the jobs of one data set with all combinations of the values that occur.

    What no algorithm has, such as a third trial, was not part of the sweep as far as one can see.
    """
    present = {_identity(job) for job in _jobs(records, dataset)}
    axes = [sorted(set(values)) for values in zip(*present, strict=True)]
    return [
        f"Missing: {dataset} {algorithm}, test_envs {list(test_envs)}, trial_seed {trial_seed}, "
        f"hparams_seed {hparams_seed}"
        for algorithm, test_envs, trial_seed, hparams_seed in itertools.product(*axes)
        if (algorithm, test_envs, trial_seed, hparams_seed) not in present
    ]


def _jobs(records: Q, dataset: str) -> Q:
    return records.filter_equals("args.dataset", dataset).select("args")


def _identity(job: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    return (
        job["algorithm"],
        tuple(job["test_envs"]),
        job["trial_seed"],
        job["hparams_seed"],
    )
