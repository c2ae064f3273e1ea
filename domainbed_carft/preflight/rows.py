"""The rows of a rehearsal: what each part found, and the verdict on all of them."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from domainbed_carft.doctor import (
    NOTE,
    OK,
    PROBLEM,
    SKIPPED,
    Finding,
    error_message,
    installation_command,
)
from domainbed_carft.errors import CarftError
from domainbed_carft.sweep.preflight_file import FAILED, PASSED, WARNINGS, Verdict

# The state of a finding -> the word for it in what is printed and in JSON.
LABELS = {OK: "pass", NOTE: "warning", PROBLEM: "failure", SKIPPED: "skipped"}

_TRACEBACK_LINES = 6  # the last ones, of an error that is not ours


def row_as_dict(row: Finding) -> dict[str, Any]:
    """A row of a rehearsal, for JSON."""
    return {**vars(row), "state": LABELS[row.state]}


def passed_row(section: str, name: str, found: str, **figures: Any) -> Finding:
    """A row of something that is as it should be."""
    return Finding(name, OK, found, section=section, figures=figures)


def warning_row(section: str, name: str, found: str, remedy: str, **figures: Any) -> Finding:
    """A row of something that may surprise a user, but stops no job."""
    return Finding(name, NOTE, found, remedy, section, figures)


def failed_row(section: str, name: str, found: str, remedy: str, **figures: Any) -> Finding:
    """A row of something that would stop jobs, or make their results worthless."""
    return Finding(name, PROBLEM, found, remedy, section, figures)


def skipped_row(section: str, name: str, reason: str) -> Finding:
    """A row of something that was not tried, for this ``reason``."""
    return Finding(name, SKIPPED, reason, section=section)


def row_of_problem(
    section: str, name: str, found: str, problem: str, remedy: str, **figures: Any
) -> Finding:
    """A failed row that begins with the ``problem``; a passed one if that is ""."""
    if not problem:
        return passed_row(section, name, found, **figures)
    return failed_row(section, name, f"{problem}; {found}", remedy, **figures)


def guarded(section: str, name: str, part: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The rows of a part as they come, and a failed one if it raises an error.

    Warnings inside are not printed: what matters of them is in the rows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from part()
    except CarftError as error:
        yield failed_row(
            section, name, " ".join(str(error).split()), "fix it; a job would stop here"
        )
    except (Exception, SystemExit) as error:
        lines = traceback.format_exc().strip().splitlines()[-_TRACEBACK_LINES:]
        remedy = installation_command(error) or "a job would stop here, too: report this error"
        yield failed_row(section, name, error_message(error), remedy, traceback=lines)


def verdict(rows: Sequence[Finding]) -> Verdict:
    """What all rows together say: PASSED, WARNINGS or FAILED."""
    states = {row.state for row in rows}
    if PROBLEM in states:
        return FAILED
    return WARNINGS if NOTE in states else PASSED
