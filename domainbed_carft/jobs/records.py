"""From the lines of one job's results.jsonl to what is compared and averaged. No numpy.

Which lines are whole records, and that of two records of one step the later counts, is as in the
harness (domainbed/lib/reporting.py).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from domainbed_carft import files
from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs import lines, planned, scan, values
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.planned import Planned
from domainbed_carft.results import settings
from domainbed_carft.text import counted, inflected

_VERSIONS = {"PyTorch", "Torchvision", "CUDA", "CUDNN", "NumPy", "PIL"}
VERSION = "version of "
_NAN = float("nan")
# Kinds of accuracies that do not count: one, several.
_UNUSABLE = {
    "no number": ("accuracy is no number and counts", "accuracies are no numbers and count"),
    "out of range": (
        "accuracy is not in [0, 1] and counts", "accuracies are not in [0, 1] and count",
    ),
}  # fmt: skip


class Run(NamedTuple):
    """The checkpoints of one run.

    ``accuracies``: a row a checkpoint, the in-splits of all environments, then the out-splits, in
    [0, 1]; nan where a record has none, and from the step ``diverged_from`` on, where the training
    diverged. ``setting``: see ``settings.of``. ``hparams``: JSON.
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
    diverged_from: float | None


class Read(NamedTuple):
    """What one folder, or several, had."""

    runs: list[Run]
    planned: list[Planned]
    faults: list[Fault]
    records: int


def read(job: scan.Found) -> Read:
    """All runs recorded in one folder: one, unless several were told to write there."""
    found = Read([], [], [], 0)
    try:
        _read(job, found)
    except RecursionError:
        found.faults.append(Fault("unreadable", job.path, "nested too deeply; passed over"))
    return found._replace(records=sum(len(run.steps) for run in found.runs))


def _read(job: scan.Found, found: Read) -> None:
    latest: dict[str, dict[Any, dict[str, Any]]] = {}
    repeated = 0
    if job_folder.RECORDS in job.files:
        path = os.path.join(job.path, job_folder.RECORDS)
        for key, record in _keyed(_records(path, found.faults)):
            steps = latest.setdefault(key, {})
            repeated += record["step"] in steps
            steps[record["step"]] = record
    if repeated:
        text = f"{counted(repeated, 'record')} of steps recorded before; the later ones count"
        found.faults.append(Fault("repeated steps", job.path, text))
    versions = _versions(job, found.faults) if latest else {}
    for steps in latest.values():
        try:
            found.runs.append(_run(job, list(steps.values()), versions, found.faults))
        except ValueError as error:
            found.faults.append(Fault("unreadable", job.path, f"{error}; passed over"))
            first = next(iter(steps.values()))
            with contextlib.suppress(ValueError):
                if count := _count(first):
                    of_job = planned.of(job.path, first["args"], count)
                    found.planned.append(of_job._replace(unusable=True))
    if not latest:
        _tell_what_is_planned(job, found)


def whole(path: str) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The records of a file as they are, one a step of a run, and what was wrong with it."""
    faults: list[Fault] = []
    keyed = _keyed(_records(path, faults))
    latest = {(key, record["step"]): record for key, record in keyed}
    return list(latest.values()), faults


def runs_in(folder: str | os.PathLike[str]) -> list[Run]:
    """The runs recorded in one folder."""
    names = (job_folder.RECORDS, job_folder.OUTPUT)
    there = [name for name in names if os.path.exists(os.path.join(folder, name))]
    return read(scan.Found(str(folder), frozenset(there))).runs


def of_run(run: Run) -> Iterator[dict[str, Any]]:
    """The whole records of one run, in their order: several may have written into its folder."""
    for record in _records(os.path.join(run.folder, job_folder.RECORDS), []):
        args = record["args"]
        said = (
            *map(args.get, values.IDENTITY), args["test_envs"], args.get("seed"),
            json.dumps(record.get("hparams") or {}, sort_keys=True),
        )  # fmt: skip
        mine = (
            run.dataset, run.algorithm, run.trial, run.choice, list(run.test_envs), run.seed,
            run.hparams,
        )  # fmt: skip
        if said == mine and settings.of(args, {}, None, {}).items() <= run.setting.items():
            yield record


def _records(path: str, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    for number, record in lines.decoded(_text(path, faults) or ""):
        if lacking := values.lacks(record):
            what = f"line {number} is no whole record and skipped"
            what += f": {lacking}" if record is not None else ""
            faults.append(Fault("cut line", path, what))
        else:
            yield record


def _text(path: str, faults: list[Fault], limit: int = -1) -> str | None:
    """The first ``limit`` bytes of a file, or all, without the mark that some editors put first.

    None, and told, if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8-sig", errors="replace")
    except OSError as error:
        faults.append(Fault("unreadable", path, f"{error.strerror}; passed over"))
        return None


def _keyed(records: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record with what its run is told from others by; most are of the run of the last."""
    args: Any = None
    hparams: Any = None
    key = ""
    for record in records:
        # What repeats is one object as a rule: see lines.
        if not (key and record["args"] is args and record.get("hparams") is hparams):
            args, hparams = record["args"], record.get("hparams")
            key = _run_key(record)
        yield key, record


def _run_key(record: Mapping[str, Any]) -> str:
    args = record["args"]
    keys = (*values.IDENTITY, "test_envs", "seed", *settings.ARGUMENTS, "hparams")
    # As JSON, for true is equal to 1; sorted, for the order of an object's keys says nothing.
    told_apart = [*map(args.get, keys), record.get("hparams")]
    return json.dumps(told_apart, sort_keys=True)


def _run(
    job: scan.Found,
    records: list[dict[str, Any]],
    versions: Mapping[str, str],
    faults: list[Fault],
) -> Run:
    """Raises ValueError for records that cannot be one run's."""
    first = records[0]
    args, hparams = first["args"], values.optional(first, "hparams")
    count = _count(first)
    if not count:
        raise ValueError("no record has an accuracy (env0_out_acc)")
    values.require_identity(args, count)
    if not isinstance(args.get("hparams"), (str, dict, type(None))):
        values.require({"args.hparams": args["hparams"]}, "args.hparams", dict)
    recorded = values.optional(first, "versions") or versions
    environments, wrong = values.environments(first.get("environments"), count)
    targets = tuple(args["test_envs"])
    diverged = [record["step"] for record in records if job_folder.has_diverged(record)]
    if diverged:
        what = f"the training diverged; {counted(len(diverged), 'record')} from step "
        what += f"{min(diverged):g} on {inflected(len(diverged), 'counts', 'count')} as missing"
        faults.append(Fault("diverged", job.path, what))
        records = [_without_accuracies(r) if job_folder.has_diverged(r) else r for r in records]
    if wrong:
        faults.append(Fault("no names", job.path, f"{wrong}; they count as not recorded"))
    if len(targets) > 2:
        what = f"{len(targets)} test environments: no method of selection uses it"
        faults.append(Fault("counts nowhere", job.path, what))
    return Run(
        job.path, job_folder.DONE in job.files, args["dataset"], args["algorithm"], targets,
        args["trial_seed"], args["hparams_seed"], args.get("seed"),
        settings.of(args, hparams, first.get("data_edition"), recorded, first.get("protocol")),
        json.dumps(hparams, sort_keys=True), environments, count,
        array("d", [record["step"] for record in records]),
        _accuracies(job, records, count, faults), min(diverged, default=None),
    )  # fmt: skip


def _without_accuracies(record: dict[str, Any]) -> dict[str, Any]:
    return {key: _NAN if key.endswith("_acc") else value for key, value in record.items()}


def _accuracies(
    job: scan.Found, records: list[dict[str, Any]], count: int, faults: list[Fault]
) -> array[float]:
    names = [f"env{i}_{split}_acc" for split in ("in", "out") for i in range(count)]
    one_too_many = f"env{count}_out_acc"
    for record in records:
        if names[-1] not in record or one_too_many in record:
            raise ValueError(f"accuracies of {count} environments, then of {_count(record)}")
    rows = array("d")
    kinds: set[type] = set()
    try:
        for record in records:
            row = [record.get(name, _NAN) for name in names]
            kinds.update(map(type, row))
            rows.extend(row)
        numbers = kinds <= {float, int} and math.isfinite(sum(rows))  # true is equal to 1
        if numbers and values.in_range(min(rows), max(rows)):
            return rows
    except (TypeError, OverflowError):
        pass
    # Some cannot be used, which a look at each tells.
    rows = array("d")
    found: dict[str, list[str]] = {kind: [] for kind in _UNUSABLE}
    for record in records:
        row, *odd = values.shares(record, names)
        rows.extend(row)
        for known, texts in zip(found.values(), odd, strict=True):
            known += [f"{text} at step {record['step']:g}" for text in texts]
    for kind, texts in found.items():
        if texts:
            what = f"{counted(len(texts), *_UNUSABLE[kind])} as missing: {texts[0]}"
            what += ", ..." if len(texts) > 1 else ""
            faults.append(Fault(kind, job.path, what))
    return rows


def _count(record: Mapping[str, Any]) -> int:
    """How many environments the record has accuracies of."""
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def _versions(job: scan.Found, faults: list[Fault]) -> dict[str, str]:
    """The versions that ``train`` printed, upstream's too; of a run gone on with, all in turn."""
    if job_folder.OUTPUT not in job.files:
        return {}
    printed = _text(os.path.join(job.path, job_folder.OUTPUT), faults, 1 << 20) or ""
    found: dict[str, dict[str, None]] = {}
    for block in printed.split("Environment:\n")[1:]:
        for line in block.split("\n", 10):
            name, _, version = line.strip().partition(": ")
            if name in _VERSIONS:
                found.setdefault(name, {})[version] = None
    return {name: ", then ".join(values) for name, values in found.items()}


def _tell_what_is_planned(job: scan.Found, found: Read) -> None:
    told = None
    if job_folder.DESCRIPTION in job.files:
        path = os.path.join(job.path, job_folder.DESCRIPTION)
        text = _text(path, found.faults)
        try:
            told = planned.described(job.path, text) if text is not None else None
        except ValueError as error:
            found.faults.append(Fault("unreadable", path, f"{error}; passed over"))
    if told is None:
        found.faults.append(Fault("no records", job.path, "no record"))
        return
    found.planned.append(told)
    what = f"no record of {told.dataset} {told.algorithm}, "
    what += f"test_envs {list(told.test_envs)}, trial {told.trial}"
    found.faults.append(Fault("not run", job.path, what))


def arguments(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The arguments of the job in a folder, from its first whole record; None without one."""
    for record in _records(os.path.join(folder, job_folder.RECORDS), []):
        return dict(record["args"])
    return None


def last(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The last whole record of the job in a folder, read from the end of the file."""
    try:
        with open(os.path.join(folder, job_folder.RECORDS), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            reach = 1 << 16
            while True:
                file.seek(max(0, size - reach))
                for line in reversed(file.read().split(b"\n")):
                    with contextlib.suppress(ValueError):
                        record = files.parse_json(line)
                        if isinstance(record, dict) and "step" in record:
                            return record
                if reach >= size:
                    return None
                reach *= 8
    except OSError:
        return None
