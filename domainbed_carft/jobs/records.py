"""The records of jobs: results.jsonl files, found, read and checked. No numpy.

A record counts if it is complete; of two with the same step, the later. Faults are collected.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing
from domainbed_carft.jobs.folder import DONE, RECORDS
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.jobs.setting import ARGUMENTS, ENVIRONMENTS, printed_versions, setting
from domainbed_carft.text import counted, limited, shown

DEPTH = 3  # a folder of sweeps, a sweep, its variants, their jobs

_NUMBERS = {float, int}
_MOST = 1 + 1e-6  # weights summed in two orders may slightly exceed 1


@dataclass(frozen=True, eq=False)
class Run:
    """The checkpoints of one training.

    ``accuracies``: a row a checkpoint, the in-splits of all environments, then the out-splits, in
    [0, 1]; nan where a record has none, and from the step ``diverged_at`` on, where the training
    had broken its weights. ``environments``: their names, if recorded. ``recorded``: the hparams.
    """

    job: Job
    done: bool
    environments: tuple[str, ...]
    n_environments: int
    steps: array[float]
    accuracies: array[float]
    setting: Mapping[str, str]
    recorded: Mapping[str, Any]
    diverged_at: float | None

    @property
    def folder(self) -> str:
        return str(self.job.folder)

    @property
    def dataset(self) -> str:
        return self.job.key.dataset

    @property
    def algorithm(self) -> str:
        return self.job.key.algorithm

    @property
    def test_envs(self) -> tuple[int, ...]:
        return tuple(self.job.args["test_envs"])


class RecordWarning(NamedTuple):
    """Something wrong in a file that was read."""

    kind: str
    path: str
    text: str


def describe_warnings(faults: Iterable[RecordWarning]) -> list[str]:
    """One line per fault, grouped by kind; of a kind with many, the first and their number."""
    kinds: dict[str, list[str]] = {}
    for one in faults:
        kinds.setdefault(one.kind, []).append(shown(f"{one.kind}: {one.path}: {one.text}"))
    return [line for lines in kinds.values() for line in limited(lines)]


class Read(NamedTuple):
    """The runs and the faults found in some folders."""

    runs: list[Run]
    faults: list[RecordWarning]


def read(folders: Sequence[Path | str]) -> Read:
    """All runs in ``folders`` and up to DEPTH levels below, each real folder once.

    Raises CarftError, naming all of them, if any of ``folders`` are missing.
    """
    if missing := ", ".join(str(folder) for folder in folders if not os.path.isdir(folder)):
        raise CarftError(f"no such folder: {missing}; expected output folders of sweeps")
    found: dict[tuple[int, int], str] = {}  # by the real folder, which links may lead to
    faults: list[RecordWarning] = []

    def visit(folder: str, levels: int) -> None:
        if os.path.isfile(os.path.join(folder, RECORDS)):
            status = os.stat(folder)
            found.setdefault((status.st_dev, status.st_ino), folder)
        elif levels:
            try:
                inner = sorted(one.path for one in os.scandir(folder) if one.name[0] != ".")
            except OSError as error:
                inner = []
                faults.append(RecordWarning("unreadable", folder, f"{error.strerror}; skipped"))
            for path in filter(os.path.isdir, inner):
                visit(path, levels - 1)

    for folder in folders:
        visit(str(folder), DEPTH)
    runs = [run for folder in found.values() for run in _runs_in(folder, faults)]
    return Read(runs, faults)


def _runs_in(folder: str, faults: list[RecordWarning]) -> list[Run]:
    """The runs recorded in one folder: one, unless several wrote there."""
    latest: dict[str, dict[float, dict[str, Any]]] = {}
    for key, record in _keyed(os.path.join(folder, RECORDS), faults):
        latest.setdefault(key, {})[record["step"]] = record
    if not latest:
        faults.append(RecordWarning("no records", folder, "no record"))
    return [_run(folder, list(steps.values()), faults) for steps in latest.values()]


def whole(path: Path | str) -> tuple[list[dict[str, Any]], list[RecordWarning]]:
    """The complete records of a file, one per step of a run, and the faults found in it."""
    faults: list[RecordWarning] = []
    latest = {(key, record["step"]): record for key, record in _keyed(path, faults)}
    return list(latest.values()), faults


def of_run(run: Run) -> Iterator[dict[str, Any]]:
    """The whole records of one run, in their order: several may have written into its folder."""
    key = _key(run.job.args, run.recorded, run.n_environments + len(run.test_envs))
    return (record for other, record in _keyed(run.job.folder / RECORDS, []) if other == key)


def arguments(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The arguments of the job in a folder, from its first whole record; None without one."""
    first = next(_keyed(os.path.join(folder, RECORDS), []), None)
    return dict(first[1]["args"]) if first else None


def last(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The last whole record of the job in a folder."""
    with contextlib.suppress(OSError), open(os.path.join(folder, RECORDS), "rb") as file:
        for record in map(_lenient, reversed(file.read().split(b"\n"))):
            if isinstance(record, dict) and "step" in record:
                return record
    return None


def _keyed(path: Path | str, faults: list[RecordWarning]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each complete record of a file, with a key that identifies its run."""
    import orjson

    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        faults.append(RecordWarning("unreadable", str(path), f"{error.strerror}; skipped"))
        return
    key, args, hparams, needed = "", None, None, set[str]()  # of the line before
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # NaN is no JSON, and Python writes it
            record = _lenient(line)
        # Most records are of the run of the last: what both have need not be checked again.
        if not (
            needed and type(record) is dict and _is_step(record.get("step"))
            and record.get("args") == args and record.get("hparams") == hparams
            and needed <= record.keys()
        ):  # fmt: skip
            if not (needed := _accuracies_in(record)):
                text = f"line {number} is not a complete record; skipped"
                faults.append(RecordWarning("cut line", str(path), text))
                continue
            args, hparams = record["args"], record.get("hparams")
            key = _key(args, hparams, len(needed))
        yield key, record


def _lenient(line: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return parsing.parse_json(line)


def _accuracies_in(record: Any) -> set[str]:
    """Names of the accuracies that selection needs; none if it is not a whole record."""
    try:
        args, targets = record["args"], record["args"]["test_envs"]
        count = 0
        while f"env{count}_out_acc" in record:
            count += 1
        needed = {f"env{i}_out_acc" for i in range(count)} | {f"env{i}_in_acc" for i in targets}
        is_whole = (
            _is_step(record["step"])
            and (args.get("steps") is None or _is_step(args["steps"]))
            and all(0 <= target < count for target in Job(args, Path()).key.test_envs)
            and len(needed) == count + len(targets)
            and needed <= record.keys()
            and isinstance(args.get("hparams"), (str, dict, type(None)))
            and isinstance(record.get("hparams"), (dict, type(None)))
            and not parsing.is_deep(record)
        )
    except (KeyError, TypeError):
        return set()
    return needed if is_whole else set()


def _is_step(step: Any) -> bool:
    return type(step) in _NUMBERS and abs(step) <= sys.float_info.max


def _key(args: Mapping[str, Any], hparams: Mapping[str, Any] | None, count: int) -> str:
    names = (*IDENTITY, "test_envs", "seed", *ARGUMENTS, "hparams")
    return repr([*map(args.get, names), sorted((hparams or {}).items()), count])


def _run(folder: str, records: list[dict[str, Any]], faults: list[RecordWarning]) -> Run:
    first = records[0]
    args = {name: value for name, value in first["args"].items() if name != "output_dir"}
    count = len(_accuracies_in(first)) - len(args["test_envs"])
    listed = first.get("environments")
    names = tuple(map(str, listed)) if isinstance(listed, list) else ()
    names = names if len(set(names)) == len(names) == count else ()
    parts = {ENVIRONMENTS: ", ".join(names) or str(count)}
    parts |= setting(args, first, printed_versions(folder))
    if lost := _lost(records):
        what = f"{counted(len(lost), 'record')} from step {min(lost):g} on without accuracies"
        faults.append(RecordWarning("diverged", folder, f"the training diverged; {what}"))
    return Run(
        Job(args, Path(folder)), os.path.exists(os.path.join(folder, DONE)),
        names, count, array("d", [record["step"] for record in records]),
        _accuracies(records, count, lost), parts,
        first.get("hparams") or {}, min(lost, default=None),
    )  # fmt: skip


def _lost(records: list[dict[str, Any]]) -> set[float]:
    """Steps recorded with broken weights: from the update before the first non-finite loss on."""
    marks = [record["diverged_at"] for record in records if "diverged_at" in record]
    start = min((mark - 1 for mark in marks if _is_step(mark)), default=math.inf)
    return {
        record["step"]
        for record in records
        if record["step"] >= start
        # Of other checkouts, which have no mark.
        or (type(record.get("loss")) is float and not math.isfinite(record["loss"]))
    }


def _accuracies(records: list[dict[str, Any]], count: int, lost: set[float]) -> array[float]:
    """The accuracies of a Run; nan for values outside [0, 1], such as percentages."""
    names = [f"env{i}_{split}_acc" for split in ("in", "out") for i in range(count)]
    rows = array("d")
    for record in records:
        for name in names:
            value: Any = None if record["step"] in lost else record.get(name)
            known = type(value) in _NUMBERS and 0 <= value <= _MOST
            rows.append(value if known else math.nan)
    return rows
