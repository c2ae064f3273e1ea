"""The command line of ``carft sweep``. What a command does is loaded when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[argparse.Namespace], "int | None"]


def add_to(commands: Any) -> None:
    """Add ``sweep`` and its own commands to argparse's ``commands``."""
    sweep = commands.add_parser(
        "sweep", help="run many jobs, watch them, and go on after whatever stopped them"
    )
    below = sweep.add_subparsers(required=True, metavar="COMMAND")
    _launch(below.add_parser("launch", help="run the jobs that are not done"))
    _status(below.add_parser("status", help="what each job is doing"))
    _retry(below.add_parser("retry", help="let failed jobs be tried again"))
    cancel = below.add_parser("cancel", help="stop what runs and waits; jobs save and can go on")
    _common(cancel, "cancel")
    cancel.add_argument("--yes", action="store_true", help="do not ask")
    _clean(below.add_parser("clean", help="remove what finished jobs have left behind"))


def _launch(parser: argparse.ArgumentParser) -> None:
    from domainbed_carft.sweep import flags

    parser.add_argument(
        "sweep", nargs="?", metavar="SWEEP", help="a declared sweep, or one of ours by its name"
    )
    parser.add_argument("--data_dir", help="the folder that has the data sets' folders")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost; run none")
    parser.add_argument(
        "--measure", action="store_true", help="with --dry-run: time a few steps here and now"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--unknown", action="store_true",
        help="also launch jobs that another tool began; see first that none of them runs",
    )  # fmt: skip
    flags.add_extent(parser)
    flags.add_logs(parser)
    flags.add_launchers(parser)
    flags.add_domainbeds(parser)
    parser.set_defaults(run=_runner("launch"))


def _status(parser: argparse.ArgumentParser) -> None:
    _common(parser, "status")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again that often")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _retry(parser: argparse.ArgumentParser) -> None:
    _common(parser, "retry")
    parser.add_argument(
        "--only", metavar="PATTERN", help="jobs with this in their folder's name or description"
    )


def _clean(parser: argparse.ArgumentParser) -> None:
    _common(parser, "clean")
    parser.add_argument(
        "--incomplete", action="store_true",
        help="also delete the folders of jobs that are neither done nor running nor queued",
    )  # fmt: skip
    parser.add_argument(
        "--unknown", action="store_true",
        help="with --incomplete: also of jobs that another tool began; see first that none runs",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _common(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR")
    parser.set_defaults(run=_runner(command))


def _runner(name: str) -> Run:
    def run(arguments: argparse.Namespace) -> int | None:
        from domainbed_carft.sweep import upkeep

        command: Run = getattr(upkeep, name)
        return command(arguments)

    return run
