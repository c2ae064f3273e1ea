"""From the lines of one job's results.jsonl to what is compared and averaged. No numpy.

Which lines are whole records, and that of two records of one step the later counts, is as in the
harness (domainbed/lib/reporting.py).
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from domainbed_carft.collect import lines, scan, settings
from domainbed_carft.collect.faults import Fault

_IDENTITY = {"dataset": str, "algorithm": str, "trial_seed": int, "hparams_seed": int}
_VERSIONS = {"PyTorch", "Torchvision", "CUDA", "CUDNN", "NumPy", "PIL"}
_NAN = float("nan")


class Run(NamedTuple):
    """The checkpoints of one run.

    ``accuracies``: a row a checkpoint, the in-splits of all environments, then the out-splits, in
    [0, 1]; nan where a record has none. ``setting``: see ``settings.of``. ``hparams``: JSON.
    """

    folder: str
    done: bool
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial: int
    choice: int
    seed: Any
    setting: Mapping[str, str]
    hparams: str
    environments: tuple[str, ...]
    n_environments: int
    steps: array[float]
    accuracies: array[float]


class Planned(NamedTuple):
    """A job that ``carft sweep`` has described and that has no record yet."""

    folder: str
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial: int
    choice: int
    setting: Mapping[str, str]


class Read(NamedTuple):
    """What one folder, or several, had."""

    runs: list[Run]
    planned: list[Planned]
    faults: list[Fault]
    records: int


def read(job: scan.Found) -> Read:
    """All runs recorded in one folder: one, unless several were told to write there."""
    found = Read([], [], [], 0)
    latest: dict[str, dict[Any, dict[str, Any]]] = {}
    repeated = 0
    if scan.RECORDS in job.files:
        path = os.path.join(job.path, scan.RECORDS)
        for key, record in _keyed(_records(path, found.faults)):
            steps = latest.setdefault(key, {})
            repeated += record["step"] in steps
            steps[record["step"]] = record
    if repeated:
        text = f"{repeated} records of steps recorded before; the later ones count"
        found.faults.append(Fault("repeated steps", job.path, text))
    versions = _versions(job) if latest else {}
    for steps in latest.values():
        try:
            found.runs.append(_run(job, list(steps.values()), versions))
        except (TypeError, ValueError, AttributeError) as error:
            found.faults.append(Fault("unreadable", job.path, f"{error}; passed over"))
    if not latest:
        _tell_what_is_planned(job, found)
    return found._replace(records=sum(len(run.steps) for run in found.runs))


def whole_records(path: str) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The records of a file as they are, one a step of a run, and what was wrong with it."""
    faults: list[Fault] = []
    keyed = _keyed(_records(path, faults))
    latest = {(key, record["step"]): record for key, record in keyed}
    return list(latest.values()), faults


def _records(path: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        faults.append(Fault("unreadable", path, f"{error.strerror}; passed over"))
        return
    for number, record in lines.decoded(text):
        if _is_whole(record):
            yield record
        else:
            what = f"line {number} is no whole record and skipped"
            faults.append(Fault("cut line", path, what))


def _is_whole(record: Any) -> bool:
    """Whether everything is there by which records are told apart and grouped."""
    if not isinstance(record, dict) or not isinstance(record.get("step"), (int, float)):
        return False
    args = record.get("args")
    if not isinstance(args, dict) or not isinstance(args.get("test_envs"), list):
        return False
    return args.keys() >= _IDENTITY.keys()


def _keyed(records: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record with what its run is told from others by; most are of the run of the last."""
    last: Mapping[str, Any] = {"args": None}
    key = ""
    for record in records:
        if not (_same(record, last, "args") and _same(record, last, "hparams")):
            key = _run_key(record)
            last = record
        yield key, record


def _same(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    a, b = one.get(key), other.get(key)
    return a is b or a == b  # of dicts, `==` alone compares all that is in them


def _run_key(record: Mapping[str, Any]) -> str:
    args = record["args"]
    told_apart = [args.get(key) for key in (*_IDENTITY, "test_envs", "seed", *settings.ARGUMENTS)]
    return repr([told_apart, args.get("hparams"), record.get("hparams")])


def _run(job: scan.Found, records: list[dict[str, Any]], versions: Mapping[str, str]) -> Run:
    """Raises ValueError or TypeError for records that cannot be one run's."""
    first = records[0]
    args, hparams = first["args"], first.get("hparams") or {}
    count = _count(first)
    targets = tuple(args["test_envs"])
    for key, kind in _IDENTITY.items():
        if not isinstance(args[key], kind):
            raise ValueError(f"{key} is {args[key]!r}, expected {kind.__name__}")
    if not count:
        raise ValueError("no record has an accuracy (env0_out_acc)")
    if not all(isinstance(target, int) and 0 <= target < count for target in targets):
        raise ValueError(f"test_envs {list(targets)}, accuracies of {count} environments")
    names = [f"env{i}_{split}_acc" for split in ("in", "out") for i in range(count)]
    rows = array("d")
    one_too_many = f"env{count}_out_acc"
    for record in records:
        if names[-1] not in record or one_too_many in record:
            raise ValueError(f"accuracies of {count} environments, then of {_count(record)}")
        rows.extend([record.get(name, _NAN) for name in names])
    return Run(
        job.path, scan.DONE in job.files, args["dataset"], args["algorithm"], targets,
        args["trial_seed"], args["hparams_seed"], args.get("seed"),
        settings.of(args, hparams, first.get("data_edition"), first.get("versions") or versions),
        json.dumps(hparams, sort_keys=True), tuple(first.get("environments") or ()), count,
        array("d", [record["step"] for record in records]), rows,
    )  # fmt: skip


def _count(record: Mapping[str, Any]) -> int:
    """How many environments the record has accuracies of."""
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def _versions(job: scan.Found) -> dict[str, str]:
    """The versions that ``train`` printed, upstream's too; of a run gone on with, all in turn."""
    if scan.OUTPUT not in job.files:
        return {}
    try:
        with open(os.path.join(job.path, scan.OUTPUT), "rb") as file:
            printed = file.read(1 << 20).decode("utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, dict[str, None]] = {}
    for block in printed.split("Environment:\n")[1:]:
        for line in block.split("\n", 10):
            name, _, version = line.strip().partition(": ")
            if name in _VERSIONS:
                found.setdefault(name, {})[version] = None
    return {name: ", then ".join(values) for name, values in found.items()}


def _tell_what_is_planned(job: scan.Found, found: Read) -> None:
    try:
        with open(os.path.join(job.path, scan.DESCRIPTION), encoding="utf-8") as file:
            args = json.load(file)["train_args"]
        planned = Planned(
            job.path, args["dataset"], args["algorithm"], tuple(args["test_envs"]),
            args["trial_seed"], args["hparams_seed"], settings.of(args, {}, None, {}),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        what = "no record"
    else:
        found.planned.append(planned)
        what = f"no record of {planned.dataset} {planned.algorithm}, "
        what += f"test_envs {list(planned.test_envs)}, trial {planned.trial}"
    found.faults.append(Fault("no records", job.path, what))
