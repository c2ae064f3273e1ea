"""How fast a job loads pictures, takes steps and evaluates, and what bounds it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from domainbed_carft.doctor import Finding
from domainbed_carft.machine import devices
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.prepared_job import RehearsedJob, quiet
from domainbed_carft.preflight.rows import passed_row, warning_row
from domainbed_carft.preflight.step_rows import TrainedStep

SECTION = "speed and cost"

SECONDS = 3.0  # that each speed is measured for, on a GPU
SECONDS_ON_PROCESSOR = 0.7
MOST_STEPS = 200
# Loading slower than this share of the steps bounds the job.
_LOADING_BOUNDS = 0.95


@dataclass(frozen=True)
class StepSpeed:
    """Pictures a second of steps alone, of steps with loading, and of predictions."""

    steps: float
    with_loading: float
    predictions: float
    pictures_per_step: int


def measuring_seconds() -> float:
    """How long each speed is measured."""
    return SECONDS if job_device.has_gpu() else SECONDS_ON_PROCESSOR


def measure_loading(prepared: RehearsedJob, seconds: float) -> float:
    """Pictures a second that the loaders of a prepared job deliver."""
    with prepared.loaded_batches(devices.default_device()) as batches, quiet():
        n_steps, seconds_taken = _repeat(
            batches.step_batches, seconds, MOST_STEPS, warm_up=_read_ahead(prepared)
        )
    return n_steps * prepared.pictures_per_step / seconds_taken


def measure_steps(step: TrainedStep, seconds: float) -> StepSpeed:
    """The speeds of an algorithm with a batch on the device."""
    prepared = step.prepared
    pictures_per_step = sum(len(labels) for _, labels in step.batches)
    n_steps, seconds_taken = _repeat(step.take, seconds, MOST_STEPS)
    steps = n_steps * pictures_per_step / seconds_taken

    with prepared.loaded_batches(devices.default_device()) as batches:

        def load_and_take() -> None:
            with quiet():
                step.batches = batches.step_batches()
            step.take()

        n_steps, seconds_taken = _repeat(load_and_take, seconds, MOST_STEPS, _read_ahead(prepared))
    with_loading = n_steps * pictures_per_step / seconds_taken

    return StepSpeed(
        steps=steps,
        with_loading=with_loading,
        predictions=_prediction_speed(step, seconds),
        pictures_per_step=pictures_per_step,
    )


@torch.no_grad()
def _prediction_speed(step: TrainedStep, seconds: float) -> float:
    """Pictures a second that the algorithm classifies, in batches of a step's size."""
    pictures = torch.cat([pictures for pictures, _ in step.batches])
    step.algorithm.eval()
    with quiet():
        n_batches, seconds_taken = _repeat(
            lambda: step.algorithm.predict(pictures), seconds, MOST_STEPS
        )
    step.algorithm.train()
    return n_batches * len(pictures) / seconds_taken


def _read_ahead(prepared: RehearsedJob) -> int:
    """Steps whose batches the loader processes have ready at the beginning, and one more."""
    return -(-2 * prepared.worker_count // max(1, len(prepared.job.training_envs))) + 1


def _repeat(
    action: Callable[[], object], seconds: float, most_often: int, warm_up: int = 1
) -> tuple[int, float]:
    """Repeat an action for some seconds, at most ``most_often`` times.

    Returns how often, and the seconds that it took. It is done ``warm_up`` times before, which does
    not count.
    """
    for _ in range(warm_up):
        action()
    job_device.wait()

    started = time.monotonic()
    for count in itertools.count(1):
        action()
        if count >= most_often or time.monotonic() - started >= seconds:
            break
    job_device.wait()
    return count, time.monotonic() - started


def loading_row(prepared: RehearsedJob, loading: float) -> Finding:
    """The row of a data set's loaders, which deliver ``loading`` pictures a second."""
    workers = prepared.worker_count or "no"
    detail = f"{loading:,.0f} pictures a second from files, by {workers} loader processes"
    name = f"loading {Path(prepared.job.args.dataset).name}"
    return passed_row(SECTION, name, detail, files=loading)


def speed_row(label: str, speed: StepSpeed, loading: float) -> Finding:
    """The row of an algorithm's steps, and what bounds its job."""
    is_bound_by_loading = loading < _LOADING_BOUNDS * speed.steps
    device = "the GPU" if job_device.has_gpu() else "the processor"
    bound = "loading" if is_bound_by_loading else device
    detail = (
        f"{speed.steps:,.0f} pictures a second in steps alone, {speed.with_loading:,.0f} with "
        f"loading, {speed.predictions:,.0f} in evaluation; {bound} bounds it"
    )
    name = f"{label}: speed"
    figures = {**vars(speed), "bound": bound}
    if not is_bound_by_loading:
        return passed_row(SECTION, name, detail, **figures)
    remedy = "give the job more cores, and copy the data to a local disk"
    return warning_row(SECTION, name, detail, remedy, **figures)
