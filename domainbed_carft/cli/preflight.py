"""The command ``carft preflight``."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft.cli import sweep_launch
from domainbed_carft.errors import raise_for
from domainbed_carft.text import print_lines, quantity

if TYPE_CHECKING:
    from domainbed_carft.sweep.preflight_file import Preflight, PreflightRow

# Exit statuses other than 0
FAILED = 1
WRONG_ARGUMENTS = 2

_LAUNCHER = "pool"


def add_to(commands: Any) -> None:
    """Add ``preflight`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "preflight",
        help="test a sweep in minutes: data, zero-shot accuracy, steps, memory, hours",
        description="Test in minutes whether a sweep will run on this machine: check its data, "
        "compare zero-shot accuracies with published ones, and train a few steps of each kind of "
        "job. The exit status is 0 if all tests passed, also with warnings, 1 if one failed, and 2 "
        "for wrong arguments.",
    )
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a sweep file, or the name of an included sweep")
    add("--data_dir", help="folder that contains the datasets' folders")
    add(
        "--output_dir",
        type=Path,
        required=True,
        help="output folder of the sweep; the results are written to preflight.json in it",
    )
    add("--json", action="store_true", help="print JSON, for scripts")
    sweep_launch.add_launcher_options(parser, sweep_launch.POOL_FLAGS)
    parser.set_defaults(run=_preflight, status_of_errors=WRONG_ARGUMENTS)


def _preflight(arguments: argparse.Namespace) -> int:
    from domainbed_carft.preflight.run import run_preflight
    from domainbed_carft.sweep import launch, preflight_file

    plan = launch.plan(
        arguments.sweep,
        arguments.data_dir,
        arguments.output_dir,
        _LAUNCHER,
        options={name: getattr(arguments, name) for name in sweep_launch.POOL_FLAGS},
    )
    raise_for(plan.launcher_problems)
    arguments.status_of_errors = FAILED  # errors below are not caused by wrong arguments
    preflight = run_preflight(plan, report=(lambda row: None) if arguments.json else _print_row)
    preflight_file.write(plan.output, preflight)

    if arguments.json:
        print(json.dumps(preflight.model_dump(), indent=2))
    else:
        print_lines("", conclusion(preflight), f"Details: {plan.output / preflight_file.NAME}")
    return FAILED if preflight.status == "failed" else 0


def _print_row(row: PreflightRow) -> None:
    print_lines(f"{row.state:8} {row.section}, {row.name}: {row.found}")
    if row.hint:
        print_lines(f"{'':8} -> {row.hint}")


def conclusion(preflight: Preflight) -> str:
    """Return the status of the preflight in a sentence, with advice if it failed."""
    counts = Counter(row.state for row in preflight.rows)
    rows = quantity(len(preflight.rows), "row")
    if counts["failure"]:
        failures = quantity(counts["failure"], "failure")
        return f"Failed: {failures} of {rows}, see the arrows. Fix them before you launch."
    if counts["warning"]:
        return f"Passed with {quantity(counts['warning'], 'warning')} of {rows}, see the arrows."
    return f"Passed: {rows}, {counts['skipped']} of them skipped."
