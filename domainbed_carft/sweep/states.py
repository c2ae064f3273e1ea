"""Read the state of each job of a sweep from its folder, its lock and SLURM."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import CHOOSE, REPEAT, Job
from domainbed_carft.jobs.job_folder import OUTPUT, RECORDS, STATE, Attempt, Holder, JobFolder
from domainbed_carft.jobs.manifest import Dataset, Search
from domainbed_carft.jobs.records import is_broken_loss
from domainbed_carft.launchers import attempt, launch_file, slurm
from domainbed_carft.launchers.launch_file import Launch
from domainbed_carft.launchers.slurm import JobState
from domainbed_carft.paths import AnyPath, as_path

NOT_LAUNCHED = "not launched"
QUEUED = "queued"
RUNNING = "running"
INTERRUPTED = "interrupted"  # began, is not done, and is not running: a launch resumes it
FAILED = "failed"
DONE = "done"
STATES = (DONE, RUNNING, QUEUED, NOT_LAUNCHED, INTERRUPTED, FAILED)

# Larger numbers in a record are damaged.
MAX_COUNT = 1e12


@dataclass(frozen=True)
class Queue:
    """The launchers and queued jobs of an output folder.

    Attributes:
        positions: job folder -> text that describes where the job waits.
        live_launches: launches whose process is alive.
        ended_files: launch files of launches that have ended.
        slurm_states: SLURM job id -> state, for jobs that have not ended.
        note: why SLURM did not answer; "" if it did.
        reasons: job folder -> SLURM's reason for not starting the job.
    """

    positions: Mapping[Path, str]
    live_launches: Sequence[Launch]
    ended_files: Sequence[Path]
    slurm_states: Mapping[str, JobState]
    note: str
    reasons: Mapping[Path, str]


def read_queue(output: Path) -> Queue:
    """Read the queue of an output folder from its launch files and its variants' launch files.

    SLURM is asked once; if it does not answer, the queue's ``note`` has the reason.
    """
    known_launches = launch_file.read(output)
    slurm_ids = [name for launch in known_launches for name in launch.jobs.values() if name]
    slurm_states: Mapping[str, JobState] = {}
    note = ""
    try:
        slurm_states = slurm.get_states(slurm_ids)
    except CarftError as error:
        note = str(error)

    positions: dict[Path, str] = {}
    reasons: dict[Path, str] = {}
    live_launches: list[Launch] = []
    ended_files: list[Path] = []
    for launch in known_launches:
        queued: dict[str, str] = {}
        sweep_folder = launch.path.parent.parent
        if launch.launcher != "slurm" and launch.is_alive():
            live_launches.append(launch)
            position = f"{launch.launcher} on {launch.host}, process {launch.pid}"
            queued = dict.fromkeys(launch.jobs, position)
        else:
            for name, state in _get_slurm_states(launch, slurm_states).items():
                queued[name] = f"SLURM job {launch.jobs[name]}, {state}"
                reasons[sweep_folder / name] = state.reason

        positions.update((sweep_folder / name, position) for name, position in queued.items())
        if not queued and not (note and launch.launcher == "slurm"):
            ended_files.append(launch.path)
    return Queue(positions, live_launches, ended_files, slurm_states, note, reasons)


def _get_slurm_states(launch: Launch, slurm_states: Mapping[str, JobState]) -> dict[str, JobState]:
    """Return folder name -> SLURM's state, for jobs of a launch that have not ended."""
    return {
        name: slurm_states[slurm_id]
        for name, slurm_id in launch.jobs.items()
        if slurm_id is not None and slurm_id in slurm_states
    }


@dataclass(frozen=True)
class Status:
    """A job's state and details.

    Attributes:
        job: the job.
        state: one of ``STATES``.
        step: number of steps done.
        steps: number of steps of the job, or None if unknown.
        holder: process that holds the job's lock, or the last one that did.
        attempt: last attempt at the job, if it failed or was interrupted.
        step_seconds: seconds per step in the last record, without evaluation.
        detail: text for people: the process, the end of the last attempt, or the position in a
            queue.
        diverged: True for a finished job with a loss that was not finite.
        slurm_reason: SLURM's reason for not starting a queued job, or "".
    """

    job: Job
    state: str
    step: int = 0
    steps: int | None = None
    holder: Holder | None = None
    attempt: Attempt | None = None
    step_seconds: float | None = None
    detail: str = ""
    diverged: bool = False
    slurm_reason: str = ""

    @property
    def images_per_second(self) -> float | None:
        """Images trained on per second; None if unknown."""
        images = self.holder.images_per_step if self.holder else None
        return images / self.step_seconds if images and self.step_seconds else None

    @property
    def eta(self) -> float | None:
        """Seconds of training left; None if unknown."""
        if self.steps is None or self.step_seconds is None:
            return None
        return max(0, self.steps - self.step) * self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the job's item in the output of ``carft sweep status --json``."""
        args = self.job.args
        return {
            "folder": str(self.job.folder),
            "variant": self.job.variant,
            "dataset": args.get("dataset"),
            "algorithm": args.get("algorithm"),
            "test_envs": args.get("test_envs"),
            "trial_seed": args.get("trial_seed"),
            "hparams_seed": args.get("hparams_seed"),
            "stage": self.job.role.stage,
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "host": getattr(self.holder, "host", None),
            "pid": getattr(self.holder, "pid", None),
            "slurm": getattr(self.holder, "slurm", None),
            "since": getattr(self.holder, "since", None),
            "images_per_second": self.images_per_second,
            "eta_seconds": self.eta,
            "exit_status": getattr(self.attempt, "status", None),
            "last_words": getattr(self.attempt, "last_words", None),
            "detail": self.detail,
            "diverged": self.diverged,
            "slurm_reason": self.slurm_reason or None,
        }


@dataclass(frozen=True)
class SweepState:
    """The states of all jobs of an output folder at one time.

    Attributes:
        output: output folder of the sweep.
        queue: launchers and queued jobs.
        statuses: state of each job, launched or not.
        search: search with stages, if any, with the chosen values once they are chosen.
        at: time of reading, in seconds since 1970.
    """

    output: Path
    queue: Queue
    statuses: Sequence[Status]
    search: Search | None = None
    at: float = field(default_factory=time.time)

    def in_state(self, *names: str) -> list[Status]:
        """Return the jobs that are in one of these states."""
        return [status for status in self.statuses if status.state in names]

    @property
    def is_moving(self) -> bool:
        """True if a job is running or queued."""
        return bool(self.in_state(RUNNING, QUEUED))

    def get_stage(self, stage: str) -> list[Status]:
        """Return the jobs of a search's stage CHOOSE or REPEAT."""
        return [status for status in self.statuses if status.job.role.stage == stage]

    @property
    def needs_second_launch(self) -> bool:
        """True if the first stage is done, but no process is about to launch the second."""
        if self.search is None or not self.search.is_choosing:
            return False
        if self.queue.live_launches or self.queue.slurm_states:
            return False
        first = self.get_stage(CHOOSE)
        return bool(first) and all(status.state == DONE for status in first)

    def as_dict(self) -> dict[str, Any]:
        """Return the output of ``carft sweep status --json``."""
        return {
            "output_dir": str(self.output),
            "at": self.at,
            "counts": count_by_state(self.statuses),
            "note": self.queue.note,
            "search": self._search_as_dict(),
            "jobs": [status.as_dict() for status in self.statuses],
        }

    def _search_as_dict(self) -> dict[str, Any] | None:
        if self.search is None:
            return None
        return {
            "first_stage": count_by_state(self.get_stage(CHOOSE)),
            "second_stage": count_by_state(self.get_stage(REPEAT)),
            "second_stage_jobs": self.search.repeats,
            "chosen": [dataclasses.asdict(chosen) for chosen in self.search.chosen],
            "needs_launch": self.needs_second_launch,
        }


def count_by_state(statuses: Iterable[Status]) -> dict[str, int]:
    """Count the jobs in each of STATES."""
    counter = Counter(status.state for status in statuses)
    return {state: counter[state] for state in STATES}


def read_state(output: AnyPath) -> SweepState:
    """Read the states of all jobs of a sweep's output folder.

    Args:
        output: output folder of the sweep; jobs that were not launched by a sweep count as well.

    Returns:
        The state of each job, the queue, and the progress of a search.

    Raises:
        CarftError: the folder does not exist, or its manifest cannot be read.
    """
    output = as_path(output)
    sweep, jobs = manifest.read_jobs(output)
    if sweep is None:
        return get_state(output, jobs, {})
    return get_state(output, jobs, sweep.datasets, sweep.search)


def get_state(
    output: Path, jobs: Iterable[Job], datasets: Mapping[str, Dataset], search: Search | None = None
) -> SweepState:
    """Read the states of these jobs; ``datasets`` are the facts of their manifest."""
    queue = read_queue(output)
    statuses = [get_status(job, datasets, queue) for job in jobs]
    return SweepState(output, queue, statuses, search)


def get_status(job: Job, datasets: Mapping[str, Dataset], queue: Queue | None = None) -> Status:
    """Read the present state of a job; ``datasets`` are the facts of its manifest."""
    folder = JobFolder(job.folder)
    steps = _get_declared_steps(job, datasets)
    holder = folder.get_holder()
    record = records.read_last_record(job.folder) or {}
    if folder.done:  # read after the lock, because a job is done shortly before it unlocks
        # Only the harness writes diverged_at; other checkouts write the loss.
        diverged = "diverged_at" in record or is_broken_loss("loss", record.get("loss"))
        return Status(job, DONE, steps or 0, steps, diverged=diverged)

    last_step = _parse_count(record.get("step"))
    step = 0 if last_step is None else int(last_step) + 1
    if holder is not None:
        return Status(
            job,
            RUNNING,
            step=step if holder.step is None else holder.step,
            steps=holder.steps or steps,
            holder=holder,
            # The first record times only the first step, which is slower than the others.
            step_seconds=_parse_count(record.get("step_time")) if last_step else None,
            detail=str(holder),
        )

    if failed := folder.get_final_failure():
        detail = attempt.describe_end(failed.status, failed.last_words)
        return Status(job, FAILED, step, steps, attempt=failed, detail=detail)
    if queue and job.folder in queue.positions:
        return Status(
            job,
            QUEUED,
            step=step,
            steps=steps,
            detail=queue.positions[job.folder],
            slurm_reason=queue.reasons.get(job.folder, ""),
        )
    return _status_of_idle_job(job, folder, step, steps)


def _status_of_idle_job(job: Job, folder: JobFolder, step: int, steps: int | None) -> Status:
    """Return the state of a job that is not done, failed, running or queued."""
    interrupted = functools.partial(Status, job, INTERRUPTED, steps=steps)
    if dead_holder := folder.get_last_holder():
        return interrupted(step=step, holder=dead_holder, detail=f"last run by {dead_holder}")

    if attempts := folder.read_attempts():
        last_attempt = attempts[-1]
        saved = max(step, last_attempt.step or 0)  # jobs save steps after the last record
        detail = attempt.describe_end(last_attempt.status, last_attempt.last_words)
        return interrupted(step=saved, attempt=last_attempt, detail=detail)

    if any((job.folder / name).exists() for name in (STATE, RECORDS, OUTPUT)):
        return interrupted(step=step, detail="started but not done")
    return Status(job, NOT_LAUNCHED, 0, steps)


def _get_declared_steps(job: Job, datasets: Mapping[str, Dataset]) -> int | None:
    """Return the steps in the job's arguments, or the dataset's default; None if unknown."""
    steps = job.args.get("steps")
    if isinstance(steps, int) and steps:
        return steps
    facts = datasets.get(str(job.args.get("dataset")))
    return facts.steps if facts else None


def _parse_count(value: Any) -> float | None:
    """Return a number of a record, or None if the value is not a plausible count."""
    return value if type(value) in (int, float) and 0 <= value < MAX_COUNT else None
