"""Read and write ``preflight.json``: the rows, hours and costs of a sweep's last preflight.

`carft preflight` writes the file into the sweep's output folder. A launch prints it, but does not
need it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.files import validation
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.wording import quantity

NAME = manifest.PREFLIGHT_FILE

_STATUS_PHRASES = {"passed": "passed", "warnings": "passed with warnings", "failed": "failed"}
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


@dataclass(frozen=True)
class PreflightRow:
    """One check of a preflight."""

    section: str
    name: str
    state: Literal["pass", "warning", "failure", "skipped"]
    found: str
    hint: str = ""  # how to fix a warning or a failure


class Preflight(BaseModel):
    """The content of ``preflight.json``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    carft: str
    sweep: str
    declaration: str  # digest of the declaration's text
    written: float  # seconds since 1970
    host: str
    device: str
    hours: float | None  # for all jobs one after another, with their evaluations
    rows: list[PreflightRow]
    # Of the measured jobs: variant -> dataset -> algorithm -> cost.
    costs: dict[str, dict[str, dict[str, Cost]]]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def status(self) -> Literal["passed", "warnings", "failed"]:
        """The status of the worst row."""
        states = {row.state for row in self.rows}
        if "failure" in states:
            return "failed"
        return "warnings" if "warning" in states else "passed"

    def describe(self, declaration_text: str) -> str:
        """Return status, age and device in one line, with a remark on an outdated declaration."""
        parts = [f"{_STATUS_PHRASES[self.status]}, {describe_age(self.written)}, on {self.device}"]
        if self.declaration != digest(declaration_text):
            parts.append("but of another declaration")
        return ", ".join(parts)

    def get_cost(self, variant: str, dataset: str, algorithm: str) -> Cost | None:
        """Return the cost of these jobs, or None if it was not measured."""
        return self.costs.get(variant, {}).get(dataset, {}).get(algorithm)


def digest(declaration_text: str) -> str:
    """Return the SHA-256 of a declaration's text, in hexadecimal digits."""
    return hashlib.sha256(declaration_text.encode()).hexdigest()


def describe_age(written: float) -> str:
    """Return the age in words, such as "3 hours ago"."""
    seconds = time.time() - written
    for name, length in _UNITS:
        if seconds >= length:
            return f"{quantity(math.floor(seconds / length), name)} ago"
    return "just now"


def write(output: Path, preflight: Preflight) -> None:
    """Write the file into an output folder, atomically. Raises CarftError if that fails."""
    files.save_text(output / NAME, f"{json.dumps(preflight.model_dump(), indent=1)}\n")


def read(output: Path) -> Preflight | None:
    """Read the preflight of an output folder, or return None if there is no file.

    Raises CarftError for a file with other content.
    """
    path = output / NAME
    try:
        return Preflight.model_validate(json.loads(files.read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or validation.describe(error)
    raise CarftError(
        f"{path} is not a readable preflight ({reason}); delete the file, or run carft preflight"
    )
