"""Output of the commands on records: ``collect``, ``report``, ``top`` and ``diff``."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.escaping import print_lines
from domainbed_carft.jobs.differences import diff
from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.results import formats
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.text_tables import table
from domainbed_carft.wording import quantity

if TYPE_CHECKING:
    from domainbed_carft.results.top import ChosenRun

# Exit statuses other than 0
DIFFERENT = 1
INCOMPLETE = 3  # of --strict

_TOP_HEADER = (
    "Dataset",
    "Algorithm",
    "Target",
    "Trial",
    "Hyperparameters",
    "Step",
    "Validation",
    "Accuracy",
    "Folder",
)
_MAX_LISTED_SETTINGS = 8  # settings recorded by one run only
_MAX_TEXT_LENGTH = 60  # characters of a value, such as a digest


def collect_command(arguments: argparse.Namespace) -> int:
    """Write the tables, and print warnings and a summary; return the exit status."""
    from domainbed_carft.results.collect import collect  # slower to import than diff

    _require_one_table(arguments)
    files.require_output(arguments.output)

    results = collect(
        arguments.folders,
        methods=arguments.select,
        ignored=arguments.ignore,
        by=arguments.by,
        columns=arguments.columns or DEFAULT_COLUMNS,
        error=arguments.error,
        compare_published=bool(arguments.compare),
        against=arguments.against,
    )
    text = results.write(arguments.format)
    with files.open_output(arguments.output) as out:
        out.write(text)

    lines = list(results.notes) if arguments.format == "csv" else []  # CSV cannot contain notes
    shown, *omitted = results.collection.methods
    if arguments.format == "latex" and omitted:
        lines.append(
            f"The table uses selection by {shown}; for another, pass --select {omitted[0]}."
        )
    lines += [*describe_warnings(results.warnings), _summary_line(results.summary)]

    has_failed = arguments.strict and bool(results.defects)
    if has_failed:
        listing = ", ".join(f"{kind} ({count:,})" for kind, count in results.defects.items())
        lines.append(f"carft: --strict: {listing}")
    print_lines(*lines, stream=sys.stderr)
    return INCOMPLETE if has_failed else 0


def _require_one_table(arguments: argparse.Namespace) -> None:
    """Raise CarftError if the output format cannot contain all requested tables."""
    flags = {
        "--compare": arguments.compare,
        "--columns": arguments.columns,
        "--against": arguments.against,
    }
    more_tables = [flag for flag, value in flags.items() if value]
    if arguments.format == "csv" and len(more_tables) > 1:
        raise CarftError(
            f"--format csv holds one table, but {' and '.join(more_tables)} need a table each; "
            f"use either {' or '.join(more_tables)}"
        )
    if arguments.format == "latex" and arguments.compare:
        raise CarftError(
            "--format latex holds one table of accuracies, and with --against of differences; "
            "remove --compare"
        )


def _summary_line(summary: Mapping[str, Any]) -> str:
    """Return the number of records and jobs that were read, and of incomplete cells."""
    line = f"{quantity(summary['records'], 'record')} of {quantity(summary['jobs'], 'job')}"
    incomplete = summary["incomplete_cells"]
    if incomplete:
        line += f"; incomplete: {incomplete:,} of {quantity(summary['cells'], 'cell')} (see notes)"
    return f"{line}."


def report_command(arguments: argparse.Namespace) -> None:
    """Write the report, and print warnings and its path."""
    from domainbed_carft.report.page import write_report  # matplotlib loads slowly

    report = write_report(
        arguments.folders,
        arguments.output,
        methods=[arguments.select] if arguments.select else None,
        ignored=arguments.ignore,
        columns=arguments.columns or DEFAULT_COLUMNS,
        error=arguments.error,
        by=arguments.by,
        against=arguments.against,
    )
    lines = describe_warnings(report.warnings)
    if not report.is_complete:
        lines.append("Some cells are incomplete; see the notes on the page.")
    print_lines(*lines, stream=sys.stderr)
    print_lines(f"Report: {report.index}")


def top_command(arguments: argparse.Namespace) -> None:
    """Print a table of each selection rule and setting, or all as JSON."""
    from domainbed_carft.results.top import top

    best = top(
        arguments.folders,
        methods=arguments.select,
        ignored=arguments.ignore,
        only=arguments.only,
    )
    if arguments.json:
        print(formats.as_json([dataclasses.asdict(entry) for entry in best.entries]), end="")
    else:
        print_lines(*_top_lines(best.entries) or ["No run was selected."])
    print_lines(*describe_warnings(best.warnings), stream=sys.stderr)


def _top_lines(entries: Sequence[ChosenRun]) -> list[str]:
    """Return a table for each method and setting, below the hyperparameters of all its rows."""
    from domainbed_carft.results import selection
    from domainbed_carft.results.top import find_shared_hparams, format_hparams

    dataset_titles = benchmarks.dataset_titles(entry.dataset for entry in entries)
    lines = []
    for (method, setting), group in itertools.groupby(
        entries, key=lambda entry: (entry.selection, entry.setting)
    ):
        runs = list(group)
        shared = find_shared_hparams(runs)
        rows = [
            [
                dataset_titles[run.dataset],
                run.algorithm,
                run.environment or "",
                str(run.trial_seed),
                run.describe_hparams(shared),
                str(run.step),
                run.validation_text,
                run.accuracy_text,
                run.folders[0],
            ]
            for run in runs
        ]
        lines += ["", "; ".join(filter(None, [selection.METHODS[method].title, setting]))]
        lines += [f"In all rows: {format_hparams(shared)}"] if shared else []
        lines += table(_TOP_HEADER, rows).splitlines()
    return lines[1:]


def diff_command(arguments: argparse.Namespace) -> int:
    """Print a row for each difference, and the settings that only one of the runs recorded."""
    differences = diff(arguments.first, arguments.second)
    if arguments.json:
        print(json.dumps(differences.as_dict(), indent=1))
        return 0 if differences.is_equal else DIFFERENT

    rows = [
        [name, *(_format_value(name, value) for value in values)]
        for name, values in differences.differences.items()
    ]
    lines = [f"A: {differences.first}", f"B: {differences.second}", ""]
    lines += (
        ["No differences."]
        if differences.is_equal
        else table(["Setting", "A", "B"], rows).splitlines()
    )
    for letter, names in (("A", differences.only_in_first), ("B", differences.only_in_second)):
        if names:
            excess = len(names) - _MAX_LISTED_SETTINGS
            listing = ", ".join(names[:_MAX_LISTED_SETTINGS])
            listing += f" and {excess:,} more" if excess > 0 else ""
            lines.append(f"Recorded by {letter} only, not compared: {listing}.")
    print_lines(*lines)
    return 0 if differences.is_equal else DIFFERENT


def _format_value(name: str, value: Any) -> str:
    """Return a value for people: words without quotes, and long values cut."""
    text = value if isinstance(value, str) else json.dumps(value)
    if name == EDITION:
        text = benchmarks.edition_label(text)
    return text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}..."


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "collect": collect_command,
    "report": report_command,
    "top": top_command,
    "diff": diff_command,
}
