"""How fast a running job is, and how long it still takes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from domainbed_carft.jobs.folder import Holder, JobFolder
from domainbed_carft.sweep import names, output
from domainbed_carft.sweep.jobs import Job


class Rate(NamedTuple):
    """Steps done, pictures trained on a second, seconds left; None where that is not known."""

    step: int
    pictures_per_second: float | None
    eta: float | None


def measure(job: Job, holder: Holder, steps: int | None) -> Rate:
    """From what the job writes into its lock and its records.

    A first attempt is timed by the clock, evaluation included; one that went on from a state, or a
    job of a domainbed that leaves the lock alone, by the last record's mean time of a step, which
    leaves evaluation out.
    """
    record = output.last_record(job.folder)
    step = holder.step if holder.step is not None else int(record["step"]) + 1 if record else 0
    pace, trained = _by_the_clock(job, holder, step), _by_the_record(record)
    # Faster than training alone: it did not begin with the first step after all.
    if pace is None or (trained and pace < trained):
        pace = trained
    if not pace:
        return Rate(step, None, None)
    pictures = holder.pictures_per_step or _pictures_per_step(job, record)
    per_second = pictures / pace if pictures else None
    return Rate(step, per_second, None if steps is None else max(0.0, (steps - step) * pace))


def _by_the_clock(job: Job, holder: Holder, step: int) -> float | None:
    """Seconds a step since this attempt began, if it began with the first step."""
    if holder.step is None or step < 1 or JobFolder(job.folder).attempts():
        return None
    elapsed = (holder.updated or time.time()) - holder.since
    return elapsed / step if elapsed > 0 else None


def _by_the_record(record: dict[str, Any] | None) -> float | None:
    found = record.get("step_time") if record else None
    return float(found) if isinstance(found, (int, float)) and found > 0 else None


def _pictures_per_step(job: Job, record: dict[str, Any] | None) -> int | None:
    name = str(job.train_args["dataset"])
    size = record.get("hparams", {}).get("batch_size") if record else None
    if not isinstance(size, int) or not names.is_known(name):
        return None
    return size * training_environments(job)


def training_environments(job: Job) -> int:
    """How many environments a job trains on."""
    labels = names.dataset(str(job.train_args["dataset"])).labels
    return len(labels) - len(job.train_args["test_envs"])
