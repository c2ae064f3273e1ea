"""``carft doctor``: could a training job start here, and if not, what is to be done?

- `probe` collects facts in a fresh interpreter and takes a training step there. So it meets the
  domainbed and the hook that a job would meet, and what breaks in it does not break the doctor.
- `judge` says what the facts mean, and what to do;
- `findings` is the form in which it is said;
- this module starts the probe and reads what it left.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from domainbed_carft.doctor.findings import Facts, Finding, Report
from domainbed_carft.doctor.judge import diagnose

__all__ = ["Finding", "Report", "examine"]

# Seconds. All of OpenAI's weights are 4 GB to hash, and a network drive may be slow.
PATIENCE = 600.0


def examine(patience: float = PATIENCE) -> Report:
    """Examine what a job started from the current folder would meet; never raises for a fault.

    ``patience`` is how many seconds the examination may take.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="carft-doctor-") as folder:
            ending = _probe(Path(folder), patience)
            facts = _read(Path(folder) / "facts")
    except OSError as error:
        facts, ending = {}, f"could not be started ({error})"
    return Report(diagnose(facts, ending), facts)


def _probe(folder: Path, patience: float) -> str:
    """Run the probe, which writes to ``folder``; how it ended, "" if as it should."""
    # No options, and the environment as it is: as a job is started. `-m` puts the current folder
    # first on the path, as it does for `python -m domainbed.scripts.train`.
    command = [sys.executable, "-m", "domainbed_carft.doctor.probe", str(folder / "facts")]
    output = folder / "output"
    try:
        with output.open("wb") as file:  # a pipe would be held open by a grandchild that hangs
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=patience,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        return f"was not through after {patience:g} seconds and was stopped"
    if status == 0:
        return ""
    if status < 0:
        return f"was ended by {_signal(-status)}"
    # Later on, the last words may be those of any module it met.
    words = "" if (folder / "facts").exists() else _last_line(output)
    return f"ended with status {status}{words and f' ({words})'}"


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read(path: Path) -> Facts:
    """The sections that the probe got through; the last line may be half a line."""
    facts: Facts = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                facts.update(json.loads(line))
            except ValueError:
                break
    return facts
