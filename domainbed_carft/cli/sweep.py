"""The command ``carft sweep``, which imports its implementation when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from domainbed_carft.cli import sweep_launch
from domainbed_carft.questions import confirm
from domainbed_carft.text import print_lines, quantity


def add_to(commands: Any) -> None:
    """Add ``sweep`` and its subcommands to argparse's ``commands``."""
    sweep = commands.add_parser(
        "sweep", help="launch many jobs, watch them, and resume them after an interruption"
    )
    subcommands = sweep.add_subparsers(required=True, metavar="COMMAND")

    sweep_launch.add_to(subcommands)

    status = _add_command(subcommands, "status", _status, "show the state of each job")
    status.add_argument("--json", action="store_true", help="print JSON, for scripts")

    retry = _add_command(subcommands, "retry", _retry, "allow failed jobs to run again")
    pattern_help = "retry only failed jobs whose folder or description contains this text"
    retry.add_argument("--only", metavar="PATTERN", default="", help=pattern_help)

    cancel_help = "stop running and queued jobs, which can be resumed"
    cancel = _add_command(subcommands, "cancel", _cancel, cancel_help)
    sweep_launch.add_yes(cancel)

    clean = _add_command(subcommands, "clean", _clean, "delete leftover files of finished jobs")
    incomplete_help = "also delete jobs that are neither done, running nor queued"
    clean.add_argument("--incomplete", action="store_true", help=incomplete_help)
    sweep_launch.add_yes(clean)


def _add_command(subcommands: Any, name: str, run: Any, description: str) -> Any:
    """Add a command with the argument OUTPUT_DIR."""
    parser = subcommands.add_parser(name, help=description)
    folder = "output folder of the sweep"
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help=folder)
    parser.set_defaults(run=run)
    return parser


def _status(arguments: argparse.Namespace) -> int:
    """Print the states of all jobs, and the progress of a search; return 1 if a job failed."""
    from domainbed_carft.sweep import printing, states

    state = states.read_state(arguments.output_dir)
    if arguments.json:
        print(json.dumps(state.as_dict(), indent=1))
    else:
        print_lines(*printing.overview(state.statuses))
        if search_lines := printing.search_lines(state):
            print_lines("", *search_lines)
        if state.queue.note:
            print(state.queue.note)
    return int(bool(state.in_state(states.FAILED)))


def _retry(arguments: argparse.Namespace) -> None:
    from domainbed_carft.sweep import upkeep

    report = upkeep.retry(arguments.output_dir, arguments.only)
    retried = f"{len(report.retried)} of {len(report.failed)} failed jobs"
    print(f"{retried} will be retried by the next launch.")


def _cancel(arguments: argparse.Namespace) -> int:
    """Stop launchers and jobs; return 1 if some could not be reached."""
    from domainbed_carft.sweep import printing, states, upkeep

    state = states.read_state(arguments.output_dir)
    if not state.is_moving and not state.queue.slurm_states:
        print(f"No jobs are running or queued. {state.queue.note}".rstrip())
        return 0

    moving = state.in_state(states.RUNNING, states.QUEUED)
    print(f"About to stop: {printing.counts_phrase(moving)}.")
    confirm(arguments.yes)
    report = upkeep.cancel(state)
    if report.slurm_jobs:
        print(f"{quantity(len(report.slurm_jobs), 'SLURM job')} cancelled.")
    print_lines(*report.unreachable, stream=sys.stderr)
    print(f"{quantity(len(report.stopped), 'job')} stopped; launch again to resume.")
    return int(bool(report.unreachable))


def _clean(arguments: argparse.Namespace) -> None:
    """Delete leftover files and, with ``--incomplete``, incomplete jobs."""
    from domainbed_carft.sweep import printing, states, upkeep

    state = states.read_state(arguments.output_dir)
    print(f"{quantity(len(upkeep.clean(state)), 'leftover file')} deleted.")
    if not arguments.incomplete:
        return

    incomplete = state.in_state(*upkeep.INCOMPLETE)
    if not incomplete:
        print("There are no incomplete jobs to delete.")
        return
    counts = printing.counts_phrase(incomplete)
    print(f"About to delete {quantity(len(incomplete), 'job')}: {counts}.")
    confirm(arguments.yes)
    deleted = upkeep.delete_jobs(state.output, incomplete)
    print(f"{quantity(len(deleted), 'job')} deleted.")
