"""The options of ``carft collect`` and ``carft report`` that choose what the tables show."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from domainbed_carft.cli.help_pages import WIDTH
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

_INDENT = "    "

HELP = "help"  # the value of --columns that lists all columns


def add_to(parser: argparse.ArgumentParser) -> Any:
    """Add the options to a parser; return the argument group of comparisons."""
    tables = parser.add_argument_group("tables")
    tables.add_argument(
        "--columns",
        type=comma_separated((*NAMES, HELP)),
        action=_Columns,
        metavar="COLUMN,...",
        help=f"columns of the tables, separated by commas, such as {ENVIRONMENTS},worst. "
        f"'{EVALUATED}' stands for all columns that carft evaluate measures, and '{ALL}' for all "
        f"others; --columns {HELP} explains every column (default: {','.join(DEFAULT_COLUMNS)})",
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
        if HELP in values:
            print(describe_columns())
            parser.exit()
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def describe_columns() -> str:
    """Return the names of all columns, each with its header and explanation."""
    lines = [
        f"Columns from the jobs' records ('{ALL}'):",
        f"  {ENVIRONMENTS}",
        f"{_INDENT}A column for each environment: the accuracy on it.",
        *_describe(RECORD_COLUMNS),
        "",
        f"Columns measured by carft evaluate ('{EVALUATED}'):",
        *_describe(EVALUATION_COLUMNS),
    ]
    return "\n".join(lines)


def _describe(columns: Iterable[Column]) -> Iterator[str]:
    for column in columns:
        yield f"  {column.name}"
        text = textwrap.fill(column.explanation, width=WIDTH - len(_INDENT))
        yield textwrap.indent(text, _INDENT)


def comma_separated(choices: Collection[str]) -> Callable[[str], list[str]]:
    """Return an argparse type for names with commas between them."""

    # Words after a flag with nargs="+" would swallow the positional argument DIR.
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not {*names} <= {*choices}:
            expected = f"one or more of {', '.join(choices)}, separated by commas"
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return names

    return parse


def more_tables(arguments: argparse.Namespace) -> list[str]:
    """Return the given flags that each need a table of their own."""
    values = {
        "--compare": arguments.compare,
        "--columns": arguments.columns,
        "--against": arguments.against,
    }
    return [flag for flag, value in values.items() if value]
