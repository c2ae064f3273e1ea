"""``carft diff``: its command line, and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.text import printable, table

if TYPE_CHECKING:
    from domainbed_carft.sweep.differences import Comparison

# Exit statuses, as of the program diff.
EQUAL = 0
DIFFERENT = 1
WRONG_ARGUMENTS = 2

_NAMED_PARTS = 8  # of those that one side does not know


def add_to(commands: Any) -> None:
    """Add ``diff`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "diff",
        help="show in what two runs or sweeps differ: settings, versions, data, prompts",
        description="Show in what two runs, two sweeps, or a run and a declared sweep differ: only "
        "the settings, versions, data editions and prompts that are not the same. The exit status "
        "is 1 if any are, 0 if none, and 2 for wrong arguments.",
    )
    side = "a job's folder, a sweep's output folder, a sweep's file, or an included sweep's name"
    parser.add_argument("first", metavar="A", help=side)
    parser.add_argument("second", metavar="B", help="the same, to compare A with")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=_diff, status_of_errors=WRONG_ARGUMENTS)


def _diff(arguments: argparse.Namespace) -> int:
    from domainbed_carft.sweep.differences import diff

    comparison = diff(arguments.first, arguments.second)
    if arguments.json:
        print(json.dumps(comparison.as_dict(), indent=1))
    else:
        _print_comparison(comparison)

    for line in describe_warnings(comparison.warnings):
        print(printable(line), file=sys.stderr)
    return EQUAL if comparison.is_equal else DIFFERENT


def _print_comparison(comparison: Comparison) -> None:
    """Print what A and B are, a row for each difference, and what only one of them knows."""
    from domainbed_carft.sweep import difference_printing

    for letter, (name, kind) in zip("AB", (comparison.first, comparison.second)):
        print(printable(f"{letter}: {kind} {name}"))
    if comparison.nearest_job:
        print(printable(f"Compared with the nearest job: {comparison.nearest_job}"))

    print()
    if comparison.is_equal:
        print("No differences.")
    else:
        print(table(["Setting", "Of", "A", "B"], difference_printing.table_rows(comparison)))

    only_one_side = (("A", comparison.only_in_first), ("B", comparison.only_in_second))
    for letter, parts in only_one_side:
        if parts:
            print(f"Known of {letter} only, not compared: {_listing(parts)}.")


def _listing(parts: Sequence[str]) -> str:
    """The first of these parts, and how many more there are."""
    listing = ", ".join(parts[:_NAMED_PARTS])
    excess = len(parts) - _NAMED_PARTS
    return printable(f"{listing} and {excess:,} more" if excess > 0 else listing)
