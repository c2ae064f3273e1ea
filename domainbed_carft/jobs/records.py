"""The records of jobs: results.jsonl files, found, read and checked. No numpy.

A record counts if it is complete; of two with the same step, the later. What is wrong in a file
becomes a warning.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.cost import Cost, recorded_cost
from domainbed_carft.jobs.facts import FOREIGN, NAMES, hparams_and_facts
from domainbed_carft.jobs.folder import DONE, RECORDS
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.jobs.setting import ARGUMENTS, ENVIRONMENTS, printed_versions, setting
from domainbed_carft.text import limit_lines, printable, quantity

NUMBERS = {float, int}
NO_ACCURACIES = (
    "records without accuracies: this checkout's train does not evaluate, so no table can use them"
)

_ACCURACY = re.compile(r"env[0-9]+_[a-z]+_acc")


class RecordWarning(NamedTuple):
    """Something wrong in a file that was read: its ``kind``, such as "cut line", and what."""

    kind: str
    path: str
    text: str


def describe_warnings(warnings: Iterable[RecordWarning]) -> list[str]:
    """One line per warning, grouped by kind; of a kind with many, the first and their number."""
    lines_by_kind: dict[str, list[str]] = {}
    for kind, path, text in warnings:
        lines_by_kind.setdefault(kind, []).append(printable(f"{kind}: {path}: {text}"))
    return [line for lines in lines_by_kind.values() for line in limit_lines(lines)]


def keyed_records(
    path: Path | str, warnings: list[RecordWarning]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each complete record of a file, with a key that identifies its run."""
    import orjson

    try:
        lines = files.read_regular(path).split(b"\n")
    except OSError as error:
        warnings.append(RecordWarning("unreadable", str(path), f"{error.strerror}; skipped"))
        return

    key = ""
    previous: dict[str, Any] = {}
    needed = set[str]()
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue

        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # NaN is no JSON, and Python writes it
            record = parse_line(line)

        # Most records are of the run of the last: what both have need not be checked again.
        if not (needed and _is_like(record, previous)):
            needed = accuracies_needed(record)
            if not needed:
                warning = _warning_on_line(record, number, path)
                if warning not in warnings:  # records without accuracies: one warning per file
                    warnings.append(warning)
                continue

            previous = record
            key = run_key(record["args"], record.get("hparams"), len(needed))
        yield key, record


def _is_like(record: Any, previous: Mapping[str, Any]) -> bool:
    """Return True if a record equals the complete ``previous`` one but in step and figures."""
    return (
        type(record) is dict
        and is_step(record.get("step"))
        and record.get("args") == previous["args"]
        and record.get("hparams") == previous.get("hparams")
        and record.keys() == previous.keys()
    )


def _warning_on_line(record: Any, number: int, path: Path | str) -> RecordWarning:
    """What is wrong with line ``number``, which is not a complete record."""
    if _lacks_only_accuracies(record):
        return RecordWarning("no accuracies", str(path), NO_ACCURACIES)
    return RecordWarning("cut line", str(path), f"line {number} is not a complete record; skipped")


def _lacks_only_accuracies(record: Any) -> bool:
    """Whether it would be a record, but has no accuracies at all."""
    if not isinstance(record, dict) or any(_ACCURACY.fullmatch(name) for name in record):
        return False
    return is_step(record.get("step")) and isinstance(record.get("args"), dict)


def parse_line(line: bytes) -> Any:
    """The content of a line, which may have NaN; None if it is no JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)


def accuracies_needed(record: Any) -> set[str]:
    """Names of the accuracies that selection needs; none if it is not a whole record."""
    try:
        args = record["args"]
        targets = args["test_envs"]
        count = 0
        while f"env{count}_out_acc" in record:
            count += 1
        needed = {f"env{env}_out_acc" for env in range(count)}
        needed |= {f"env{target}_in_acc" for target in targets}

        is_whole = (
            is_step(record["step"])
            and (args.get("steps") is None or is_step(args["steps"]))
            and all(0 <= target < count for target in Job(args, Path()).key.test_envs)
            and len(needed) == count + len(targets)
            and needed <= record.keys()
            and isinstance(args.get("hparams"), (str, dict, type(None)))
            and isinstance(record.get("hparams"), (dict, type(None)))
        )
    except (KeyError, TypeError):
        return set()
    return needed if is_whole else set()


def is_broken_loss(name: str, value: Any) -> bool:
    """Whether a recorded value is a loss that is not finite: the training has diverged by then."""
    return "loss" in name and isinstance(value, float) and not math.isfinite(value)


def is_step(step: Any) -> bool:
    """Whether ``step`` is a finite number, and no bool."""
    return type(step) in NUMBERS and abs(step) <= sys.float_info.max


def run_key(args: Mapping[str, Any], hparams: Mapping[str, Any] | None, n_accuracies: int) -> str:
    """The key that records of one run share, and those of other runs in its folder do not."""
    names = (*IDENTITY, "test_envs", "seed", *ARGUMENTS, "hparams")
    # Facts are found anew where a run is resumed.
    chosen = {k: v for k, v in (hparams or {}).items() if k not in (*NAMES, FOREIGN)}
    return repr([*map(args.get, names), sorted(chosen.items()), n_accuracies])


DEPTH = 3  # a folder of sweeps, a sweep, its variants, their jobs

_HIGHEST_ACCURACY = 1 + 1e-6  # weights summed in two orders may slightly exceed 1


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """The checkpoints of one training.

    ``accuracies``: a row a checkpoint, the in-splits of all environments, then the out-splits, in
    [0, 1]; nan where a record has none, and from the step ``diverged_at`` on, where the training
    had broken its weights. ``environments``: their names, if recorded. ``recorded``: the hparams
    and the facts of its job.
    ``cost``: time, memory and device.
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
    cost: Cost

    @property
    def folder(self) -> str:
        """The folder of the job."""
        return str(self.job.folder)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.job.key.dataset

    @property
    def algorithm(self) -> str:
        """The name of the algorithm."""
        return self.job.key.algorithm

    @property
    def row(self) -> str:
        """What tables call the row of the run: the algorithm's name, unless ``--by`` divides it."""
        return self.job.row

    @property
    def test_envs(self) -> tuple[int, ...]:
        """The environments left out, in the order of the arguments."""
        return tuple(self.job.args["test_envs"])


class RunsAndWarnings(NamedTuple):
    """The runs in some folders, and warnings about the files in which they were recorded."""

    runs: list[RecordedRun]
    warnings: list[RecordWarning]


def read(folders: Sequence[Path | str]) -> RunsAndWarnings:
    """All runs in ``folders`` and up to DEPTH levels below, each real folder once.

    Raises CarftError, naming all of them, if any of ``folders`` are missing.
    """
    missing = [str(folder) for folder in folders if not os.path.isdir(folder)]
    if missing:
        raise CarftError(f"no such folder: {', '.join(missing)}; expected output folders of sweeps")

    record_folders: dict[tuple[int, int], str] = {}  # by the real folder, which links may lead to
    warnings: list[RecordWarning] = []

    def visit(folder: str, levels: int) -> None:
        if os.path.isfile(os.path.join(folder, RECORDS)):
            status = os.stat(folder)
            record_folders.setdefault((status.st_dev, status.st_ino), folder)
        elif levels:
            try:
                children = sorted(
                    entry.path for entry in os.scandir(folder) if entry.name[0] != "."
                )
            except OSError as error:
                children = []
                warnings.append(RecordWarning("unreadable", folder, f"{error.strerror}; skipped"))
            for path in filter(os.path.isdir, children):
                visit(path, levels - 1)

    for folder in folders:
        visit(str(folder), DEPTH)
    runs = [run for folder in record_folders.values() for run in _runs_in(folder, warnings)]
    return RunsAndWarnings(runs, warnings)


def _runs_in(folder: str, warnings: list[RecordWarning]) -> list[RecordedRun]:
    """The runs recorded in one folder: one, unless several wrote there."""
    latest: dict[str, dict[float, dict[str, Any]]] = {}
    file_warnings: list[RecordWarning] = []
    for key, record in keyed_records(os.path.join(folder, RECORDS), file_warnings):
        latest.setdefault(key, {})[record["step"]] = record

    warnings += file_warnings
    has_no_accuracies = any(warning.kind == "no accuracies" for warning in file_warnings)
    if not latest and not has_no_accuracies:
        warnings.append(RecordWarning("no records", folder, "no record"))
    runs = _without_damaged(list(latest.values()), folder, warnings)
    return [_run(folder, list(steps.values()), warnings) for steps in runs]


def _without_damaged(
    runs: Sequence[dict[float, dict[str, Any]]], folder: str, warnings: list[RecordWarning]
) -> list[dict[float, dict[str, Any]]]:
    """Drop damaged lines, with a warning, from the runs of a folder (step -> record).

    A line with a damaged name or hyperparameter looks like a run of its own: it has the arguments
    of a longer run, and steps that the longer run lacks.
    """
    intact_runs: list[dict[float, dict[str, Any]]] = []
    for run in sorted(runs, key=len, reverse=True):
        owner = next((intact for intact in intact_runs if _is_part_of(run, intact)), None)
        if owner is None:
            intact_runs.append(run)
            continue

        steps = ", ".join(f"{step:g}" for step in run)
        text = f"step {steps} has other {_difference(run, owner)}; skipped"
        warnings.append(RecordWarning("damaged", folder, text))
    return [run for run in runs if any(run is intact for intact in intact_runs)]


def _is_part_of(run: Mapping[float, Any], longer_run: Mapping[float, Any]) -> bool:
    """Return True if both have the same arguments, and no step in common."""
    first, second = (next(iter(records.values())) for records in (run, longer_run))
    return bool(first["args"] == second["args"]) and run.keys().isdisjoint(longer_run)


def _difference(run: Mapping[float, Any], longer_run: Mapping[float, Any]) -> str:
    """The part of the records in which two runs differ, with the names of hyperparameters."""
    first, second = (
        next(iter(records.values())).get("hparams") or {} for records in (run, longer_run)
    )
    names = sorted(name for name in first | second if first.get(name) != second.get(name))
    return f"hparams than the rest: {', '.join(names)}" if names else "accuracies than the rest"


def read_file(path: Path | str) -> tuple[list[dict[str, Any]], list[RecordWarning]]:
    """The complete records of a file, one per step of a run, and the warnings about it."""
    warnings: list[RecordWarning] = []
    latest = {(key, record["step"]): record for key, record in keyed_records(path, warnings)}
    return list(latest.values()), warnings


def run_records(run: RecordedRun) -> Iterator[dict[str, Any]]:
    """The whole records of one run, in their order: several may have written into its folder."""
    n_accuracies = run.n_environments + len(run.test_envs)
    key_of_run = run_key(run.job.args, run.recorded, n_accuracies)
    for key, record in keyed_records(run.job.folder / RECORDS, warnings=[]):
        if key == key_of_run:
            yield record


def recorded_arguments(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The arguments of the job in a folder, from its first whole record; None without one."""
    for _, record in keyed_records(os.path.join(folder, RECORDS), warnings=[]):
        return dict(record["args"])
    return None


def last_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The last whole record of the job in a folder; None without one."""
    with contextlib.suppress(OSError):
        lines = files.read_regular(os.path.join(folder, RECORDS)).split(b"\n")
        for record in map(parse_line, reversed(lines)):
            if isinstance(record, dict) and "step" in record:
                return record
    return None


def _run(folder: str, records: list[dict[str, Any]], warnings: list[RecordWarning]) -> RecordedRun:
    """The run of these records, one per step."""
    first = records[0]
    args = {name: value for name, value in first["args"].items() if name != "output_dir"}
    count = len(accuracies_needed(first)) - len(args["test_envs"])
    environments = _environment_names(first, count)
    parts = {ENVIRONMENTS: ", ".join(environments) or str(count)}
    parts |= setting(args, first, printed_versions(folder))

    broken_steps = _steps_with_broken_weights(records)
    if broken_steps:
        n_records = quantity(len(broken_steps), "record")
        text = (
            f"the training diverged; {n_records} from step {min(broken_steps):g} on without "
            "accuracies"
        )
        warnings.append(RecordWarning("diverged", folder, text))

    return RecordedRun(
        job=Job(args, Path(folder)),
        done=os.path.exists(os.path.join(folder, DONE)),
        environments=environments,
        n_environments=count,
        steps=array("d", [record["step"] for record in records]),
        accuracies=accuracies(records, count, broken_steps),
        setting=parts,
        recorded=hparams_and_facts(first, first.get("hparams")),
        diverged_at=min(broken_steps, default=None),
        cost=recorded_cost(records),
    )


def _environment_names(record: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The recorded names of the environments; none unless they are ``count`` different ones."""
    recorded = record.get("environments")
    if not isinstance(recorded, list):
        return ()
    names = tuple(map(str, recorded))
    return names if len(set(names)) == len(names) == count else ()


def _steps_with_broken_weights(records: list[dict[str, Any]]) -> set[float]:
    """The recorded steps from the update before the first non-finite loss on."""
    marks = [record["diverged_at"] for record in records if "diverged_at" in record]
    start = min((mark - 1 for mark in marks if is_step(mark)), default=math.inf)
    return {
        record["step"]
        for record in records
        if record["step"] >= start
        # Of other checkouts, which have no mark.
        or is_broken_loss("loss", record.get("loss"))
    }


def accuracies(
    records: Sequence[Mapping[str, Any]], count: int, broken_steps: Collection[float] = ()
) -> array[float]:
    """The accuracies of a RecordedRun; nan for values outside [0, 1], such as percentages."""
    names = [f"env{env}_{split}_acc" for split in ("in", "out") for env in range(count)]
    rows = array("d")
    for record in records:
        for name in names:
            value: Any = None if record["step"] in broken_steps else record.get(name)
            is_accuracy = type(value) in NUMBERS and 0 <= value <= _HIGHEST_ACCURACY
            rows.append(value if is_accuracy else math.nan)
    return rows
