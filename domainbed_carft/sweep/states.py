"""The state of each job of a sweep, from what lies in its folder and who holds which lock.

Locks and launch files are held as long as their process lives, so nothing has to be trusted that a
dead process wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.folder import Attempt, Holder, JobFolder
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Dataset

NOT_LAUNCHED = "not launched"
QUEUED = "queued"
RUNNING = "running"
INTERRUPTED = "interrupted"  # it began, is not done, and nobody runs it: it goes on when launched
FAILED = "failed"
DONE = "done"
STATES = (DONE, RUNNING, QUEUED, NOT_LAUNCHED, INTERRUPTED, FAILED)

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
        names = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
        attempt = self.attempt
        return {
            "folder": str(self.job.folder),
            "variant": self.job.variant,
            **{name: self.job.args.get(name) for name in names},
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            **{
                name: getattr(self.holder, name, None) for name in ("host", "pid", "slurm", "since")
            },
            "pictures_per_second": self.pictures_per_second,
            "eta_seconds": self.eta,
            "exit_status": attempt.status if attempt else None,
            "last_words": attempt.last_words if attempt else None,
            "detail": self.detail,
            "diverged": self.diverged,
        }


class Waiting(NamedTuple):
    """What waits in an output folder.

    ``places`` says where the job of a folder waits. ``launchers`` are those whose process lives:
    name, host, process; ``ended`` the launch files that say nothing any more. ``slurm`` has SLURM's
    word for each of its jobs that has not ended; ``note`` says why it could not be asked.
    """

    places: Mapping[Path, str] = {}
    launchers: Sequence[tuple[str, str, int]] = ()
    ended: Sequence[Path] = ()
    slurm: Mapping[str, str] = {}
    note: str = ""


def waiting(output: Path) -> Waiting:
    """What waits, by all launch files of an output folder and its variants; asks SLURM once."""
    found = [*output.glob(f"{LAUNCHES}/*.json"), *output.glob(f"*/{LAUNCHES}/*.json")]
    launches = [
        (path, parsing.read_json(path)) for path in sorted(found, key=lambda path: path.name)
    ]
    launches = [(path, read) for path, read in launches if _is_launch(read)]
    ids = {i for _, read in launches if read["launcher"] == "slurm" for i in read["jobs"].values()}
    slurm, note = _asked(ids - {None})
    places: dict[Path, str] = {}
    launchers, ended = [], []
    for path, read in launches:
        name, host, pid = read["launcher"], read["host"], read["pid"]
        if name == "slurm":
            queued = {job: one for job, one in read["jobs"].items() if one in slurm}
            where = {job: f"SLURM job {one}, {slurm[one]}" for job, one in queued.items()}
            ended += [] if queued or note else [path]
        elif _is_held(path):
            launchers.append((name, host, pid))
            where = dict.fromkeys(read["jobs"], f"{name} on {host}, process {pid}")
        else:
            where = {}
            ended.append(path)
        for job, text in where.items():
            places.setdefault(path.parent.parent / job, text)
    return Waiting(places, launchers, ended, slurm, note)


def _is_launch(read: Any) -> bool:
    kinds = {"launcher": str, "host": str, "pid": int, "jobs": dict}
    whole = isinstance(read, dict) and all(isinstance(read.get(n), kinds[n]) for n in kinds)
    return whole and all(isinstance(one, (str, type(None))) for one in read["jobs"].values())


def _asked(ids: Collection[str]) -> tuple[Mapping[str, str], str]:
    if not ids:
        return {}, ""
    from domainbed_carft.launchers import slurm

    try:
        return slurm.states(ids), ""
    except CarftError as error:
        return {}, str(error)


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # its launcher has just ended
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def of_output(output: Path) -> tuple[Waiting, list[Status]]:
    """The states of all jobs of an output folder: those that were launched, and others in it."""
    sweep = manifest.read(output)
    listed = sweep.jobs if sweep else ()
    folders = {job.folder for job in listed}
    jobs = [*listed, *(j for j in manifest.found(output, listed) if j.folder not in folders)]
    now = waiting(output)
    return now, look(jobs, sweep.datasets if sweep else {}, now)


def look(jobs: Iterable[Job], datasets: Mapping[str, Dataset], now: Waiting) -> list[Status]:
    """The state of each job now."""
    return [status(job, datasets, now) for job in jobs]


def status(job: Job, datasets: Mapping[str, Dataset], now: Waiting) -> Status:
    """The state of one job now; ``datasets`` are the facts of a manifest."""
    facts = datasets.get(str(job.args.get("dataset")))
    given = job.args.get("steps")
    steps = given if isinstance(given, int) and given else facts.steps if facts else None
    folder = JobFolder(job.folder)
    if folder.done:
        return _done(job, steps)
    holder = folder.holder()
    if holder is not None:
        return _running(job, holder, holder.steps or steps, facts)
    failed, step = folder.failed(), _steps_done(records.last(job.folder))
    if failed:
        return Status(job, FAILED, step, steps, attempt=failed, detail=told(failed))
    if where := now.places.get(job.folder):
        return Status(job, QUEUED, step, steps, detail=where)
    if JobFolder(job.folder).done:  # it has ended since it was looked at first
        return _done(job, steps)
    return _at_rest(job, folder, step, steps)


def _at_rest(job: Job, folder: JobFolder, step: int, steps: int | None) -> Status:
    """A job that is neither done nor failed, and neither running nor waiting."""
    died = folder.last_holder()
    if died is not None:
        return Status(job, INTERRUPTED, step, steps, died, detail=f"was run by {died}")
    attempts = folder.attempts()
    if attempts:
        last = attempts[-1]
        return Status(job, INTERRUPTED, step, steps, attempt=last, detail=told(last))
    begun = (folder.state_path, folder.records_path, folder.path / "out.txt")
    if any(path.exists() for path in begun):
        return Status(job, INTERRUPTED, step, steps, detail="began, and is not done")
    return Status(job, NOT_LAUNCHED, 0, steps)


def _done(job: Job, steps: int | None) -> Status:
    record = records.last(job.folder) or {}
    return Status(job, DONE, steps or 0, steps, diverged=record.get("diverged_at") is not None)


def _running(job: Job, holder: Holder, steps: int | None, facts: Dataset | None) -> Status:
    """With pictures trained on a second, and seconds left, where they are known.

    A first attempt is timed by the clock, evaluation included; one that went on from a state, or a
    job of a domainbed that leaves the lock alone, by the last record's mean time of a step.
    """
    record = records.last(job.folder)
    step = holder.step if holder.step is not None else _steps_done(record)
    pace = _by_the_clock(job, holder, step)
    recorded = _number(record, "step_time")
    # Faster than training alone: it did not begin with the first step after all.
    if pace is None or (recorded and pace < recorded):
        pace = recorded
    if not pace:
        return Status(job, RUNNING, step, steps, holder)
    pictures = holder.pictures_per_step
    size = _number(record.get("hparams") if record else None, "batch_size")
    if pictures is None and size and facts:
        pictures = int(size) * (len(facts.labels) - len(job.args["test_envs"]))
    eta = None if steps is None else max(0.0, (steps - step) * pace)
    return Status(
        job, RUNNING, step, steps, holder,
        pictures_per_second=pictures / pace if pictures else None, eta=eta,
    )  # fmt: skip


def _by_the_clock(job: Job, holder: Holder, step: int) -> float | None:
    """Seconds a step since this attempt began, if it began with the first step."""
    if holder.step is None or step < 1 or JobFolder(job.folder).attempts():
        return None
    elapsed = (holder.updated or time.time()) - holder.since
    return elapsed / step if elapsed > 0 else None


def _steps_done(record: Mapping[str, Any] | None) -> int:
    step = _number(record, "step")
    return 0 if step is None else int(step) + 1


def _number(where: Any, key: str) -> float | None:
    found = where.get(key) if isinstance(where, Mapping) else None
    with contextlib.suppress(OverflowError, ValueError):
        if isinstance(found, (int, float)) and int(found) >= 0:
            return float(found)
    return None


def told(attempt: Attempt) -> str:
    """How an attempt ended."""
    how = f"signal {-attempt.status}" if attempt.status < 0 else f"exit status {attempt.status}"
    return f"{how}: {attempt.last_words}" if attempt.last_words else how
