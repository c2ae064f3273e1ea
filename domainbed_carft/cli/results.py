"""Flags of the commands on records: ``collect``, ``report``, ``top`` and ``diff``."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from domainbed_carft.cli.help_pages import WIDTH, comma_separated
from domainbed_carft.jobs.setting import KINDS
from domainbed_carft.results.cells import DOMAINBED, ERROR_KINDS
from domainbed_carft.results.columns import (
    ALL,
    DEFAULT_COLUMNS,
    ENVIRONMENTS,
    EVALUATED,
    EVALUATION_COLUMNS,
    NAMES,
    RECORD_COLUMNS,
    Column,
)
from domainbed_carft.results.formats import FORMATS
from domainbed_carft.results.method_names import METHOD_NAMES

_INDENT = "    "
_HELP = "help"  # the value of --columns that lists all columns

WRONG_ARGUMENTS = 2  # exit status of diff, whose 1 means a difference


def add_to(commands: Any) -> None:
    """Add the commands to argparse's ``commands``."""
    _add_collect(commands)
    _add_report(commands)
    _add_top(commands)
    _add_diff(commands)


def _run(name: str, arguments: argparse.Namespace) -> int | None:
    from domainbed_carft.cli import results_output  # imports what only these commands need

    return results_output.COMMANDS[name](arguments)


def _add_collect(commands: Any) -> None:
    parser = commands.add_parser(
        "collect",
        run=_run,
        help="print result tables of sweeps, with standard errors and missing runs",
    )
    _add_select(_add_runs(parser))
    _add_tables(parser)
    _add_against(parser).add_argument(
        "--compare", choices=["published"], help="show published numbers next to yours"
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="output format (default: text); latex writes one tabular for \\input, for the first "
        "selection rule only, with the differences if you pass --against",
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
        "report",
        run=_run,
        help="write a web page with a sweep's results: tables and figures",
    )
    _add_runs(parser).add_argument(
        "--select",
        choices=METHOD_NAMES,
        metavar="RULE",
        help="choose runs and checkpoints by this selection rule: "
        f"{', '.join(METHOD_NAMES)} (default: the first rule declared by the sweep, or the first "
        "for which there are jobs)",
    )
    _add_tables(parser)
    _add_against(parser)

    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="folder for index.html and figures/; it must be new, empty, or contain an earlier "
        "report (default: report)",
    )


def _add_top(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        run=_run,
        help="print the chosen run of each cell and trial: hyperparameters, step, folder",
        description="Print the run that model selection chose for each cell and trial: the "
        "hyperparameters that were drawn or set, the step of the checkpoint, and the job's folder.",
    )
    _add_select(_add_runs(parser))
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="",
        help="print only jobs whose folder or description contains this text",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON with all hyperparameters, which you can pass to --hparams",
    )


def _add_diff(commands: Any) -> None:
    parser = commands.add_parser(
        "diff",
        run=_run,
        help="show the differences between two runs: settings, versions, data, prompts",
        description="Show the differences between two runs in settings, versions, data editions "
        "and prompts. The exit status is 0 if the runs are equal, 1 if they differ, and 2 for "
        "wrong arguments.",
    )
    parser.set_defaults(status_of_errors=WRONG_ARGUMENTS)
    parser.add_argument("first", metavar="A", help="folder of a job")
    parser.add_argument("second", metavar="B", help="folder of the job to compare with A")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_runs(parser: argparse.ArgumentParser) -> Any:
    """Add the folders and the runs to average; return the argument group of runs."""
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
    return runs


def _add_select(runs: Any) -> None:
    runs.add_argument(
        "--select",
        type=comma_separated(METHOD_NAMES),
        action="extend",
        metavar="RULE,...",
        help="choose runs and checkpoints by these selection rules, separated by commas, with "
        f"tables for each: {', '.join(METHOD_NAMES)} (default: the rules declared by the sweep, "
        "or all that have jobs, except clipood)",
    )


def _add_tables(parser: argparse.ArgumentParser) -> None:
    tables = parser.add_argument_group("tables")
    tables.add_argument(
        "--columns",
        type=comma_separated((*NAMES, _HELP)),
        action=_Columns,
        metavar="COLUMN,...",
        help=f"columns of the tables, separated by commas, such as {ENVIRONMENTS},worst. "
        f"'{EVALUATED}' stands for all columns that carft evaluate measures, and '{ALL}' for all "
        f"others; --columns {_HELP} explains every column (default: {','.join(DEFAULT_COLUMNS)})",
    )
    tables.add_argument(
        "--error",
        choices=tuple(ERROR_KINDS),
        default=DOMAINBED.name,
        help="uncertainty printed after the mean over trials: domainbed is the standard error with "
        "divisor n, as DomainBed prints it; sample is the standard error with divisor n - 1; std "
        "is the standard deviation over trials (default: domainbed)",
    )
    tables.add_argument(
        "--by",
        type=lambda text: text.split(","),
        action="extend",
        default=[],
        metavar="HPARAM,...",
        help="show one table with a row for each value of these hyperparameters, or for each "
        "variant of the sweep (--by variant), instead of a table for each",
    )


def _add_against(parser: argparse.ArgumentParser) -> Any:
    """Add ``--against``; return the argument group of comparisons."""
    comparisons = parser.add_argument_group("comparisons")
    comparisons.add_argument(
        "--against",
        metavar="ALGORITHM",
        help="compare every other algorithm with this one: paired differences, confidence "
        "intervals and p-values",
    )
    return comparisons


class _Columns(argparse.Action):
    """Collect the names of columns; ``--columns help`` prints all columns and exits."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if _HELP in values:
            print("\n".join(_describe_columns()))
            parser.exit()
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def _describe_columns() -> list[str]:
    """Return the names of all columns, each with its header and explanation."""
    return [
        f"Columns from the jobs' records ('{ALL}'):",
        f"  {ENVIRONMENTS}",
        f"{_INDENT}A column for each environment: the accuracy on it.",
        *_describe(RECORD_COLUMNS),
        "",
        f"Columns measured by carft evaluate ('{EVALUATED}'):",
        *_describe(EVALUATION_COLUMNS),
    ]


def _describe(columns: Iterable[Column]) -> Iterator[str]:
    for column in columns:
        yield f"  {column.name}"
        text = textwrap.fill(column.explanation, width=WIDTH - len(_INDENT))
        yield textwrap.indent(text, _INDENT)
