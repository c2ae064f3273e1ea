"""Reading the records of a sweep.

Interface of upstream file domainbed/lib/reporting.py at b93c22a.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from domainbed.lib.query import Q

# What tells one job from another in its records, beside the step.
_NAMES, _SEEDS = ("dataset", "algorithm"), ("trial_seed", "hparams_seed")
_JOB_KEYS = (*_NAMES, "test_envs", *_SEEDS)


def load_records(path: str) -> Q:
    """Return the records of all results.jsonl files one folder below `path`.

    Folders are read in sorted order: sums, and with them a mean that ends in an exact half, depend
    on it.

    A line that is no record, as an interrupted job leaves it, is skipped and named on the error
    stream. Of several records of one step of one job the last counts: the job was run again.
    """
    records: list[dict[str, Any]] = []
    for folder in sorted(os.listdir(path)):
        records += _one_a_step(read_records(os.path.join(path, folder), sys.stderr))
    return Q(records)


def read_records(folder: str, complaints: TextIO | None = None) -> list[dict[str, Any]]:
    """Return the whole records of one job's folder, in the order they were written."""
    path = os.path.join(folder, "results.jsonl")
    records: list[dict[str, Any]] = []
    if not os.path.isfile(path):
        return records
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if _is_whole(record):
                records.append(record)
            elif complaints:
                print(f"Skipped line {number} of {path}: not a whole record.", file=complaints)
    return records


def _is_whole(record: Any) -> bool:
    """Whether all is there, and of its kind, by which records are grouped and selected."""
    if not (isinstance(record, dict) and isinstance(record.get("args"), dict)):
        return False
    args, hparams = record["args"], record.get("hparams", {})
    if not (_are(int, record.get("step"), *map(args.get, _SEEDS)) and isinstance(hparams, dict)):
        return False
    targets = args.get("test_envs")
    if not (
        _are(str, *map(args.get, _NAMES)) and isinstance(targets, list) and _are(int, *targets)
    ):
        return False
    needed = (f"env{i}_{split}_acc" for i in targets for split in ("in", "out"))
    accuracies = [v for key, v in record.items() if key[:3] == "env" and key[-4:] == "_acc"]
    return all(key in record for key in needed) and _are((int, float), *accuracies)


def _are(kind: type | tuple[type, ...], *values: Any) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _one_a_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the last record of each step, in the place of the first."""
    latest = {}
    for record in records:
        job = [record["args"][key] for key in _JOB_KEYS] + [record["args"].get("seed")]
        latest[json.dumps([job, record.get("hparams"), record["step"]])] = record
    return list(latest.values())


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
    names = ("trial_seed", "dataset", "algorithm", "test_env")
    return Q(
        [
            {**dict(zip(names, key, strict=True)), "records": Q(members)}
            for key, members in groups.items()
        ]
    )
