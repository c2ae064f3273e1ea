"""The commands ``carft collect`` and ``carft report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft import files
from domainbed_carft.cli import table_options
from domainbed_carft.cli.table_options import comma_separated
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.jobs.setting import KINDS
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.results.formats import FORMATS
from domainbed_carft.results.method_names import METHOD_NAMES
from domainbed_carft.text import printable, quantity

if TYPE_CHECKING:
    from domainbed_carft.results.collect import Results

INCOMPLETE = 3  # exit status of --strict


def add_to(commands: Any) -> None:
    """Add ``collect`` and ``report`` to argparse's ``commands``."""
    _add_collect(commands)
    _add_report(commands)


def _add_collect(commands: Any) -> None:
    parser = commands.add_parser(
        "collect", help="print result tables of sweeps, with standard errors and missing runs"
    )
    add_common(parser, _collect)
    comparisons = table_options.add_to(parser)
    comparisons.add_argument(
        "--compare", choices=["published"], help="show published numbers next to yours"
    )
    _add_output(parser.add_argument_group("output"))


def _add_output(output: Any) -> None:
    output.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="output format (default: text); latex writes one tabular for \\input, for the first "
        "selection method only, with the differences if you pass --against",
    )
    output.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write to this file instead of printing"
    )
    output.add_argument(
        "--strict",
        action="store_true",
        help="exit with status 3 if a cell is incomplete, a run diverged, or a file is unusable",
    )


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report", help="write a web page with a sweep's results: tables and figures"
    )
    add_common(parser, _report)
    table_options.add_to(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="folder for index.html and figures/; it must be new, empty, or contain an earlier "
        "report (default: report)",
    )


def add_common(parser: argparse.ArgumentParser, run: Callable[..., Any]) -> None:
    """Add the arguments of ``collect``, ``top`` and ``report``."""
    parser.set_defaults(run=run)
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="output folder of a sweep, also of DomainBed's own sweep script",
    )
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--ignore",
        type=comma_separated(KINDS),
        action="extend",
        default=[],
        metavar="PART,...",
        help="average runs together even if they differ in these settings, separated by commas: "
        f"{', '.join(KINDS)}",
    )
    runs.add_argument(
        "--select",
        type=comma_separated(METHOD_NAMES),
        action="extend",
        metavar="METHOD,...",
        help="choose runs and checkpoints by these selection methods, separated by commas, with "
        f"tables for each: {', '.join(METHOD_NAMES)} (default: the methods declared by the sweep, "
        "or all for which there are jobs); a report uses only the first",
    )


def _collect(arguments: argparse.Namespace) -> int:
    from domainbed_carft.results.collect import collect

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

    if arguments.format == "csv":  # CSV cannot contain notes
        print_errors(results.notes)
    if arguments.format == "latex":
        _print_omitted_methods(results)
    print_errors([*describe_warnings(results.warnings), _summary_line(results.summary)])
    return _strict_status(results.defects) if arguments.strict else 0


def _require_one_table(arguments: argparse.Namespace) -> None:
    """Raise CarftError if the output format cannot contain all requested tables."""
    more_tables = table_options.more_tables(arguments)
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


def _print_omitted_methods(results: Results) -> None:
    """Print the selection method of the only table if there are several methods."""
    shown, *omitted = results.collection.methods
    if omitted:
        print_errors(
            [f"The table uses selection by {shown}; for another, pass --select {omitted[0]}."]
        )


def _summary_line(summary: Mapping[str, Any]) -> str:
    """Return the number of records and jobs that were read, and of incomplete cells."""
    line = f"{quantity(summary['records'], 'record')} of {quantity(summary['jobs'], 'job')}"
    incomplete = summary["incomplete_cells"]
    if incomplete:
        line += f"; incomplete: {incomplete:,} of {quantity(summary['cells'], 'cell')} (see notes)"
    return f"{line}."


def _strict_status(defects: Mapping[str, int]) -> int:
    """Print the defects for ``--strict``; return the exit status."""
    if not defects:
        return 0

    listing = ", ".join(f"{kind} ({count:,})" for kind, count in defects.items())
    print_errors([f"carft: --strict: {listing}"])
    return INCOMPLETE


def _report(arguments: argparse.Namespace) -> None:
    from domainbed_carft.report.page import write_report

    report = write_report(
        arguments.folders,
        arguments.output,
        methods=arguments.select,
        ignored=arguments.ignore,
        columns=arguments.columns or DEFAULT_COLUMNS,
        error=arguments.error,
        by=arguments.by,
        against=arguments.against,
    )
    print_errors(describe_warnings(report.warnings))
    if not report.is_complete:
        print_errors(["Some cells are incomplete; see the notes on the page."])
    print(f"Report: {printable(str(report.index))}")


def print_errors(lines: Iterable[str]) -> None:
    for line in lines:
        print(printable(line), file=sys.stderr)
