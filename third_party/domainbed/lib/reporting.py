"""Read the records of a sweep.

Interface of upstream file domainbed/lib/reporting.py at b93c22a.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed import datasets
from domainbed.lib import checks
from domainbed.lib.query import Q
from domainbed_carft import escaping
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.jobs.records import read_file


def load_records(path: str) -> Q:
    """Return the records of all results.jsonl files one folder below `path`.

    Broken lines are reported on the error stream. If a job has several records of one step, the
    last one counts.

    Raises:
        CarftError: the folder is missing.
    """
    if not Path(path).is_dir():
        raise CarftError(f"--input_dir: no such folder: {path}")

    records: list[dict[str, Any]] = []
    # Sorted: the order changes sums, and the rounding of a mean that ends in an exact half.
    for file in sorted(Path(path).glob(f"*/{RECORDS}")):
        complete, warnings = read_file(file)
        records += complete
        lines = [f"{warning.path}: {warning.text}" for warning in warnings]
        escaping.print_lines(*lines, stream=sys.stderr)
    return Q(records)


def get_environment_labels(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Map each dataset that has tables to its environments' names, in the order of the tables.

    Datasets in DATASETS come first. Users' own datasets follow, whose names are in the records.

    Raises:
        CarftError: jobs of one dataset have different environments, which need separate tables.
    """
    recorded = {record["args"]["dataset"] for record in records}
    result = {
        name: list(datasets.get_dataset_class(name).ENVIRONMENTS)
        for name in datasets.DATASETS
        if name in recorded and not checks.dataset_problems(name)
    }

    for record in records:
        name = record["args"]["dataset"]
        labels = record.get("environments")
        if name in datasets.DATASETS or not labels:
            continue
        if result.setdefault(name, labels) != labels:
            raise CarftError(
                f"the jobs of {name} have different environments: {', '.join(result[name])}; "
                f"{', '.join(labels)}. Use `carft collect`, which prints separate tables"
            )
    return result


def get_grouped_records(records: Q) -> Q:
    """Group by trial_seed, dataset, algorithm and test_env.

    A record with two test environments belongs to the groups of both.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for record in records:
        args = record["args"]
        for test_env in args["test_envs"]:
            key = (args["trial_seed"], args["dataset"], args["algorithm"], test_env)
            groups.setdefault(key, []).append(record)

    names = ("trial_seed", "dataset", "algorithm", "test_env")
    return Q([{**dict(zip(names, key)), "records": Q(group)} for key, group in groups.items()])
