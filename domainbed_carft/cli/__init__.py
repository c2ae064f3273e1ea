"""The ``carft`` command: a parser, one function a subcommand."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft import __version__
from domainbed_carft.cli import data as data_commands
from domainbed_carft.cli import results as collect_commands
from domainbed_carft.cli import runs as run_commands
from domainbed_carft.cli import sweep as sweep_parser
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.text import shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status, 1 with a message on stderr for errors a user can fix.

    If no picture can be read the status is 3, as it is where some cannot.
    """
    arguments = _parser().parse_args(argv)
    if sys.stdout is None:  # closed, as `>&-` does it; a file opened later would get its number
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have any letters
    error_status = 1
    try:
        status: int | None = arguments.run(arguments)
        print(end="", flush=True)
        return status or 0
    except CarftError as error:
        told = str(error)
        if isinstance(error, UnreadableError):
            error_status = 3
    except KeyboardInterrupt:
        print("carft: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what is printed goes into head, say
        _print_no_more()
        return 0
    except OSError as error:
        told = f"{error.filename}: {error.strerror}; check this path and its permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _print_no_more()
            where = error.filename or "where the output goes"
            told = f"the disk is full ({where}); free some space"
        elif not error.filename:
            raise
    # They quote files, folders and records.
    print("carft:", "\n".join(map(shown, told.splitlines())), file=sys.stderr)
    return error_status


def _print_no_more() -> None:
    """What is left to print would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="carft", description="CAR-FT for DomainBed.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    told = "train CAR-FT and three baselines on the embedded benchmark; print a table"
    demo = commands.add_parser("demo", help=told)
    told = "folder for jobs, table and report (default: demo_output)"
    demo.add_argument("--output_dir", type=Path, default=Path("demo_output"), help=told)
    demo.add_argument(
        "--suite", action="store_true",
        help="train on one style instead, and test on whole test sets in four: accuracy in "
        "distribution against the shifts, with WiSE-FT's curve",
    )  # fmt: skip
    demo.add_argument("--trials", type=int, default=1, help="trials per cell (default: 1)")
    demo.set_defaults(run=_demo)
    told = "check whether a training job can start here; say how to fix problems"
    doctor = commands.add_parser("doctor", help=told)
    doctor.add_argument("--json", action="store_true", help="print JSON, for scripts")
    one_step = "also run train of the domainbed in use, for one step on EmojiStyles"
    doctor.add_argument("--train", action="store_true", help=one_step)
    doctor.set_defaults(run=_doctor)
    data_commands.add_to(commands)
    collect_commands.add_to(commands)
    run_commands.add_to(commands)
    sweep_parser.add_to(commands)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from domainbed_carft.cli import demo  # matplotlib and pandas take a second to import

    if arguments.trials < 1:
        raise CarftError(f"--trials is {arguments.trials}, expected at least 1")
    run = demo.run_suite if arguments.suite else demo.run
    run(arguments.output_dir, arguments.trials)


def _doctor(arguments: argparse.Namespace) -> int:
    from domainbed_carft.cli import doctor

    return doctor.run(arguments)
