"""The rows of a rehearsal: what each part found, and the verdict on all of them."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from domainbed_carft.doctor.findings import NOTE, OK, PROBLEM, SKIPPED, Finding
from domainbed_carft.doctor.import_errors import error_message, installation_command
from domainbed_carft.errors import CarftError
from domainbed_carft.sweep.preflight_file import FAILED, PASSED, WARNINGS, Verdict

# The state of a finding -> the word for it in what is printed and in JSON.
LABELS = {OK: "pass", NOTE: "warning", PROBLEM: "failure", SKIPPED: "skipped"}

_TRACEBACK_LINES = 6  # the last ones, of an error that is not ours


@dataclass(frozen=True)
class Row:
    """One finding of a part of the rehearsal, with the ``figures`` behind it, for JSON."""

    section: str
    finding: Finding
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The row, for JSON."""
        return {
            "section": self.section,
            "name": self.finding.name,
            "state": LABELS[self.finding.state],
            "found": self.finding.detail,
            "remedy": self.finding.remedy,
            "figures": dict(self.figures),
        }


def passed_row(section: str, name: str, detail: str, **figures: Any) -> Row:
    """A row of something that is as it should be."""
    return Row(section, Finding(name, OK, detail), figures)


def warning_row(section: str, name: str, detail: str, remedy: str, **figures: Any) -> Row:
    """A row of something that may surprise a user, but stops no job."""
    return Row(section, Finding(name, NOTE, detail, remedy), figures)


def failed_row(section: str, name: str, detail: str, remedy: str, **figures: Any) -> Row:
    """A row of something that would stop jobs, or make their results worthless."""
    return Row(section, Finding(name, PROBLEM, detail, remedy), figures)


def skipped_row(section: str, name: str, reason: str) -> Row:
    """A row of something that was not tried, for this ``reason``."""
    return Row(section, Finding(name, SKIPPED, reason))


def row_of_problem(
    section: str, name: str, detail: str, problem: str, remedy: str, **figures: Any
) -> Row:
    """A failed row that begins with the ``problem``; a passed one if that is ""."""
    if not problem:
        return passed_row(section, name, detail, **figures)
    return failed_row(section, name, f"{problem}; {detail}", remedy, **figures)


def guarded(section: str, name: str, part: Callable[[], Iterable[Row]]) -> Iterator[Row]:
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


def verdict(rows: Sequence[Row]) -> Verdict:
    """What all rows together say: PASSED, WARNINGS or FAILED."""
    states = {row.finding.state for row in rows}
    if PROBLEM in states:
        return FAILED
    return WARNINGS if NOTE in states else PASSED
