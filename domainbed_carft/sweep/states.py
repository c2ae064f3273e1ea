"""The state of each job of a sweep, from what lies in its folder and who holds which lock.

Locks and launch files are held as long as their process lives, so nothing has to be trusted that a
dead process wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import Attempt, Holder, JobFolder, has_diverged
from domainbed_carft.sweep import names as host
from domainbed_carft.sweep import output, rates
from domainbed_carft.sweep.jobs import Job

NOT_LAUNCHED = "not launched"
QUEUED = "queued"
RUNNING = "running"
DONE = "done"
FAILED = "failed"
STALE = "stale"  # its process died; it goes on from its last state when launched again
STOPPED = "stopped"  # it ended before it was done, and said so; it goes on when launched again
UNKNOWN = "unknown"  # another tool made its folder, and leaves no sign of whether it runs
STATES = (DONE, RUNNING, QUEUED, NOT_LAUNCHED, STOPPED, STALE, FAILED, UNKNOWN)

LAUNCHES = "launches"


@dataclass(frozen=True)
class Status:
    """A job's state and what is to say of it; ``step`` counts the steps done."""

    job: Job
    state: str
    step: int = 0
    steps: int | None = None
    holder: Holder | None = None
    attempt: Attempt | None = None
    pictures_per_second: float | None = None
    eta: float | None = None
    detail: str = ""
    diverged: bool = False  # told of jobs that are done

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        holder, attempt, args = self.holder, self.attempt, self.job.train_args
        names = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
        return {
            "folder": str(self.job.folder),
            "variant": self.job.variant,
            **{name: args[name] for name in names},
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "host": holder.host if holder else None,
            "pid": holder.pid if holder else None,
            "slurm": holder.slurm if holder else None,
            "since": holder.since if holder else None,
            "pictures_per_second": self.pictures_per_second,
            "eta_seconds": self.eta,
            "exit_status": attempt.status if attempt else None,
            "last_words": attempt.last_words if attempt else None,
            "detail": self.detail,
            "diverged": self.diverged,
        }


@dataclass(frozen=True)
class Launch:
    """A launch file: which launcher, whether its process lives (for SLURM: None), its jobs."""

    path: Path
    launcher: str
    host: str
    pid: int
    alive: bool | None
    jobs: Mapping[str, str | None]


@dataclass(frozen=True)
class Queues:
    """The launches of an output folder.

    ``slurm`` maps SLURM's jobs that have not ended to its word for their state; ``note`` says why
    SLURM could not be asked.
    """

    launches: Sequence[Launch] = ()
    slurm: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def waiting(self, name: str) -> str | None:
        """Where a job waits, by its folder's name."""
        for launch in self.launches:
            if name in launch.jobs:
                if launch.alive:
                    return f"{launch.launcher} on {launch.host}, process {launch.pid}"
                if launch.alive is None and (word := self.slurm.get(launch.jobs[name] or "")):
                    return f"SLURM job {launch.jobs[name]}, {word}"
        return None

    def ended(self, launch: Launch) -> bool:
        """Whether no job of a launch through SLURM is left, as far as SLURM could be asked."""
        return not self.note and not any(one in self.slurm for one in launch.jobs.values())


def queues(folder: Path) -> Queues:
    """What waits, for all launch files of an output folder and its variants; asks SLURM once."""
    launches = [launch for path in launch_files(folder) if (launch := _launch(path)) is not None]
    ids = {i for launch in launches if launch.alive is None for i in launch.jobs.values() if i}
    if not ids:
        return Queues(launches)
    from domainbed_carft.launchers import slurm

    try:
        return Queues(launches, slurm.states(ids))
    except CarftError as error:
        return Queues(launches, note=str(error))


def launch_files(folder: Path) -> list[Path]:
    """Launch files below an output folder, oldest first."""
    return sorted(
        [*folder.glob(f"{LAUNCHES}/*.json"), *folder.glob(f"*/{LAUNCHES}/*.json")],
        key=lambda path: path.name,
    )


def _launch(path: Path) -> Launch | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        launcher = str(read["launcher"])
        alive = None if launcher == "slurm" else _is_held(path)
        return Launch(path, launcher, read["host"], int(read["pid"]), alive, read["jobs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def look(jobs: Iterable[Job], folder: Path, waiting: Queues | None = None) -> list[Status]:
    """The state of each job now; ``waiting`` is what waits, if somebody has asked already."""
    known = queues(folder) if waiting is None else waiting
    return [status(job, known) for job in jobs]


def status(job: Job, waiting: Queues) -> Status:
    """The state of one job now."""
    steps = steps_of(job)
    folder = JobFolder(job.folder)
    if folder.done:
        return _done(job, steps)
    if not job.folder.is_dir():
        return Status(job, NOT_LAUNCHED, 0, steps)
    holder = folder.holder()
    if holder is not None:
        return _running(job, holder, steps)
    attempt = folder.failed()
    if attempt is None and (where := waiting.waiting(folder.name)):
        return Status(job, QUEUED, _recorded(job), steps, detail=where)
    return _at_rest(job, folder, attempt, steps)


def _done(job: Job, steps: int | None) -> Status:
    diverged = has_diverged(output.last_record(job.folder) or {})
    return Status(job, DONE, steps or 0, steps, diverged=diverged)


def _running(job: Job, holder: Holder, steps: int | None) -> Status:
    steps = holder.steps or steps
    measured = rates.measure(job, holder, steps)
    return Status(
        job, RUNNING, measured.step, steps, holder,
        pictures_per_second=measured.pictures_per_second, eta=measured.eta,
    )  # fmt: skip


def _at_rest(job: Job, folder: JobFolder, failed: Attempt | None, steps: int | None) -> Status:
    """A job that is begun, not done, and neither running nor waiting."""
    step = _recorded(job)
    # It may have ended, or been taken up, since it was looked at first.
    if folder.done:
        return _done(job, steps)
    if failed is not None:
        return Status(job, FAILED, step, steps, attempt=failed, detail=told(failed))
    died = folder.last_holder()
    if died is not None:
        return Status(job, STALE, step, steps, died, detail=f"was run by {died}")
    attempts = folder.attempts()
    if attempts:
        last = attempts[-1]
        return Status(job, STOPPED, step, steps, attempt=last, detail=told(last))
    if folder.state_path.exists():
        return Status(job, STOPPED, step, steps, detail="saved its state and left")
    if folder.description_path.exists():  # a launcher of ours would hold its lock
        if _begun(folder):
            return Status(job, STOPPED, step, steps, detail="began, and is not done")
        return Status(job, NOT_LAUNCHED, 0, steps)
    return Status(job, UNKNOWN, step, steps, detail="made by another tool, which leaves no lock")


def _begun(folder: JobFolder) -> bool:
    return folder.records_path.exists() or (folder.path / "out.txt").exists()


def told(attempt: Attempt) -> str:
    """How an attempt ended."""
    how = f"signal {-attempt.status}" if attempt.status < 0 else f"exit status {attempt.status}"
    return f"{how}: {attempt.last_words}" if attempt.last_words else how


def steps_of(job: Job) -> int | None:
    """Training steps of a job, as far as they are known without asking anybody."""
    given = job.train_args.get("steps")
    if given:
        return int(given)
    name = str(job.train_args["dataset"])
    return host.dataset(name).steps if host.is_known(name) else None


def _recorded(job: Job) -> int:
    record = output.last_record(job.folder)
    return int(record["step"]) + 1 if record else 0
