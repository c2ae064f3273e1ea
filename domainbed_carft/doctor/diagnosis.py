"""The diagnosis: what a job that starts in the current folder would meet."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.doctor.checks import CHECKS, DEFAULT_BACKBONE, FIX_ABOVE, RUN_BY_HAND
from domainbed_carft.doctor.findings import NOTE, PROBLEM, SKIPPED, Finding
from domainbed_carft.doctor.fresh_process import run_python
from domainbed_carft.doctor.training_step import RESULTS, train_one_step

# Seconds. All of OpenAI's weights are 4 GB to hash, and a network drive may be slow.
PATIENCE = 600.0


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order of the checks, and whether a step of training was asked for."""

    findings: tuple[Finding, ...]
    with_training: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether there is no problem, and the step that was asked for was taken."""
        return self.can_start and not (self.with_training and self.is_train_untried)

    @property
    def problem_count(self) -> int:
        """How many findings keep a job from starting."""
        return sum(finding.state == PROBLEM for finding in self.findings)

    @property
    def can_start(self) -> bool:
        """Whether a job on EmojiStyles could start: there is no problem."""
        return self.problem_count == 0

    @property
    def has_started(self) -> bool:
        """Whether a job was trained to its end, and only its results do not count."""
        return {f.name for f in self.findings if f.state == PROBLEM} == {RESULTS}

    @property
    def lacks_default_weights(self) -> bool:
        """Whether the CLIP that most data sets need by default is not here."""
        name = f"backbone {DEFAULT_BACKBONE}"
        return any(f.name == name and f.state == NOTE for f in self.findings)

    @property
    def is_train_untried(self) -> bool:
        """Whether nothing is known of the `train` of this checkout."""
        return any(f.name == "train" and f.state == SKIPPED for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.is_ok,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def diagnose(with_training: bool = False, patience: float = PATIENCE) -> Diagnosis:
    """Make all checks in a fresh interpreter, as a job would be started.

    ``with_training`` also takes one step by the `train` of the domainbed in use, if it has one and
    no check finds a problem. ``patience``: seconds for the checks, and for the step. Raises
    nothing: what fails is a finding.
    """
    diagnosis = Diagnosis(tuple(run_checks(patience)), with_training)
    if not with_training:
        return diagnosis

    if diagnosis.can_start:
        new_findings = train_one_step(patience)
    else:
        new_findings = [Finding("train", SKIPPED, "not tried", FIX_ABOVE)]
    if not new_findings:
        return diagnosis

    earlier = [finding for finding in diagnosis.findings if finding.name != "train"]
    return Diagnosis((*earlier, *new_findings), with_training)


def run_checks(patience: float = PATIENCE, names: Sequence[str] = tuple(CHECKS)) -> list[Finding]:
    """The findings of the checks ``names`` in a fresh interpreter.

    A crash or a hang is one of them.
    """
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as folder:
        findings_file = Path(folder) / "findings"
        # No options, as when a job is started. `-m` puts the current folder first on the path, as
        # it does for `python -m domainbed.scripts.train`.
        arguments = ["-m", "domainbed_carft.doctor", str(findings_file), *names]
        outcome = run_python(arguments, Path(folder) / "output", patience)
        text = findings_file.read_text(encoding="utf-8") if findings_file.exists() else ""

    lines = text.splitlines()
    findings = [Finding.from_dict(fields) for line in lines for fields in json.loads(line)]
    if len(lines) < len(names):
        check_name = names[len(lines)]
        detail = f"a fresh interpreter {outcome.description}, during this check"
        findings.append(Finding(check_name, PROBLEM, detail, RUN_BY_HAND))
    return findings
