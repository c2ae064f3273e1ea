"""Read the records of a sweep.

Interface of upstream file domainbed/lib/reporting.py at b93c22a.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from domainbed.lib.query import Q
from domainbed_carft import text
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import read_file


def load_records(path: str) -> Q:
    """Return the records of all results.jsonl files one folder below `path`.

    Broken lines are reported on the error stream. If a job has several records of one step, the
    last one counts.

    Raises:
        CarftError: The folder is missing.
    """
    if not Path(path).is_dir():
        raise CarftError(f"--input_dir: no such folder: {path}")

    records: list[dict[str, Any]] = []
    # Sorted: the order changes sums, and the rounding of a mean that ends in an exact half.
    for file in sorted(Path(path).glob(f"*/{RECORDS}")):
        complete, warnings = read_file(file)
        records += complete
        lines = [f"{warning.path}: {warning.text}" for warning in warnings]
        text.print_lines(*lines, stream=sys.stderr)
    return Q(records)


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
