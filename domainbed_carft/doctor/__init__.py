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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from domainbed_carft.text import counted, shown

# Seconds. All of OpenAI's weights are 4 GB to hash, and a network drive may be slow.
PATIENCE = 600.0

BY_HAND = "run python -X faulthandler -m domainbed_carft.doctor.probe /dev/stdout to see more"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``state``: "ok"; "problem" keeps a job from starting, "note" may surprise somebody, and both
    come with what to do about it.
    """

    name: str
    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = shown(f"{self.state:8} {self.name:17} {self.found}")
        return f"{line}\n{'':8} -> {shown(self.remedy)}" if self.remedy else line


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
            verdict = f"A training job cannot start: {counted(count, 'problem')}, see the arrows."
        return "\n".join([*map(str, self.findings), "", verdict])


def examine(patience: float = PATIENCE) -> Report:
    """Examine what a job started from the current folder would meet; never raises for a fault.

    ``patience`` is how many seconds the examination may take.
    """
    check, findings = "python", list[Finding]()
    try:
        with tempfile.TemporaryDirectory(prefix="carft-doctor-") as folder:
            file = Path(folder) / "findings"
            ending = _probe(file, patience)
            for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
                try:
                    content = json.loads(line)
                except ValueError:  # half a line
                    break
                if isinstance(content, str):
                    check = content  # "" after the last
                else:
                    findings += [Finding(**finding) for finding in content]
    except OSError as error:
        ending = f"could not start ({error})"
    if check:
        found = f"a fresh interpreter {ending} during this check"
        findings.append(Finding(check, "problem", found, BY_HAND))
    return Report(findings)


def _probe(file: Path, patience: float) -> str:
    """Run the probe, which writes to ``file``; how it ended."""
    # No options, and the environment as it is: as a job is started. `-m` puts the current folder
    # first on the path, as it does for `python -m domainbed.scripts.train`.
    command = [sys.executable, "-m", "domainbed_carft.doctor.probe", str(file)]
    with tempfile.TemporaryFile() as output:  # a grandchild that hangs would hold a pipe
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=patience
            )
        except subprocess.TimeoutExpired:
            return f"did not finish within {patience:g} seconds and was stopped"
        output.seek(0)
        said = output.read().decode(errors="replace").strip().splitlines() or ["no message"]
    if done.returncode < 0:
        return f"was ended by {signal.Signals(-done.returncode).name}"
    return f"ended with status {done.returncode} ({said[-1]})"
