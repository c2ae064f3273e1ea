"""``carft diff``: its command line, and what it prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from domainbed_carft.text import printable, table

if TYPE_CHECKING:
    from domainbed_carft.jobs.differences import RunDifferences

# Exit statuses, as of the program diff.
EQUAL = 0
DIFFERENT = 1
WRONG_ARGUMENTS = 2

_NAMED_SETTINGS = 8  # of those that one run has not recorded
_MAX_TEXT_LENGTH = 60  # of a value, such as a digest


def add_to(commands: Any) -> None:
    """Add ``diff`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "diff",
        help="show in what two runs differ: settings, versions, data, prompts",
        description="Show in what two runs differ: only the settings, versions, data editions and "
        "prompts that are not the same. The exit status is 1 if any are, 0 if none, and 2 for "
        "wrong arguments.",
    )
    parser.add_argument("first", metavar="A", help="a job's folder")
    parser.add_argument("second", metavar="B", help="the folder of the job to compare A with")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=_diff, status_of_errors=WRONG_ARGUMENTS)


def _diff(arguments: argparse.Namespace) -> int:
    from domainbed_carft.jobs.differences import diff

    found = diff(arguments.first, arguments.second)
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print_differences(found)
    return EQUAL if found.is_equal else DIFFERENT


def _print_differences(found: RunDifferences) -> None:
    """Print a row for each difference, and what only one of the runs has recorded."""
    print(f"A: {printable(found.first)}\nB: {printable(found.second)}\n")
    if found.is_equal:
        print("No differences.")
    else:
        rows = [
            [name, *(_text(name, value) for value in values)]
            for name, values in found.differences.items()
        ]
        print(table(["Setting", "A", "B"], rows))

    for letter, names in (("A", found.only_in_first), ("B", found.only_in_second)):
        if names:
            print(f"Recorded by {letter} only, not compared: {_listing(names)}.")


def _text(name: str, value: Any) -> str:
    """A value for people: words without quotes, and cut if it is long."""
    from domainbed_carft.data import benchmarks
    from domainbed_carft.jobs.setting import EDITION

    text = value if isinstance(value, str) else json.dumps(value)
    if name == EDITION:
        text = benchmarks.edition_label(text)
    return text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}..."


def _listing(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    listing = ", ".join(names[:_NAMED_SETTINGS])
    excess = len(names) - _NAMED_SETTINGS
    return printable(f"{listing} and {excess:,} more" if excess > 0 else listing)
