"""The state of each job of a sweep, from the files in its folder and from locks."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.folder import OUTPUT, RECORDS, STATE, Attempt, Holder, JobFolder
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.launchers import attempt, launch_file, slurm
from domainbed_carft.launchers.launch_file import Launch

NOT_LAUNCHED = "not launched"
QUEUED = "queued"
RUNNING = "running"
INTERRUPTED = "interrupted"  # it began, is not done, and nobody runs it: a launch resumes it
FAILED = "failed"
DONE = "done"
STATES = (DONE, RUNNING, QUEUED, NOT_LAUNCHED, INTERRUPTED, FAILED)


@dataclass(frozen=True)
class Status:
    """A job's state and details; ``step`` counts the steps done.

    ``step_seconds``: seconds per step in the last record, without evaluation.
    """

    job: Job
    state: str
    step: int = 0
    steps: int | None = None
    holder: Holder | None = None
    attempt: Attempt | None = None
    step_seconds: float | None = None
    detail: str = ""
    diverged: bool = False  # told of jobs that are done

    @property
    def pictures_per_second(self) -> float | None:
        pictures = self.holder.pictures_per_step if self.holder else None
        return pictures / self.step_seconds if pictures and self.step_seconds else None

    @property
    def eta(self) -> float | None:
        """Seconds of training left."""
        left = None if self.steps is None else max(0, self.steps - self.step)
        return None if left is None or self.step_seconds is None else left * self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        names = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
        who = ("host", "pid", "slurm", "since")
        return {
            **{"folder": str(self.job.folder), "variant": self.job.variant},
            **{name: self.job.args.get(name) for name in names},
            **{"state": self.state, "step": self.step, "steps": self.steps},
            **{name: getattr(self.holder, name, None) for name in who},
            **{"pictures_per_second": self.pictures_per_second, "eta_seconds": self.eta},
            "exit_status": getattr(self.attempt, "status", None),
            "last_words": getattr(self.attempt, "last_words", None),
            **{"detail": self.detail, "diverged": self.diverged},
        }


class Waiting(NamedTuple):
    """The launchers and queued jobs of an output folder.

    ``places``: job folder -> where the job waits; ``alive``: launchers whose process lives;
    ``ended``: obsolete launch files. ``slurm``: SLURM's state of each of its jobs that has not
    ended; ``note``: why SLURM could not be asked.
    """

    places: dict[Path, str]
    alive: list[Launch]
    ended: list[Path]
    slurm: Mapping[str, str]
    note: str


def waiting(output: Path) -> Waiting:
    """The above from all launch files of an output folder and its variants; asks SLURM once."""
    found = launch_file.read(output)
    told, note = {}, ""
    try:
        told = slurm.states(name for one in found for name in one.jobs.values() if name)
    except CarftError as error:
        note = str(error)
    now = Waiting({}, [], [], told, note)
    for one in found:
        queued = {job: f"SLURM job {n}, {told[n]}" for job, n in one.jobs.items() if n in told}
        if one.launcher != "slurm" and one.is_alive():
            now.alive.append(one)
            queued = dict.fromkeys(one.jobs, f"{one.launcher} on {one.host}, process {one.pid}")
        now.places.update((one.path.parent.parent / job, where) for job, where in queued.items())
        if not queued and not (note and one.launcher == "slurm"):
            now.ended.append(one.path)
    return now


def of_output(output: Path) -> tuple[Waiting, list[Status]]:
    """The states of all jobs of an output folder: those that were launched, and others in it."""
    sweep, jobs = manifest.read_jobs(output)
    now = waiting(output)
    facts = sweep.datasets if sweep else {}
    return now, [status(job, facts, now.places) for job in jobs]


def status(job: Job, datasets: Mapping[str, Dataset], places: Mapping[Path, str] = {}) -> Status:
    """The state of one job now, by the facts of a manifest and by where it waits."""
    facts = datasets.get(str(job.args.get("dataset")))
    given = job.args.get("steps")
    steps = given if isinstance(given, int) and given else facts.steps if facts else None
    folder = JobFolder(job.folder)
    holder, record = folder.holder(), records.last_record(job.folder) or {}
    if folder.done:  # asked after the lock: a job is done a little before it lets go
        loss = record.get("loss")  # of other checkouts, which leave no mark
        diverged = "diverged_at" in record or (isinstance(loss, float) and not math.isfinite(loss))
        return Status(job, DONE, steps or 0, steps, diverged=diverged)
    last = _number(record.get("step"))
    step = 0 if last is None else int(last) + 1
    if holder is not None:
        step = step if holder.step is None else holder.step
        # The first record is of the first step alone, which is slower than the others.
        seconds = _number(record.get("step_time")) if last else None
        all_steps = holder.steps or steps
        return Status(job, RUNNING, step, all_steps, holder, None, seconds, detail=str(holder))
    told = functools.partial(Status, job, step=step, steps=steps)
    if failed := folder.failed():
        return told(FAILED, attempt=failed, detail=_told(failed))
    if where := places.get(job.folder):
        return told(QUEUED, detail=where)
    if died := folder.last_holder():
        return told(INTERRUPTED, holder=died, detail=f"last run by {died}")
    if attempts := folder.attempts():
        last_attempt = attempts[-1]
        saved = max(step, last_attempt.step or 0)  # a job that stops saves what it has no record of
        return told(INTERRUPTED, attempt=last_attempt, detail=_told(last_attempt), step=saved)
    if any((job.folder / name).exists() for name in (STATE, RECORDS, OUTPUT)):
        return told(INTERRUPTED, detail="started but not done")
    return Status(job, NOT_LAUNCHED, 0, steps)


def _number(found: Any) -> float | None:
    """What a record should have as a number; None if it is none, or no count of anything."""
    return found if type(found) in (int, float) and 0 <= found < 1e12 else None


def _told(ended: Attempt) -> str:
    return attempt.describe_end(ended.status, ended.last_words)
