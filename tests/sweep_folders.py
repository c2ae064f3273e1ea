"""Output folders of launched sweeps, and processes that run their jobs or queue them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import Attempt, JobFolder
from domainbed_carft.sweep import declaration_file, launch, states

HOLD = """
import json, sys
from domainbed_carft.jobs.job_folder import JobFolder
folder, fields = JobFolder(sys.argv[1]), json.loads(sys.argv[2])
folder.path.mkdir(parents=True, exist_ok=True)
with folder.claim():
    holder = {**folder.get_holder()._asdict(), **fields}
    folder.lock_path.write_text(json.dumps(holder))
    print("ready", flush=True)
    sys.stdin.read()
"""

QUEUE = """
import sys
from pathlib import Path
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import launch_file
with launch_file.announce("pool", [Job({}, Path(sys.argv[1]))]):
    print("ready", flush=True)
    sys.stdin.read()
"""


EIGHT = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\ntrials: 2\nsteps: 11\n"


def write_declaration(folder: Path, **keys: Any) -> list[str]:
    """Declare a sweep, by default of three quick jobs; return words for ``carft sweep launch``."""
    keys = {"name": "x", "datasets": ["Debug28"], "algorithms": ["ERM"], "trials": 1, **keys}
    path = Path(folder) / "x.yaml"
    path.write_text(json.dumps(keys))
    return [str(path), "--data_dir", "/data"]


def write_launched_sweep(folder: Path, text: str = EIGHT) -> list[Job]:
    """Write the manifest of a declared sweep; return its jobs."""
    declaration = declaration_file.parse(text, "x.yaml")
    jobs = declaration.jobs("D", Path(folder))
    launch.write_manifest(declaration, Path(folder), jobs)
    return jobs


def status(folder: Path, job: Job) -> states.Status:
    statuses = states.read_state(folder).statuses
    return next(status for status in statuses if status.job.folder == job.folder)


class ForeignProcesses:
    """Processes of other launches, until the test ends."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, code: str, folder: Path, **fields: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), json.dumps(fields)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        assert process.stdout and process.stdout.readline() == "ready\n"
        return process

    def hold(self, job: Job, **fields: Any) -> subprocess.Popen[str]:
        """Hold the lock of a job, with these fields in the lock file."""
        return self.start(HOLD, job.folder, **fields)

    def queue(self, job: Job) -> subprocess.Popen[str]:
        return self.start(QUEUE, job.folder)

    def kill(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def add_attempts(job: Job, *statuses: int) -> None:
    """Note ended attempts at a job, one for each exit status."""
    job.folder.mkdir(parents=True, exist_ok=True)
    for value in statuses:
        attempt = Attempt(1.0, 2.0, "host", None, value, f"words of {value}")
        JobFolder(job.folder).add_attempt(attempt)


def record(job: Job, step: int, n_environments: int = 6, **fields: Any) -> None:
    """Append a record with all flags of train among its arguments."""
    args = {"steps": None, "hparams": None, "checkpoint_freq": None, "output_dir": "gone"}
    accuracies = {
        f"env{i}_{split}_acc": 0.5 for i in range(n_environments) for split in ("in", "out")
    }
    value: dict[str, Any] = {
        "step": step,
        "args": {**args, **job.args},
        "hparams": {"batch_size": 4},
    }
    value |= {**accuracies, **fields}
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(value) + "\n")


def finish(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "done").touch()
