"""The command ``carft diff``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from domainbed_carft.text import print_lines, table

if TYPE_CHECKING:
    from domainbed_carft.jobs.differences import RunDifferences

# Exit statuses, the same as for the program diff.
EQUAL = 0
DIFFERENT = 1
WRONG_ARGUMENTS = 2

_MAX_LISTED_SETTINGS = 8  # settings recorded by one run only
_MAX_TEXT_LENGTH = 60  # characters of a value, such as a digest


def add_to(commands: Any) -> None:
    """Add ``diff`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "diff",
        help="show the differences between two runs: settings, versions, data, prompts",
        description="Show the differences between two runs in settings, versions, data editions "
        "and prompts. The exit status is 0 if the runs are equal, 1 if they differ, and 2 for "
        "wrong arguments.",
    )
    parser.add_argument("first", metavar="A", help="folder of a job")
    parser.add_argument("second", metavar="B", help="folder of the job to compare with A")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=_diff, status_of_errors=WRONG_ARGUMENTS)


def _diff(arguments: argparse.Namespace) -> int:
    from domainbed_carft.jobs.differences import diff

    differences = diff(arguments.first, arguments.second)
    if arguments.json:
        print(json.dumps(differences.as_dict(), indent=1))
    else:
        _print_differences(differences)
    return EQUAL if differences.is_equal else DIFFERENT


def _print_differences(differences: RunDifferences) -> None:
    """Print a row for each difference, and the settings that only one of the runs recorded."""
    print_lines(f"A: {differences.first}", f"B: {differences.second}", "")
    if differences.is_equal:
        print("No differences.")
    else:
        rows = [
            [name, *(_format_value(name, value) for value in values)]
            for name, values in differences.differences.items()
        ]
        print(table(["Setting", "A", "B"], rows))

    for letter, names in (("A", differences.only_in_first), ("B", differences.only_in_second)):
        if names:
            print_lines(f"Recorded by {letter} only, not compared: {_list_names(names)}.")


def _format_value(name: str, value: Any) -> str:
    """Return a value for people: words without quotes, and long values cut."""
    from domainbed_carft.data import benchmarks
    from domainbed_carft.jobs.setting import EDITION

    text = value if isinstance(value, str) else json.dumps(value)
    if name == EDITION:
        text = benchmarks.edition_label(text)
    return text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}..."


def _list_names(names: Sequence[str]) -> str:
    """Return the first names, and the number of further ones."""
    listing = ", ".join(names[:_MAX_LISTED_SETTINGS])
    excess = len(names) - _MAX_LISTED_SETTINGS
    return f"{listing} and {excess:,} more" if excess > 0 else listing
