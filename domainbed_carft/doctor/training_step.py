"""One step of CARFT on EmojiStyles, by the `train` of the domainbed in use."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

from domainbed_carft.doctor.findings import OK, PROBLEM, SKIPPED, Finding
from domainbed_carft.doctor.fresh_process import run_python
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import DONE
from domainbed_carft.jobs.job import command as train_command

# The pictures and the weights of this job are in our package. Upstream's train has its flags.
JOB = {
    "algorithm": "CARFT",
    "dataset": "EmojiStyles",
    "data_dir": "embedded",  # not read
    "test_envs": [0],
    "steps": 1,
}

ACCURACY = re.compile(r"env\d+_(in|out)_acc")


# The name of a finding on what a job leaves behind that was trained to its end.
RESULTS = "results"


def train_one_step(patience: float) -> list[Finding]:
    """Whether `train` does a step within ``patience`` seconds, and writes what tables need.

    No findings if the domainbed in use has no `domainbed.scripts.train`.
    """
    by_hand = f"to see more, run {shlex.join(train_command({**JOB, 'output_dir': 'OUT'}))}"
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as temporary:
        job_folder = Path(temporary) / "job"
        command = train_command({**JOB, "output_dir": str(job_folder)})
        outcome = run_python(command[1:], Path(temporary) / "output", patience)

        if re.search(r"No module named '?domainbed\.scripts", outcome.last_line):  # as in SWAD
            return []
        if "error: unrecognized arguments" in outcome.last_line:  # as in DomainBed-v2
            remedy = "take a step with the arguments that this checkout's train has"
            return [Finding("train", SKIPPED, f"not tried: {outcome.last_line}", remedy)]
        if not outcome.has_succeeded:
            return [Finding("train", PROBLEM, outcome.description, by_hand)]
        problem = _problem_of_folder(job_folder)

    findings = [Finding("train", OK, "one step of CARFT on EmojiStyles by its own command")]
    if problem:
        findings.append(Finding(RESULTS, PROBLEM, problem, by_hand))
    return findings


def _problem_of_folder(job_folder: Path) -> str:
    """What the folder of the job lacks; "" if it has everything."""
    if not (job_folder / DONE).exists():
        return f"ended with status 0 but wrote no file {DONE!r}, so no job counts as done"

    record = records.last_record(job_folder) or {}
    if not any(ACCURACY.fullmatch(name) for name in record):
        return "its records have no accuracies (env0_in_acc, ...), so no table can be made"
    return ""
