"""Measure memory and speed of a job's steps, prepared in this process as `train` does it."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from domainbed_carft import machine
from domainbed_carft.jobs.job import Job
from domainbed_carft.machine import devices

if TYPE_CHECKING:
    from domainbed.lib.fast_data_loader import JobBatches
    from domainbed.lib.training import Trainer

SECONDS = 3.0  # duration of each measurement on a GPU
SECONDS_ON_CPU = 0.7
_MAX_STEPS = 200
_NEVER = 2**40  # a step that no preflight reaches

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # the kernel's code for resetting the peak


def prepare(
    job: Job, variables: Mapping[str, str], folder: Path, targets: Sequence[int] | None = None
) -> Trainer:
    """Build the trainer of a job: check its arguments, load its data, build its algorithm.

    Raises the same errors as `train`.

    Args:
        job: the job.
        variables: environment variables that its launcher sets; they remain set.
        folder: folder to use instead of the job's own.
        targets: environments to use instead of the job's test environments.
    """
    from domainbed.lib import preparation, stopping, train_arguments, training

    os.environ.update(variables)
    # The words after python -m domainbed.scripts.train
    args, flags = train_arguments.parse(Job(job.args, folder).command[3:])
    with quiet():
        hparams = train_arguments.check(args, flags)
        args.steps = args.checkpoint_freq = _NEVER
        if targets is not None:
            args.test_envs = [*targets]
        prepared = preparation.prepare(args, hparams.values, memory_limit=0)
        return training.Trainer(prepared, None, stopping.StopSignals(), lock=None)


@contextlib.contextmanager
def loaded_batches(trainer: Trainer, evaluates: bool = False) -> Iterator[JobBatches]:
    """Load the batches of a trainer's steps, after an evaluation's if ``evaluates``."""
    batches = trainer.batches
    batches.begin(
        step=1,  # an evaluation follows step 0
        pending=evaluates,
        once=False,
        workers=trainer.n_workers,
    )
    with contextlib.closing(batches), quiet():
        yield batches


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what jobs print on standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@dataclass(frozen=True)
class StepMeasures:
    """Measurements of a job's steps."""

    loss: float  # of the first step
    peak_memory: int  # bytes
    steps: float  # images/s of steps without loading
    with_loading: float  # images/s of steps with loading
    predictions: float  # images/s of an evaluation without loading

    def training_seconds(self, reference_loading: float, loading: float) -> float:
        """Return the seconds per training image.

        The slower of loading and steps counts, multiplied by the slowdown that was measured when
        both ran at the same time.

        Args:
            reference_loading: images/s of the loaders of the dataset used for the measurement.
            loading: images/s of the loaders of the job's dataset.
        """
        overlap = min(self.steps, reference_loading) / self.with_loading
        return max(1.0, overlap) / min(self.steps, loading)

    def evaluation_seconds(self, loading: float) -> float:
        """Return the seconds per evaluated image: the slower of loading and predicting."""
        return 1 / min(self.predictions, loading)


def measure_loading(trainer: Trainer) -> float:
    """Measure the images/s of a job's loaders."""
    with loaded_batches(trainer) as batches:
        return _speed(batches.step_batches, _images_per_step(trainer), _read_ahead(trainer))


def measure_steps(trainer: Trainer) -> StepMeasures:
    """Measure steps of a job with its batch size, model and precision."""
    from domainbed.lib.step_meters import find_step

    algorithm: Any = trainer.algorithm
    if hasattr(algorithm, "lp_steps"):  # the second phase of LP-FT costs more
        algorithm.steps_taken = algorithm.lp_steps
    images_per_step = _images_per_step(trainer)
    step = find_step(algorithm)

    with loaded_batches(trainer) as batches:
        batch = batches.step_batches()
        reset_peak_memory()
        loss = float(step(batch).get("loss", 0.0))
        step(batch)  # the first step allocates the optimizer's moments
        peak = peak_memory()
        with_loading = _speed(
            lambda: step(batches.step_batches()), images_per_step, _read_ahead(trainer)
        )

    images = torch.cat([images for images, _ in batch])
    with quiet():
        steps = _speed(lambda: step(batch), images_per_step)
        algorithm.eval()
        with torch.no_grad():
            predictions = _speed(lambda: algorithm.predict(images), images_per_step)
    return StepMeasures(loss, peak, steps, with_loading, predictions)


def _images_per_step(trainer: Trainer) -> int:
    return len(trainer.job.training_envs) * int(trainer.hparams["batch_size"])


def _read_ahead(trainer: Trainer) -> int:
    """Return the number of steps with prefetched batches, and one more."""
    return -(-2 * trainer.n_workers // len(trainer.job.training_envs)) + 1


def _speed(action: Callable[[], object], images: int, warm_up: int = 1) -> float:
    """Measure the images/s of an action on ``images`` images, repeated for some seconds."""
    device = devices.default_device()
    seconds = SECONDS if devices.is_gpu(device) else SECONDS_ON_CPU
    for _ in range(warm_up):
        action()
    devices.wait_for(device)

    started = time.monotonic()
    for count in itertools.count(1):
        action()
        if count >= _MAX_STEPS or time.monotonic() - started >= seconds:
            break
    devices.wait_for(device)
    return count * images / (time.monotonic() - started)


def total_memory() -> int:
    """Return the bytes available to a job: on the GPU, or on this machine or in its cgroup."""
    if devices.is_gpu(devices.default_device()):
        return devices.gpu_facts().memory
    return machine.memory()


def reset_peak_memory() -> None:
    """Start a new measurement of `peak_memory`."""
    devices.reset_peak_memory(devices.default_device())
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def peak_memory() -> int:
    """Return the peak bytes since `reset_peak_memory`, of the GPU's tensors or of this process."""
    device = devices.default_device()
    if devices.is_gpu(device):
        return devices.peak_memory(device)
    kilobytes = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
    return int(kilobytes[1]) * 1024 if kilobytes else 0
