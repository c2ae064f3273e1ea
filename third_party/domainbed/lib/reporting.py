"""Reading the records of a sweep.

Interface of upstream file domainbed/lib/reporting.py at b93c22a.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from domainbed.lib.query import Q
from domainbed_carft import text
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records as job_records
from domainbed_carft.jobs.folder import RECORDS


def load_records(path: str) -> Q:
    """Return the whole records of all results.jsonl files one folder below `path`.

    Folders are read in sorted order: sums, and with them a mean that ends in an exact half, depend
    on it. What is no whole record, as an interrupted job leaves it, is named on the error stream;
    of several records of one step of one job the last counts: the job was run again. Raises
    CarftError for a missing folder.
    """
    if not os.path.isdir(path):
        raise CarftError(f"--input_dir: no such folder: {path}")
    found: list[dict[str, Any]] = []
    for folder in sorted(os.listdir(path)):
        file = os.path.join(path, folder, RECORDS)
        if not os.path.isfile(file):
            continue
        whole, faults = job_records.whole(file)
        found += whole
        for fault in faults:
            print(text.shown(f"{fault.path}: {fault.text}"), file=sys.stderr)
    return Q(found)


def get_grouped_records(records: Q) -> Q:
    """Return one {"trial_seed", "dataset", "algorithm", "test_env", "records"} for each test.

    A record of a job with two test environments belongs to the group of each.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for record in records:
        args = record["args"]
        for test_env in args["test_envs"]:
            key = (args["trial_seed"], args["dataset"], args["algorithm"], test_env)
            groups.setdefault(key, []).append(record)
    names = ("trial_seed", "dataset", "algorithm", "test_env", "records")
    return Q([dict(zip(names, (*key, Q(found)), strict=True)) for key, found in groups.items()])
