"""The ``carft`` command: a parser, one function a subcommand."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.cli import check as check_command
from domainbed_carft.cli import data as data_commands
from domainbed_carft.cli import diff as diff_command
from domainbed_carft.cli import preflight as preflight_command
from domainbed_carft.cli import results as collect_commands
from domainbed_carft.cli import runs as run_commands
from domainbed_carft.cli import sweep as sweep_commands
from domainbed_carft.cli import sweep_launch
from domainbed_carft.cli import top as top_command
from domainbed_carft.cli.help_pages import BESIDE_COMMANDS, CommandParser
from domainbed_carft.errors import CarftError, UnreadableError, invalid
from domainbed_carft.text import printable, quantity
from domainbed_carft.version import __version__

# Exit statuses
OTHER_ERRORS = 1
NOTHING_READABLE = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status, 1 with a message on stderr for errors a user can fix.

    For ``carft diff``, to which 1 means that something differs, such errors give 2. If no image
    can be read the status is 3, as it is where some cannot.
    """
    arguments = _parser().parse_args(argv)
    _prepare_stdout()

    try:
        status: int | None = arguments.run(arguments)
        print(end="", flush=True)
    except UnreadableError as error:
        return _fail(str(error), NOTHING_READABLE)
    except CarftError as error:
        return _fail(str(error), arguments.status_of_errors)
    except KeyboardInterrupt:
        return _fail(arguments.interrupted, INTERRUPTED)
    except BrokenPipeError:  # what is printed goes into head, say
        _stop_printing()
        return 0
    except OSError as error:
        return _fail_for_file(error, arguments.status_of_errors)
    return status or 0


def _prepare_stdout() -> None:
    """Have names with any letters printed, and nothing if standard output is closed."""
    if sys.stdout is None:  # as `>&-` does it; a file opened later would get its number
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str, status: int) -> int:
    """Print a message, which may quote files, folders and records; returns the exit status."""
    print("carft:", "\n".join(map(printable, message.splitlines())), file=sys.stderr)
    return status


def _fail_for_file(error: OSError, status: int) -> int:
    """Print what is wrong with a file or a disk; raises an error that is of neither."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _stop_printing()
        return _fail(
            f"the disk is full ({error.filename or 'where the output goes'}); free some space",
            status,
        )
    if not error.filename:
        raise error
    message = f"{error.filename}: {error.strerror}; check this path and its permissions"
    return _fail(message, status)


def _stop_printing() -> None:
    """Drop what is left to print, which would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="carft",
        description="CAR-FT for DomainBed.",
        epilog=BESIDE_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(status_of_errors=OTHER_ERRORS, interrupted="interrupted")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_demo(commands)
    _add_doctor(commands)
    preflight_command.add_to(commands)
    data_commands.add_to(commands)
    collect_commands.add_to(commands)
    top_command.add_to(commands)
    diff_command.add_to(commands)
    run_commands.add_to(commands)
    check_command.add_to(commands)
    sweep_commands.add_to(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="train CAR-FT and two baselines on the embedded benchmark; print a table"
    )
    demo.add_argument(
        "--output_dir",
        type=Path,
        default=Path("demo_output"),
        help="folder for jobs, table and report (default: demo_output)",
    )
    demo.add_argument("--trials", type=int, help="trials per cell (default: 1)")
    demo.set_defaults(run=_demo, interrupted=sweep_launch.INTERRUPTED)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor", help="check whether a training job can start here; say how to fix problems"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for scripts")
    doctor.add_argument(
        "--train",
        action="store_true",
        help="also run train of the domainbed in use, for two steps on EmojiStyles",
    )
    doctor.set_defaults(run=_doctor)


def _demo(arguments: argparse.Namespace) -> None:
    from domainbed_carft.cli import demo  # matplotlib and pandas take a second to import

    if arguments.trials is not None and arguments.trials < 1:
        raise CarftError(invalid("--trials", arguments.trials, "at least 1"))
    demo.run(arguments.output_dir, arguments.trials)


def _doctor(arguments: argparse.Namespace) -> int:
    from domainbed_carft import doctor

    findings = doctor.diagnose(with_training=arguments.train)
    problems = sum(finding.state == doctor.PROBLEM for finding in findings)
    if arguments.json:
        rows = [vars(finding) for finding in findings]
        print(json.dumps({"ok": not problems, "findings": rows}, indent=2))
        return 1 if problems else 0

    for finding in findings:
        first, *others = finding.detail.splitlines()
        print(printable(f"{finding.state:8} {finding.name:17} {first}"))
        for line in [*others, *([f"-> {finding.hint}"] if finding.hint else [])]:
            print(printable(f"{'':8} {line}"))
    if problems:
        verdict = f"A training job cannot start: {quantity(problems, 'problem')}, see the arrows."
    elif arguments.train:
        verdict = "A training job can start."
    else:
        verdict = "No problem found. carft doctor --train takes two steps of training."
    print(f"\n{verdict}")
    return 1 if problems else 0
