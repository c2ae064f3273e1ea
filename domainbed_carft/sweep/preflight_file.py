"""``preflight.json`` in a sweep's output folder: the rows, hours and costs of its rehearsal.

`carft preflight` writes it. A launch shows it, and never needs it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.text import printable, quantity

NAME = manifest.PREFLIGHT_FILE

_VERDICT_PHRASES = {"passed": "passed", "warnings": "passed with warnings", "failed": "failed"}
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


@dataclass(frozen=True)
class PreflightRow:
    """A row of a rehearsal; ``hint``: what to do about a warning or a failure."""

    section: str
    name: str
    state: Literal["pass", "warning", "failure", "skipped"]
    found: str
    hint: str = ""


@dataclass(frozen=True)
class JobCost:
    """The measured cost of the jobs of one row of the costs, in seconds of an image."""

    variant: str
    dataset: str
    algorithm: str
    training_seconds: float
    evaluation_seconds: float
    memory_gb: float


class Preflight(BaseModel):
    """A rehearsal: when it was, on which device, of which declaration (its digest), its results."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    carft: str
    sweep: str
    declaration: str
    written: float  # seconds since 1970
    host: str
    device: str
    hours: float | None  # of all jobs, one after another, with their evaluations
    rows: list[PreflightRow]
    costs: list[JobCost]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Literal["passed", "warnings", "failed"]:
        """The verdict on all rows, which is that of the worst one."""
        states = {row.state for row in self.rows}
        if "failure" in states:
            return "failed"
        return "warnings" if "warning" in states else "passed"

    def describe(self, declaration_text: str) -> str:
        """Verdict, age and device in one line, and whether it is of another declaration."""
        parts = [f"{_VERDICT_PHRASES[self.verdict]}, {age(self.written)}, on {self.device}"]
        if self.declaration != digest(declaration_text):
            parts.append("but of another declaration than this one")
        return printable(", ".join(parts))

    def cost_of(self, variant: str, dataset: str, algorithm: str) -> JobCost | None:
        """The measured cost of a row of the costs; None if nothing was measured."""
        key = (variant, dataset, algorithm)
        return next((c for c in self.costs if (c.variant, c.dataset, c.algorithm) == key), None)


def digest(declaration_text: str) -> str:
    """What identifies a declaration: the SHA-256 of its text, in hexadecimal digits."""
    return hashlib.sha256(declaration_text.encode()).hexdigest()


def age(written: float) -> str:
    """How long ago something was, in words: "3 hours ago"."""
    seconds = time.time() - written
    for name, length in _UNITS:
        if seconds >= length:
            return f"{quantity(math.floor(seconds / length), name)} ago"
    return "just now"


def write(output: Path, preflight: Preflight) -> None:
    """Write the file into an output folder, whole or not at all; CarftError if that fails."""
    files.save_text(output / NAME, f"{json.dumps(preflight.model_dump(), indent=1)}\n")


def read(output: Path) -> Preflight | None:
    """The rehearsal in an output folder; None if there is none. CarftError for another file."""
    path = output / NAME
    try:
        return Preflight.model_validate(json.loads(files.read_regular(path)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise CarftError(
        f"{path} is not a readable rehearsal ({reason}); delete the file, or run carft preflight"
    )
