"""``carft doctor``: could a training job start here, and if not, what is to be done?

``domainbed_carft.doctor`` looks, in a fresh interpreter, and takes a training step there. So it
meets the domainbed and the hook that a job would meet, and what breaks in it is told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from domainbed_carft.doctor import BY_HAND, CHECKS, Finding
from domainbed_carft.jobs.folder import last_line
from domainbed_carft.launchers.attempt import described
from domainbed_carft.text import counted, shown

# Seconds. All of OpenAI's weights are 4 GB to hash, and a network drive may be slow.
PATIENCE = 600.0


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and the verdict; 1 if a job could not start."""
    findings = examine()
    count = sum(finding.state == "problem" for finding in findings)
    if arguments.json:
        listed = [finding._asdict() for finding in findings]
        print(json.dumps({"ok": not count, "findings": listed}, indent=2))
    else:
        for name, state, found, remedy in findings:
            print(shown(f"{state:8} {name:17} {found}"))
            if remedy:
                print(shown(f"{'':8} -> {remedy}"))
        verdict = f"cannot start: {counted(count, 'problem')}, see the arrows"
        print(f"\nA training job {verdict if count else 'can start'}.")
    return int(count > 0)


def examine(patience: float = PATIENCE) -> list[Finding]:
    """What a job started from the current folder would meet, looked at for ``patience`` seconds."""
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as folder:
        file, said = Path(folder) / "findings", Path(folder) / "output"
        # No options, and the environment as it is: as a job is started. `-m` puts the current
        # folder first on the path, as it does for `python -m domainbed.scripts.train`.
        command = [sys.executable, "-m", "domainbed_carft.doctor", str(file)]
        with said.open("wb") as out:  # a grandchild that hangs would hold a pipe
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=patience
                )
                ending = f"ended: {described(done.returncode, last_line(said))}"
            except subprocess.TimeoutExpired:
                ending = f"did not finish within {patience:g} seconds and was stopped"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    findings = [Finding(*one) for line in lines for one in json.loads(line)]
    if len(lines) < len(CHECKS):
        found = f"a fresh interpreter {ending}, during this check"
        findings.append(Finding(CHECKS[len(lines)].__name__, "problem", found, BY_HAND))
    return findings
