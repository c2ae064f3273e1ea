"""The records of jobs: find, read and check results.jsonl files, without numpy.

Only complete records count. If two records of a run have the same step, the later one counts.
Problems of a file become warnings.
"""

from __future__ import annotations

import contextlib
import functools
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
from domainbed_carft.jobs.facts import FOREIGN, NAMES, get_hparams_and_facts
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.jobs.job_folder import DONE, RECORDS
from domainbed_carft.jobs.setting import (
    ARGUMENTS,
    ENVIRONMENTS,
    get_recorded_setting,
    read_printed_versions,
)
from domainbed_carft.wording import limit_lines, quantity

NUMBERS = {float, int}
NO_ACCURACIES = (
    "records without accuracies: this checkout's train does not evaluate, so no table can use them"
)

# Drift of the context distribution, recorded by CLIP algorithms
DRIFT = ("loss_kl", "context_agreement")

_ACCURACY = re.compile(r"env[0-9]+_[a-z]+_acc")


class RecordWarning(NamedTuple):
    """A problem of a file that was read."""

    kind: str  # such as "cut line"
    path: str
    text: str


def describe_warnings(warnings: Iterable[RecordWarning]) -> list[str]:
    """Return one line per warning, grouped by kind, and limit the lines of each kind."""
    lines_by_kind: dict[str, list[str]] = {}
    for kind, path, text in warnings:
        lines_by_kind.setdefault(kind, []).append(f"{kind}: {path}: {text}")
    return [line for lines in lines_by_kind.values() for line in limit_lines(lines)]


def read_keyed_records(
    path: Path | str, warnings: list[RecordWarning]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the complete records of a file, each with a key that identifies its run.

    Args:
        path: the results.jsonl file.
        warnings: problems of the file are appended here.
    """
    import orjson

    try:
        lines = files.read_regular(path).split(b"\n")
    except OSError as error:
        warnings.append(RecordWarning("unreadable", str(path), f"{error.strerror}; skipped"))
        return

    key = ""
    previous: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue

        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # Python writes NaN, which is not valid JSON
            record = parse_line(line)

        # Most records continue the same run, so what they share need not be checked again.
        if not (previous and _continues_run(record, previous)):
            needed = get_needed_accuracies(record)
            if not needed:
                warning = _describe_line(record, number, path)
                if warning not in warnings:  # records without accuracies: one warning per file
                    warnings.append(warning)
                continue

            previous = record
            key = get_run_key(record["args"], record.get("hparams"), len(needed))
        yield key, record


def _continues_run(record: Any, previous: Mapping[str, Any]) -> bool:
    """Return True if a record belongs to the run of the complete ``previous`` record."""
    return (
        type(record) is dict
        and is_step(record.get("step"))
        and record.get("args") == previous["args"]
        and record.get("hparams") == previous.get("hparams")
        and record.keys() == previous.keys()
    )


def _describe_line(record: Any, number: int, path: Path | str) -> RecordWarning:
    """Return a warning for line ``number``, which is not a complete record."""
    is_record = (
        isinstance(record, dict)
        and is_step(record.get("step"))
        and isinstance(record.get("args"), dict)
    )
    if is_record and not any(_ACCURACY.fullmatch(name) for name in record):
        return RecordWarning("no accuracies", str(path), NO_ACCURACIES)
    return RecordWarning("cut line", str(path), f"line {number} is not a complete record; skipped")


def parse_line(line: bytes) -> Any:
    """Parse a line of JSON, which can contain NaN; return None if it is invalid."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)


def get_needed_accuracies(record: Any) -> set[str]:
    """Return the names of the accuracies that selection needs; empty for an incomplete record."""
    try:
        args = record["args"]
        targets = args["test_envs"]
        count = 0
        while f"env{count}_out_acc" in record:
            count += 1
        needed = {f"env{env}_out_acc" for env in range(count)}
        needed |= {f"env{target}_in_acc" for target in targets}

        is_complete = (
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
    return needed if is_complete else set()


def is_broken_loss(name: str, value: Any) -> bool:
    """Return True for a loss that is not finite, which means that the training has diverged."""
    return "loss" in name and isinstance(value, float) and not math.isfinite(value)


def is_step(step: Any) -> bool:
    """Return True if ``step`` is a finite number and not a bool."""
    return type(step) in NUMBERS and abs(step) <= sys.float_info.max


def get_run_key(
    args: Mapping[str, Any], hparams: Mapping[str, Any] | None, n_accuracies: int
) -> str:
    """Return a key that is equal for all records of one run, and differs between runs."""
    names = (*IDENTITY, "test_envs", "seed", *ARGUMENTS, "hparams")
    # Facts can change when a run is resumed.
    lasting = {k: v for k, v in (hparams or {}).items() if k not in (*NAMES, FOREIGN)}
    return repr([*map(args.get, names), sorted(lasting.items()), n_accuracies])


DEPTH = 3  # levels below a folder of sweeps: sweep, variant, job

_MAX_ACCURACY = 1 + 1e-6  # weights summed in a different order can slightly exceed 1


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """The recorded checkpoints of one run."""

    job: Job
    done: bool
    environments: tuple[str, ...]  # recorded names, or empty
    n_environments: int
    steps: array[float]  # one per checkpoint
    # One row per checkpoint, in [0, 1]: in-splits of all environments, then out-splits. NaN for
    # missing values, and for all values from the step `diverged_at` on.
    accuracies: array[float]
    drift: array[float]  # the values of DRIFT at each checkpoint, or NaN
    setting: Mapping[str, str]  # see `get_recorded_setting`
    recorded: Mapping[str, Any]  # hyperparameters and facts of the job
    diverged_at: float | None  # the first step with broken weights, if the training diverged

    @property
    def folder(self) -> str:
        """Folder of the job."""
        return str(self.job.folder)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.job.key.dataset

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return self.job.key.algorithm

    @property
    def row(self) -> str:
        """Name of the row in tables: the algorithm's name, unless ``--by`` divides it."""
        return self.job.row

    @property
    def test_envs(self) -> tuple[int, ...]:
        """Targets, in the order of the arguments."""
        return tuple(self.job.args["test_envs"])

    @functools.cached_property
    def cost(self) -> Cost:
        """Cost of the job, read from its records when it is first needed."""
        record_by_step = {record["step"]: record for record in read_run_records(self)}
        return recorded_cost([*record_by_step.values()]) if record_by_step else Cost()


class RunsAndWarnings(NamedTuple):
    """Runs, and warnings about the files with their records."""

    runs: list[RecordedRun]
    warnings: list[RecordWarning]


def read(folders: Sequence[Path | str]) -> RunsAndWarnings:
    """Read all runs in ``folders`` and up to DEPTH levels below, each real folder once.

    A folder contains a single run, unless several wrote there. Raises CarftError, which lists all
    missing folders, if any of ``folders`` do not exist.
    """
    missing = [str(folder) for folder in folders if not os.path.isdir(folder)]
    if missing:
        raise CarftError(f"no such folder: {', '.join(missing)}; expected output folders of sweeps")

    runs: list[RecordedRun] = []
    warnings: list[RecordWarning] = []
    for folder in _find_record_folders(folders, warnings):
        latest: dict[str, dict[float, dict[str, Any]]] = {}
        file_warnings: list[RecordWarning] = []
        for key, record in read_keyed_records(os.path.join(folder, RECORDS), file_warnings):
            latest.setdefault(key, {})[record["step"]] = record

        warnings += file_warnings
        if not latest and "no accuracies" not in [warning.kind for warning in file_warnings]:
            warnings.append(RecordWarning("no records", folder, "no record"))
        for steps in _drop_damaged(list(latest.values()), folder, warnings):
            runs.append(_build_run(folder, list(steps.values()), warnings))
    return RunsAndWarnings(runs, warnings)


def _find_record_folders(
    folders: Iterable[Path | str], warnings: list[RecordWarning]
) -> Iterable[str]:
    """Find the folders with records in ``folders`` and up to DEPTH levels below."""
    record_folders: dict[tuple[int, int], str] = {}  # by device and inode, since links can repeat

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
    return record_folders.values()


def _drop_damaged(
    runs: Sequence[dict[float, dict[str, Any]]], folder: str, warnings: list[RecordWarning]
) -> list[dict[float, dict[str, Any]]]:
    """Drop damaged lines, with a warning, from the runs of a folder.

    A line with a damaged name or hyperparameter looks like a separate run, but has the arguments
    of a longer run and only steps that the longer run lacks.

    Args:
        runs: records by step, for each run.
        folder: the folder of the job.
        warnings: a warning is appended for each dropped run.
    """
    intact_runs: list[dict[float, dict[str, Any]]] = []
    for run in sorted(runs, key=len, reverse=True):
        owner = next((intact for intact in intact_runs if _is_fragment(run, intact)), None)
        if owner is None:
            intact_runs.append(run)
            continue

        steps = ", ".join(f"{step:g}" for step in run)
        text = f"step {steps} has other {_describe_difference(run, owner)}; skipped"
        warnings.append(RecordWarning("damaged", folder, text))
    return [run for run in runs if any(run is intact for intact in intact_runs)]


def _is_fragment(run: Mapping[float, Any], longer_run: Mapping[float, Any]) -> bool:
    """Return True if both runs have the same arguments and no step in common."""
    first, second = (next(iter(records.values())) for records in (run, longer_run))
    return bool(first["args"] == second["args"]) and run.keys().isdisjoint(longer_run)


def _describe_difference(run: Mapping[float, Any], longer_run: Mapping[float, Any]) -> str:
    """Describe in which part the records of two runs differ, with hyperparameter names."""
    first, second = (
        next(iter(records.values())).get("hparams") or {} for records in (run, longer_run)
    )
    names = sorted(name for name in first | second if first.get(name) != second.get(name))
    return f"hparams than the rest: {', '.join(names)}" if names else "accuracies than the rest"


def read_file(path: Path | str) -> tuple[list[dict[str, Any]], list[RecordWarning]]:
    """Read the complete records of a file, one per step of a run, and the warnings about it."""
    warnings: list[RecordWarning] = []
    latest = {(key, record["step"]): record for key, record in read_keyed_records(path, warnings)}
    return list(latest.values()), warnings


def read_run_records(run: RecordedRun) -> Iterator[dict[str, Any]]:
    """Iterate over the complete records of one run, even if several runs share its folder."""
    n_accuracies = run.n_environments + len(run.test_envs)
    key_of_run = get_run_key(run.job.args, run.recorded, n_accuracies)
    for key, record in read_keyed_records(run.job.folder / RECORDS, warnings=[]):
        if key == key_of_run:
            yield record


def read_recorded_arguments(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the arguments of a job from its first complete record; return None without records."""
    for _, record in read_keyed_records(os.path.join(folder, RECORDS), warnings=[]):
        return dict(record["args"])
    return None


def read_last_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the last record of a job that is valid JSON; return None if there is none."""
    with contextlib.suppress(OSError):
        lines = files.read_regular(os.path.join(folder, RECORDS)).split(b"\n")
        for record in map(parse_line, reversed(lines)):
            if isinstance(record, dict) and "step" in record:
                return record
    return None


def _build_run(
    folder: str, records: list[dict[str, Any]], warnings: list[RecordWarning]
) -> RecordedRun:
    """Build the run with these records, one per step."""
    first = records[0]
    args = {name: value for name, value in first["args"].items() if name != "output_dir"}
    count = len(get_needed_accuracies(first)) - len(args["test_envs"])
    environments = _get_environment_names(first, count)
    parts = {ENVIRONMENTS: ", ".join(environments) or str(count)}
    parts |= get_recorded_setting(args, first, read_printed_versions(folder))

    broken_steps = _find_broken_steps(records)
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
        accuracies=collect_accuracies(records, count, broken_steps),
        drift=_collect_drift(records),
        setting=parts,
        recorded=get_hparams_and_facts(first, first.get("hparams")),
        diverged_at=min(broken_steps, default=None),
    )


def _get_environment_names(record: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the recorded names of the environments, or nothing unless ``count`` are distinct."""
    recorded = record.get("environments")
    if not isinstance(recorded, list):
        return ()
    names = tuple(map(str, recorded))
    return names if len(set(names)) == len(names) == count else ()


def _find_broken_steps(records: list[dict[str, Any]]) -> set[float]:
    """Return the recorded steps from the update before the first non-finite loss on."""
    marks = [record["diverged_at"] for record in records if "diverged_at" in record]
    start = min((mark - 1 for mark in marks if is_step(mark)), default=math.inf)
    return {
        record["step"]
        for record in records
        if record["step"] >= start
        # Records of checkouts have no mark.
        or is_broken_loss("loss", record.get("loss"))
    }


def collect_accuracies(
    records: Sequence[Mapping[str, Any]], count: int, broken_steps: Collection[float] = ()
) -> array[float]:
    """Collect the accuracies of a RecordedRun, with NaN for values outside [0, 1]."""
    names = [f"env{env}_{split}_acc" for split in ("in", "out") for env in range(count)]
    rows = array("d")
    for record in records:
        for name in names:
            value: Any = None if record["step"] in broken_steps else record.get(name)
            valid = type(value) in NUMBERS and 0 <= value <= _MAX_ACCURACY
            rows.append(value if valid else math.nan)
    return rows


def _collect_drift(records: Sequence[Mapping[str, Any]]) -> array[float]:
    """Collect the values of DRIFT, with NaN for missing and infinite ones."""
    values = array("d")
    for record in records:
        for name in DRIFT:
            value: Any = record.get(name)
            is_finite = type(value) in NUMBERS and abs(value) <= sys.float_info.max
            values.append(value if is_finite else math.nan)
    return values
