"""``preflight.json`` in a sweep's output folder: the verdict and the figures of its rehearsal.

`carft preflight` writes it. Who launches the sweep may be another person: what is read is checked
as a stranger's file, and a launch never needs it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, ValidationError

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.text import printable, quantity

NAME = manifest.REHEARSAL_FILE

Verdict = Literal["passed", "warnings", "failed"]
PASSED: Final = "passed"
WARNINGS: Final = "warnings"
FAILED: Final = "failed"
_VERDICT_PHRASES = {PASSED: "passed", WARNINGS: "passed with warnings", FAILED: "failed"}

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class JobCost(_Model):
    """What the jobs of one row of the costs take, as it was measured; None where it was not.

    Seconds are those of one picture that is trained on, and of one that is evaluated.
    """

    variant: str
    dataset: str
    algorithm: str
    training_seconds: NonNegativeFloat
    evaluation_seconds: NonNegativeFloat | None = None
    memory_gb: NonNegativeFloat | None = None


class PrintedRow(_Model):
    """A row of the rehearsal as it is printed; ``figures`` are only for scripts."""

    section: str
    name: str
    state: Literal["pass", "warning", "failure", "skipped"]
    found: str
    remedy: str = ""
    figures: dict[str, Any] = {}


class Preflight(_Model):
    """A rehearsal: when it was, on which device, of which declaration (its digest), its results."""

    version: Literal[1] = 1
    carft: str
    sweep: str
    declaration: str
    written: NonNegativeFloat  # seconds since 1970
    host: str
    device: str
    verdict: Verdict
    hours: NonNegativeFloat | None = None  # of all jobs, one after another, with their evaluations
    rows: list[PrintedRow]
    costs: list[JobCost] = []

    def describe(self, declaration_text: str) -> str:
        """Verdict, age and device in one line, and whether it is of another declaration."""
        parts = [f"{_VERDICT_PHRASES[self.verdict]}, {age(self.written)}, on {self.device}"]
        if self.declaration != digest(declaration_text):
            parts.append("but of another declaration than this one")
        return printable(", ".join(parts))

    def cost_of(self, variant: str, dataset: str, algorithm: str) -> JobCost | None:
        """The measured cost of a row of the costs; None if nothing is known of it."""
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
    text = json.dumps(preflight.model_dump(), indent=1)
    files.save_text(output / NAME, f"{text}\n")


def read(output: Path) -> Preflight | None:
    """The rehearsal in an output folder; None if there is none.

    Raises CarftError for a file that is not one of a rehearsal.
    """
    path = output / NAME
    try:
        return Preflight.model_validate(_mapping(json.loads(files.read_regular(path))))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _unreadable(path, f"{place}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _mapping(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def _unreadable(path: Path, reason: str) -> CarftError:
    return CarftError(
        f"{path} is not a readable rehearsal ({reason}); delete the file, or run carft preflight"
    )
