"""All selected runs of a sweep on a suite: each picture is read once for the runs that share it."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft.errors import Problem
from domainbed_carft.launchers.children import Children
from domainbed_carft.results import collection
from domainbed_carft.results.suites import SuiteRun, selected_runs
from domainbed_carft.runs import suite_job
from domainbed_carft.runs.default_weights import choose_weights
from domainbed_carft.runs.evaluation_processes import SweepOptions, evaluate_in_pool, run_process
from domainbed_carft.suites import catalogue, records
from domainbed_carft.text import quantity

# Bytes of weights that one pass holds at a time: hundreds of small CLIPs, five ViT-B/16. More runs
# need more passes, so that neither memory nor an interruption costs much.
_PASS_BYTES = 2 << 30


@dataclass(frozen=True)
class _Pass:
    """One pass over the pictures: the weights that are tested on them, and the skipped sets."""

    weights: list[Path]
    skipped_sets: list[str]


@dataclass(frozen=True)
class SweepOnSuite:
    """How many runs were measured, and why others were not."""

    measured: int
    problems: list[Problem]


def evaluate_sweep_on_suite(folder: Path, suite: str, options: SweepOptions) -> SweepOnSuite:
    """Measure each run that validation chose on the sets of a suite that it was not trained on.

    The records are added to the jobs' suites.jsonl. Runs with a record of their weights are not
    measured again. What keeps some runs from being measured keeps no others. Raises CarftError for
    an unknown suite.
    """
    catalogue.get(suite)
    groups = collection.gather([folder]).groups
    runs = [run for group in groups for run in selected_runs(group)]
    passes = list(_passes(runs, suite))
    problems: list[Problem] = []

    def evaluate(task: _Pass, slot: Mapping[str, str], children: Children) -> None:
        status, message = run_process(_command(task, suite, options), slot, children)
        if status != 0:
            jobs = quantity(len(task.weights), "run")
            problems.append(Problem(message=f"{jobs}, {task.weights[0].parent} first: {message}"))

    evaluate_in_pool(
        passes,
        evaluate,
        options,
        suite_job.MODULE,
        count_runs=lambda task: len(task.weights),
    )
    weights = [file for task in passes for file in task.weights]
    measured = sum(_has_record(file, suite) for file in weights)
    return SweepOnSuite(measured, problems)


def _passes(runs: list[SuiteRun], suite: str) -> Iterator[_Pass]:
    """The runs without a record, by the environments that they were trained on."""
    weights: dict[frozenset[str], list[Path]] = defaultdict(list)
    for run in runs:
        file = choose_weights(run.folder, None)
        if not _has_record(file, suite):
            weights[run.trained_on].append(file)

    for trained_on, files in weights.items():
        for part in _parts(files):
            yield _Pass(part, sorted(trained_on))


def _parts(files: list[Path]) -> Iterator[list[Path]]:
    """The files in order, as lists of at most _PASS_BYTES, or of one file that is larger."""
    part: list[Path] = []
    held_bytes = 0
    for file in files:
        size = file.stat().st_size
        if part and held_bytes + size > _PASS_BYTES:
            yield part
            part = []
            held_bytes = 0
        part.append(file)
        held_bytes += size

    if part:
        yield part


def _has_record(weights_file: Path, suite: str) -> bool:
    """Whether the job's records have this suite by these weights, and are not older than them."""
    record_file = weights_file.parent / records.FILE
    if not record_file.exists() or record_file.stat().st_mtime < weights_file.stat().st_mtime:
        return False
    return any(
        (record["suite"], record["weights"], record["wise_ft_alpha"])
        == (suite, weights_file.name, None)
        for record in records.read(weights_file.parent, warnings=[])
    )


def _command(task: _Pass, suite: str, options: SweepOptions) -> list[str]:
    command = [sys.executable, "-m", suite_job.MODULE, *map(str, task.weights)]
    command += ["--suite", suite, "--batch_size", str(options.batch_size)]
    command += ["--workers", str(options.workers or 0)]
    if task.skipped_sets:
        command += ["--skip", *task.skipped_sets]
    if options.device:
        command += ["--device", options.device]
    if options.data_dir:
        command += ["--data_dir", options.data_dir]
    return command
