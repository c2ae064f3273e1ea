"""``carft preflight``: its flags, and how the rows of a rehearsal are printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft.cli import sweep_launch
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.text import printable, quantity

if TYPE_CHECKING:
    from domainbed_carft.sweep.launch import LaunchPlan
    from domainbed_carft.sweep.preflight_file import Preflight, PrintedRow

# Exit statuses beside 0.
FAILED = 1
WRONG_ARGUMENTS = 2

_DEMO = "demo"
_LAUNCHER = "pool"


def add_to(commands: Any) -> None:
    """Add ``preflight`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "preflight",
        help="rehearse a sweep in minutes: data, zero-shot accuracy, steps, memory, hours",
        description="Rehearse in minutes on this machine what a sweep is about to do. The exit "
        "status is 0 if it passed, maybe with warnings, 1 if something failed, and 2 for wrong "
        "arguments.",
    )
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a sweep file, or the name of an included sweep")
    add("--data_dir", help="folder that contains the data sets' folders")
    add(
        "--output_dir",
        type=Path,
        help="the sweep's folder for the jobs, which gets preflight.json (demo: none is needed)",
    )
    add("--json", action="store_true", help="print JSON, for scripts")
    sweep_launch.add_launcher_options(parser, sweep_launch.POOL_FLAGS)
    parser.set_defaults(run=_preflight, status_of_errors=WRONG_ARGUMENTS)


def _preflight(arguments: argparse.Namespace) -> int:
    from domainbed_carft.sweep import launch, preflight_file

    named_output = arguments.output_dir
    with _output_folder(arguments) as output:
        plan = launch.plan(
            arguments.sweep,
            arguments.data_dir,
            output,
            _LAUNCHER,
            options={name: getattr(arguments, name) for name in sweep_launch.POOL_FLAGS},
        )
        raise_for(plan.launcher_problems)
        arguments.status_of_errors = FAILED  # from here on they are no wrong arguments
        preflight = _run_here(arguments, plan)

    if arguments.json:
        print(json.dumps(preflight.model_dump(), indent=2))
    else:
        print(f"\n{conclusion(preflight)}")
        if named_output:
            print(f"Details: {named_output / preflight_file.NAME}")
    return FAILED if preflight.verdict == preflight_file.FAILED else 0


@contextlib.contextmanager
def _output_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """The output folder; of the demo a temporary one if none is given. Raises CarftError."""
    if arguments.output_dir is not None:
        yield arguments.output_dir
        return
    if arguments.sweep != _DEMO:
        raise CarftError("--output_dir is missing; expected the folder that the sweep will fill")
    with tempfile.TemporaryDirectory(prefix="carft-preflight-") as folder:
        yield Path(folder)


def _run_here(arguments: argparse.Namespace, plan: LaunchPlan) -> Preflight:
    """Rehearse in this process; prints each row as soon as it is known."""
    from domainbed_carft.preflight.rehearsal import Rehearsal
    from domainbed_carft.preflight.rows import row_as_dict
    from domainbed_carft.sweep import preflight_file
    from domainbed_carft.sweep.preflight_file import PrintedRow

    rehearsal = Rehearsal(plan)
    section = ""
    for row in rehearsal.rows():
        printed = PrintedRow.model_validate(row_as_dict(row))
        if not arguments.json:
            section = _print_row(printed, section)

    preflight = rehearsal.as_file()
    preflight_file.write(plan.output, preflight)
    return preflight


def _print_row(row: PrintedRow, section: str) -> str:
    """Print a row, under its section if that is another than the last; returns the section."""
    if row.section != section:
        print(f"{'' if not section else chr(10)}{row.section.capitalize()}")
    print(printable(f"  {row.state:8} {row.name}: {row.found}"))
    if row.remedy:
        print(printable(f"  {'':8} -> {row.remedy}"))
    sys.stdout.flush()
    return row.section


def conclusion(preflight: Preflight) -> str:
    """The verdict on all rows, with what to do about it."""
    counts = {
        state: sum(row.state == state for row in preflight.rows)
        for state in ("pass", "warning", "failure", "skipped")
    }
    rows = quantity(len(preflight.rows), "row")
    if counts["failure"]:
        failures = quantity(counts["failure"], "failure")
        return f"Failed: {failures} of {rows}, see the arrows. Fix them before you launch."
    warnings = quantity(counts["warning"], "warning")
    if counts["warning"]:
        return f"Passed with {warnings} of {rows}, see the arrows."
    return f"Passed: {rows}, {counts['skipped']} of them skipped."
