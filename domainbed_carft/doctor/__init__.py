"""``carft doctor``: could a training job start here, and if not, what is to be done?

``probe`` looks, in a fresh interpreter, and takes a training step there. So it meets the domainbed
and the hook that a job would meet, and what breaks in it does not break the doctor.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from domainbed_carft.text import inflected, shown

# Seconds. All of OpenAI's weights are 4 GB to hash, and a network drive may be slow.
PATIENCE = 600.0

BY_HAND = "run python -X faulthandler -m domainbed_carft.doctor.probe /dev/stdout to see more"

WIDTH = 96  # columns
STATE_COLUMN, NAME_COLUMN = 9, 18


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    A ``problem`` keeps a job from starting; a ``note`` may surprise somebody. Both come with
    what to do about it.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        text = _filled(
            f"{self.state:{STATE_COLUMN - 1}} {self.name:{NAME_COLUMN - 1}} ", self.found
        )
        indent = " " * (STATE_COLUMN + NAME_COLUMN)
        return f"{text}\n{_filled(f'{indent}-> ', self.remedy)}" if self.remedy else text


@dataclass(frozen=True)
class Report:
    """All findings, in the order of the checks."""

    findings: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """Whether a training job could start."""
        return not any(finding.state == "problem" for finding in self.findings)

    def as_json(self) -> str:
        """For scripts."""
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"ok": self.ok, "findings": findings}, indent=2)

    def as_text(self) -> str:
        """A paragraph a finding, then the verdict."""
        count = sum(finding.state == "problem" for finding in self.findings)
        verdict = "A training job can start."
        if count:
            problems = f"{count} {inflected(count, 'problem')}"
            verdict = f"A training job cannot start: {problems}; the arrows say what to do."
        return "\n".join([*map(str, self.findings), "", verdict])


def examine(patience: float = PATIENCE) -> Report:
    """Examine what a job started from the current folder would meet; never raises for a fault.

    ``patience`` is how many seconds the examination may take.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="carft-doctor-") as folder:
            ending = _probe(Path(folder), patience)
            check, findings = _read(Path(folder) / "findings")
    except OSError as error:
        check, findings, ending = "python", [], f"could not be started ({error})"
    if check:
        found = f"a fresh interpreter {ending or 'ended too early'} during this check"
        findings.append(Finding(check, "problem", found, BY_HAND))
    return Report(findings)


def _probe(folder: Path, patience: float) -> str:
    """Run the probe, which writes to ``folder``; how it ended, "" if as it should."""
    # No options, and the environment as it is: as a job is started. `-m` puts the current folder
    # first on the path, as it does for `python -m domainbed.scripts.train`.
    command = [sys.executable, "-m", "domainbed_carft.doctor.probe", str(folder / "findings")]
    output = folder / "output"
    try:
        with output.open("wb") as stream:  # a pipe would be held open by a grandchild that hangs
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=patience,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        return f"did not finish within {patience:g} seconds and was stopped"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by {names.get(-status, f'signal {-status}')}"
    # Once there are findings the last words may be those of any module it met.
    words = "" if (folder / "findings").exists() else output.read_text(errors="replace").strip()
    said = words and f" ({words.splitlines()[-1]})"
    return f"ended with status {status}{said}" if status else ""


def _read(file: Path) -> tuple[str, list[Finding]]:
    """The check that the probe did not finish, "" if it finished all, and what was found before."""
    findings: list[Finding] = []
    check = "python"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:  # half a line
            break
        if isinstance(content, str):
            check = content
        else:
            findings += [Finding(**finding) for finding in content]
    return check, findings


def _filled(lead: str, text: str) -> str:
    """Wrapped between words, so that a path or a command's word can be copied whole."""
    return textwrap.fill(
        shown(text),
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * (STATE_COLUMN + NAME_COLUMN),
        break_long_words=False,
        break_on_hyphens=False,
    )
