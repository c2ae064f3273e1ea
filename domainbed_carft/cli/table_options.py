"""The flags of ``carft collect`` that say what its tables show and compare."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any

from domainbed_carft.results.columns import (
    ALL,
    COLUMNS,
    DEFAULT_COLUMNS,
    DOMAINBED,
    ENVIRONMENTS,
    ERROR_KINDS,
    EVALUATED,
    NAMES,
)


def add_to(parser: argparse.ArgumentParser) -> Any:
    """Add the flags to the parser of ``carft collect``; returns the group of comparisons."""
    tables = parser.add_argument_group("what the tables show")
    tables.add_argument(
        "--columns",
        type=some_of(NAMES),
        action="extend",
        metavar="COLUMN,...",
        help=f"columns of the tables, separated by commas: {', '.join((ENVIRONMENTS, *COLUMNS))}; "
        f"{EVALUATED} for those that carft evaluate measures, {ALL} for all others "
        f"(default: {','.join(DEFAULT_COLUMNS)})",
    )
    tables.add_argument(
        "--error",
        choices=tuple(ERROR_KINDS),
        default=DOMAINBED.name,
        help="what stands behind a mean: DomainBed's standard error (divisor n), that of a sample "
        "(divisor n - 1), or the standard deviation (default: domainbed)",
    )
    tables.add_argument(
        "--by",
        type=lambda text: text.split(","),
        action="extend",
        default=[],
        metavar="HPARAM,...",
        help="give each value of these hyperparameters, or each variant (--by variant), a row in "
        "one joint table",
    )
    comparisons = parser.add_argument_group("comparisons")
    comparisons.add_argument(
        "--against",
        metavar="ALGORITHM",
        help="compare every algorithm with this one: paired differences, intervals, p-values",
    )
    return comparisons


def some_of(choices: Collection[str]) -> Callable[[str], list[str]]:
    """A type for argparse: names with commas between. A list of words would swallow DIR."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not {*names} <= {*choices}:
            expected = f"one or more of {', '.join(choices)}, separated by commas"
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return names

    return parse


def more_tables(arguments: argparse.Namespace) -> list[str]:
    """The given flags that ask for another table than that of the cells."""
    given = {
        "--compare": arguments.compare,
        "--columns": arguments.columns,
        "--against": arguments.against,
    }
    return [flag for flag, value in given.items() if value]
