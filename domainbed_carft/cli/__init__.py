"""The ``carft`` command: its parser, and a function for each subcommand."""

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
from domainbed_carft.cli.help_pages import EPILOG, CommandParser
from domainbed_carft.errors import CarftError, UnreadableError, invalid
from domainbed_carft.text import escaped_output, print_lines, printable, quantity
from domainbed_carft.version import __version__

# Exit statuses
OTHER_ERRORS = 1
NOTHING_READABLE = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand, and print errors that a user can fix on stderr.

    Args:
        argv: the words after ``carft``; by default, the words of this process's command line.

    Returns:
        The exit status: 1 for errors, 2 for wrong arguments (also in ``carft diff``, whose 1 means
        a difference), 3 if some or all images cannot be read, 130 after Ctrl-C.
    """
    _prepare_stdout()
    return _run(argv)


@escaped_output()
def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)

    try:
        status: int | None = arguments.run(arguments)
        print(end="", flush=True)
    except UnreadableError as error:
        return _fail(str(error), NOTHING_READABLE)
    except CarftError as error:
        return _fail(str(error), arguments.status_of_errors)
    except KeyboardInterrupt:
        return _fail(arguments.interrupted, INTERRUPTED)
    except BrokenPipeError:  # the output goes to a program such as head, which has ended
        _stop_printing()
        return 0
    except OSError as error:
        return _fail_for_file(error, arguments.status_of_errors)
    return status or 0


def _prepare_stdout() -> None:
    """Allow all letters in printed names, and discard the output if standard output is closed."""
    if sys.stdout is None:  # closed by `>&-`; a file opened later would get its number
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str, status: int) -> int:
    """Print a message on stderr; return the exit status."""
    print("carft:", message, file=sys.stderr)
    return status


def _fail_for_file(error: OSError, status: int) -> int:
    """Print an error of a file or a disk; raise any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _stop_printing()
        place = printable(str(error.filename or "standard output"))
        return _fail(f"the disk is full ({place}); free some space and try again", status)
    if not error.filename:
        raise error
    message = f"{error.filename}: {error.strerror}; check this path and its permissions"
    return _fail(printable(message), status)


def _stop_printing() -> None:
    """Discard buffered output, whose printing would fail again when the process exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="carft",
        description="CAR-FT for DomainBed.",
        epilog=EPILOG,
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
        "doctor", help="check whether a training job can start here, and show how to fix problems"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for scripts")
    doctor.add_argument(
        "--train",
        action="store_true",
        help="also run two training steps on EmojiStyles with the domainbed in use",
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
        first, *further_lines = finding.detail.splitlines()
        print_lines(f"{finding.state:8} {finding.name:17} {first}")
        for line in [*further_lines, *([f"-> {finding.hint}"] if finding.hint else [])]:
            print_lines(f"{'':8} {line}")
    if problems:
        conclusion = (
            f"A training job cannot start: {quantity(problems, 'problem')}, see the arrows."
        )
    elif arguments.train:
        conclusion = "A training job can start."
    else:
        conclusion = "No problem found. To also test two training steps: carft doctor --train"
    print(f"\n{conclusion}")
    return 1 if problems else 0
