"""``carft doctor``: could a training job start here, and if not, what is to be done?

``domainbed_carft.doctor`` looks, in a fresh interpreter, and takes a training step there. So it
meets the domainbed and the hook that a job would meet, and what breaks in it is told. With
``--train`` the train of the domainbed in use runs too, for a step.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft.doctor import BY_HAND, CHECKS, DEFAULT_BACKBONE, Finding
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import DONE, last_line
from domainbed_carft.jobs.job import command as train_command
from domainbed_carft.launchers.attempt import describe_end
from domainbed_carft.text import counted, shown

# Seconds. All of OpenAI's weights are 4 GB to hash, and a network drive may be slow.
PATIENCE = 600.0

# The job of --train, whose pictures and weights are in this package. Every DomainBed's train has
# these flags.
TRAINED = {
    "algorithm": "CARFT",
    "dataset": "EmojiStyles",
    "data_dir": "embedded",  # not read
    "test_envs": [0],
    "steps": 1,
}


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and the verdict; 1 if a job could not start."""
    findings = examine()
    if arguments.train and all(finding.state != "problem" for finding in findings):
        findings = [finding for finding in findings if finding.name != "train"] + [train()]
    count = sum(finding.state == "problem" for finding in findings)
    if arguments.json:
        listed = [finding._asdict() for finding in findings]
        print(json.dumps({"ok": not count, "findings": listed}, indent=2))
    else:
        for name, state, found, remedy in findings:
            print(shown(f"{state:8} {name:17} {found}"))
            if remedy:
                print(shown(f"{'':8} -> {remedy}"))
        print(f"\n{verdict(findings)}")
    return int(count > 0)


def verdict(findings: Sequence[Finding]) -> str:
    """Which training jobs can start, as far as the findings tell."""
    if count := sum(finding.state == "problem" for finding in findings):
        return f"A training job cannot start: {counted(count, 'problem')}, see the arrows."

    noted = {finding.name for finding in findings if finding.state == "note"}
    can_start = "may start, if this checkout's train works" if "train" in noted else "can start"
    if f"backbone {DEFAULT_BACKBONE}" not in noted:
        return f"A training job {can_start}."
    return (
        f"A training job on EmojiStyles, or with tiny as clip_backbone, {can_start}. Others need "
        f"the weights of {DEFAULT_BACKBONE}, which are not here."
    )


def train(patience: float = PATIENCE) -> Finding:
    """What came of one step of CARFT on EmojiStyles, by the train of the domainbed in use."""
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as temporary:
        folder, output = Path(temporary) / "job", Path(temporary) / "output"
        words = train_command({**TRAINED, "output_dir": str(folder)})
        by_hand = shlex.join(train_command({**TRAINED, "output_dir": "OUT"}))
        remedy = f"to see more, run {by_hand}"
        with output.open("wb") as out:
            try:
                done = subprocess.run(
                    [sys.executable, *words[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    timeout=patience,
                )
            except subprocess.TimeoutExpired:
                found = f"did not finish a step within {patience:g} seconds and was stopped"
                return Finding("train", "problem", found, remedy)

        last_words = last_line(output)
        if re.search(r"No module named '?domainbed\.scripts", last_words):  # SWAD's line
            remedy = "run a step by its own entry point, such as train_all.py"
            return Finding("train", "note", "this checkout has no domainbed.scripts.train", remedy)
        if done.returncode != 0:
            found = f"ended: {describe_end(done.returncode, last_words)}"
            return Finding("train", "problem", found, remedy)
        if not (folder / DONE).exists():
            found = f"ended with status 0 but wrote no file {DONE!r}, so no job counts as done"
            return Finding("train", "problem", found, remedy)
        record = records.last_record(folder) or {}
        if not any(re.fullmatch(r"env\d+_(in|out)_acc", name) for name in record):
            found = "its records have no accuracies (env0_in_acc, ...), so no table can be made"
            return Finding("train", "problem", found, remedy)
        return Finding("train", "ok", "one step of CARFT on EmojiStyles by its own command")


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
                ending = f"ended: {describe_end(done.returncode, last_line(said))}"
            except subprocess.TimeoutExpired:
                ending = f"did not finish within {patience:g} seconds and was stopped"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    findings = [Finding(*one) for line in lines for one in json.loads(line)]
    if len(lines) < len(CHECKS):
        found = f"a fresh interpreter {ending}, during this check"
        findings.append(Finding(CHECKS[len(lines)].__name__, "problem", found, BY_HAND))
    return findings
