"""What `carft evaluate OUT` prints: the figures of a sweep's selected runs, as tables or JSON."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence

from domainbed_carft import files
from domainbed_carft.cli.run_texts import percent
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.jobs.records import RecordWarning, describe_warnings
from domainbed_carft.results import alignment_scores, collection, formats, selection, suites
from domainbed_carft.results.calibration import ECE_BINS
from domainbed_carft.results.run_figures import SplitFigures
from domainbed_carft.runs import SOME_SKIPPED
from domainbed_carft.runs.evaluation_processes import SweepOptions
from domainbed_carft.runs.runs_on_suite import evaluate_sweep_on_suite
from domainbed_carft.runs.sweep_evaluation import (
    EvaluatedRun,
    SweepEvaluation,
    evaluate_sweep,
)
from domainbed_carft.text import limited, log, printable, quantity, table

# Of a run only.
_FLAGS_OF_RUNS = ("which", "clip", "retained")


def _scaled_ece(figures: SplitFigures) -> float | None:
    return figures.scaled.ece if figures.scaled else None


def _scaled_nll(figures: SplitFigures) -> float | None:
    return figures.scaled.nll if figures.scaled else None


def _scaled_brier(figures: SplitFigures) -> float | None:
    return figures.scaled.brier if figures.scaled else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# Head of a column, the figure of a run, how it is written.
_COLUMNS: Sequence[
    tuple[str, Callable[[SplitFigures], float | None], Callable[[float | None], str]]
] = (
    ("acc", lambda figures: figures.accuracy, percent),
    ("per class", lambda figures: figures.mean_per_class, percent),
    ("worst", lambda figures: figures.worst_class.accuracy, percent),
    ("ECE", lambda figures: figures.calibration.ece, percent),
    ("ECE/T", _scaled_ece, percent),
    ("NLL", lambda figures: figures.calibration.nll, _number),
    ("NLL/T", _scaled_nll, _number),
    ("Brier", lambda figures: figures.calibration.brier, _number),
    ("Brier/T", _scaled_brier, _number),
    ("gained", lambda figures: figures.gained, percent),
    ("lost", lambda figures: figures.lost, percent),
    ("aligned", lambda figures: figures.alignment.aligned, percent),
    ("unaligned", lambda figures: figures.alignment.unaligned, percent),
)


def evaluate_sweep_command(arguments: argparse.Namespace) -> int:
    """Evaluate a sweep, and print or write the figures; 3 if some runs have none, 1 if all."""
    given = [name for name in _FLAGS_OF_RUNS if getattr(arguments, name) is not None]
    if given:
        raise CarftError(
            Problem(
                message=f"--{given[0]} is for a run, and {arguments.path} is a sweep's folder",
                remedy="give the folder of one of its jobs, or leave the flag out",
            )
        )
    if not -1 <= arguments.threshold <= 1:
        raise CarftError(
            Problem("--threshold", arguments.threshold, expected="a cosine, from -1 to 1")
        )
    files.require_output(arguments.output)

    options = SweepOptions(
        methods=arguments.select,
        threshold=arguments.threshold,
        device=arguments.device,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        data_dir=arguments.data_dir,
        original=arguments.original,
        jobs=arguments.jobs,
        jobs_per_gpu=arguments.jobs_per_gpu,
    )
    if arguments.suite:
        return _evaluate_on_suite(arguments, options)

    evaluation = evaluate_sweep(arguments.path, options)
    with files.stream(arguments.output) as out:
        if arguments.json:
            out.write(json.dumps(evaluation.as_dict(), indent=1) + "\n")
        else:
            out.write(sweep_text(evaluation))

    if not evaluation.problems:
        return 0
    return SOME_SKIPPED if any(run.figures for run in evaluation.runs) else 1


def _evaluate_on_suite(arguments: argparse.Namespace, options: SweepOptions) -> int:
    """Evaluate a sweep on a suite, and print or write the suite's table.

    Returns 3 if some runs have figures and others could not be measured, 1 if none has.
    """
    outcome = evaluate_sweep_on_suite(arguments.path, arguments.suite, options)
    warnings: list[RecordWarning] = []
    scores = [
        row
        for group in collection.gather([arguments.path]).groups
        for row in suites.scores(group, warnings)
        if row.suite == arguments.suite
    ]
    grids = [suites.grid(rows) for rows in suites.rows_by_table(scores)]
    entries = {"suites": [row.entry() for row in scores]}
    with files.stream(arguments.output) as out:
        if arguments.json:
            out.write(formats.as_json({"caption": [suites.caption()], **entries}))
        else:
            out.write(formats.as_text(grids, [suites.caption()]))
    log(f"evaluate: {quantity(outcome.measured, 'run')} measured on {arguments.suite}")
    for line in describe_warnings(warnings):
        print(line, file=sys.stderr)
    for problem in outcome.problems:
        log(f"evaluate: not measured: {problem.sentence()}")

    if not outcome.problems:
        return 0
    return SOME_SKIPPED if scores else 1


def sweep_text(evaluation: SweepEvaluation) -> str:
    """A table for each data set and selection method, what its columns mean, and the problems."""
    lines = [
        printable(
            f"{evaluation.folder}: {quantity(evaluation.measured, 'run')} evaluated, "
            f"{evaluation.current:,} were evaluated before"
        )
    ]
    for title, runs in itertools.groupby(evaluation.runs, _title):
        lines += ["", printable(title), _table(list(runs))]
    lines += ["", *_legend(evaluation.threshold)]

    if evaluation.problems:
        lines += ["", "X: the figures are incomplete."]
        problems = [
            printable(f"- {run_step.folder}, step {run_step.step}: {problem}")
            for run_step, problem in evaluation.problems.items()
        ]
        lines += limited(problems)
    return "\n".join([*lines, ""])


def _title(run: EvaluatedRun) -> str:
    dataset = benchmarks.dataset_title(run.dataset)
    parts = [dataset, selection.METHODS[run.method].title, run.setting]
    return "; ".join(filter(None, parts))


def _table(runs: Sequence[EvaluatedRun]) -> str:
    """A row for each algorithm and environment: means over the trials."""
    cells: dict[tuple[str, str], list[EvaluatedRun]] = {}
    for run in runs:
        cells.setdefault((run.algorithm, run.environment), []).append(run)

    rows = []
    for (algorithm, environment), trials in cells.items():
        figures = [run.figures for run in trials if run.figures]
        if len(figures) < len(trials):
            values = ["X" for _ in _COLUMNS]
        else:
            values = [
                write(_mean(figure(part) for part in figures)) for _, figure, write in _COLUMNS
            ]
        rows.append([algorithm, environment, str(len(trials)), *values])
    return table(["algorithm", "environment", "trials", *(head for head, _, _ in _COLUMNS)], rows)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean over the trials; None if one of them has no value."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _legend(threshold: float) -> list[str]:
    return [
        "acc, per class, worst: accuracy (%), its mean over classes, and that of the worst class.",
        f"ECE (%) over {ECE_BINS} bins, NLL in nats, Brier score; /T: at the temperature fitted on "
        "the out-splits of the training environments.",
        "gained, lost (%): pictures that only the run, or only zero-shot CLIP predicts correctly.",
        f"aligned, unaligned: accuracy (%) of pictures with an alignment score from {threshold:g} "
        f"to {alignment_scores.HIGHEST:g}, and from {alignment_scores.LOWEST:g} to {threshold:g}.",
    ]
