"""The ``carft`` command: its parser, its errors and its exit statuses."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from domainbed_carft.cli import checks, results, runs, sweep
from domainbed_carft.cli.help_pages import EPILOG, CommandParser
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.escaping import escaped_output, printable
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

    for group in (sweep, checks, results, runs):
        group.add_to(commands)
    return parser
