"""What the doctor says: findings, and the report for people and for scripts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Facts = dict[str, Any]
State = Literal["ok", "note", "problem"]

# The sections of the probe, in its order, and so of the JSON form.
SECTIONS = (
    "python",
    "versions",
    "hook",
    "cache",
    "imports",
    "domainbed",
    "algorithms",
    "device",
    "backbones",
    "step",
)

WIDTH = 96  # columns
STATE_COLUMN, NAME_COLUMN = 9, 18


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    A ``problem`` keeps a job from starting; a ``note`` may surprise somebody. Both come with
    what to do about it.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        lead = f"{self.state:{STATE_COLUMN}}{self.name:{NAME_COLUMN}}"
        if not lead.endswith(" "):
            lead += " "
        text = _filled(self.found, lead)
        return f"{text}\n{_filled(self.remedy, ' ' * _INDENT + '-> ')}" if self.remedy else text


_INDENT = STATE_COLUMN + NAME_COLUMN


@dataclass(frozen=True)
class Report:
    """All findings, and the facts behind them by section (missing where the probe never got)."""

    findings: Sequence[Finding]
    facts: Facts

    @property
    def ok(self) -> bool:
        """Whether a training job could start."""
        return not any(finding.state == "problem" for finding in self.findings)

    def as_json(self) -> str:
        """The keys are always the same; a section that was not reached is null."""
        sections = {name: self.facts.get(name) for name in SECTIONS}
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"ok": self.ok, "findings": findings, **sections}, indent=2)

    def as_text(self) -> str:
        """A paragraph a finding, then the verdict."""
        problems = sum(finding.state == "problem" for finding in self.findings)
        verdict = "A training job can start."
        if problems:
            count = "1 problem" if problems == 1 else f"{problems} problems"
            verdict = f"A training job cannot start: {count}, each with what to do after the arrow."
        return "\n".join([*map(str, self.findings), "", verdict])


def _filled(text: str, lead: str) -> str:
    """Wrapped between words, so that a path or a command's word can be copied whole."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
