"""The steps of a job in this process, prepared as `train` does: their memory and their speeds."""

from __future__ import annotations

import argparse
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
from domainbed_carft.sweep import host

if TYPE_CHECKING:
    from domainbed.lib.job_batches import JobBatches
    from domainbed.lib.training import Trainer

SECONDS = 3.0  # that each speed is measured for, on a GPU
SECONDS_ON_PROCESSOR = 0.7
_MAX_STEPS = 200
_NEVER = 2**40  # a step that no rehearsal reaches

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what the kernel takes for it


def prepare(
    job: Job, variables: Mapping[str, str], folder: Path, targets: Sequence[int] | None = None
) -> Trainer:
    """Build the trainer of a job: check its arguments, load its data, build its algorithm.

    ``variables``: the process variables that its launcher gives it, which stay set. ``folder``:
    takes the place of the job's. ``targets``: take the place of its test environments. Raises what
    `train` would.
    """
    os.environ.update(variables)
    train_arguments = host.import_module("lib.train_arguments")
    preparation = host.import_module("lib.preparation")
    words = Job({**job.args}, folder).command[3:]  # after python -m domainbed.scripts.train
    args = train_arguments.build_parser().parse_args(words)
    unrecorded = {name: vars(args).pop(name) for name in train_arguments.UNRECORDED_FLAGS}
    with quiet():
        overrides = train_arguments.check(args, argparse.Namespace(**unrecorded))
        hparams = preparation.choose_hparams(args, overrides)
        args.steps = args.checkpoint_freq = _NEVER
        if targets is not None:
            args.test_envs = [*targets]
        prepared = preparation.prepare(args, hparams, memory_limit=0)
        stop = host.import_module("lib.stopping").StopSignals()
        trainer: Trainer = host.import_module("lib.training").Trainer(
            prepared, None, stop, lock=None
        )
    return trainer


@contextlib.contextmanager
def loaded_batches(trainer: Trainer, evaluates: bool = False) -> Iterator[JobBatches]:
    """The batches of a trainer's steps, by its loaders; with ``evaluates``, an evaluation first."""
    batches = trainer.batches
    batches.begin(
        step=1,  # there is an evaluation after step 0
        pending=evaluates,
        once=False,
        workers=trainer.n_workers,
        images=trainer.images,
    )
    with contextlib.closing(batches), quiet():
        yield batches


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what jobs print on standard output is dropped: the rows say what matters."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@dataclass(frozen=True)
class StepMeasures:
    """The steps of a job: loss of the first, peak memory in bytes, and speeds in images/s.

    ``steps``: steps alone; ``with_loading``: steps with their loading; ``predictions``: evaluation
    without loading.
    """

    loss: float
    peak_memory: int
    steps: float
    with_loading: float
    predictions: float

    def training_seconds(self, measured_on: float, loading: float) -> float:
        """Seconds for each image that is trained on.

        The slower of loading and steps counts, and by how much both together were slower than it on
        the dataset on which they were measured. ``measured_on`` and ``loading``: images/s that the
        loaders of that dataset and of the job's deliver.
        """
        overlap = min(self.steps, measured_on) / self.with_loading
        return max(1.0, overlap) / min(self.steps, loading)

    def evaluation_seconds(self, loading: float) -> float:
        """Seconds for each image that is evaluated: the slower of loading and predictions."""
        return 1 / min(self.predictions, loading)


def measure_loading(trainer: Trainer) -> float:
    """The images/s that the loaders of a job deliver."""
    with loaded_batches(trainer) as batches:
        return _speed(batches.step_batches, _images_per_step(trainer), _read_ahead(trainer))


def measure_steps(trainer: Trainer) -> StepMeasures:
    """Take steps of a job at its own batch, model and precision."""
    algorithm: Any = trainer.algorithm
    if hasattr(algorithm, "lp_steps"):  # the second phase of LP-FT costs more than the first
        algorithm.steps_taken = algorithm.lp_steps
    step: Callable[..., Mapping[str, torch.Tensor]] = host.import_module("lib.step_meters").step
    images_per_step = _images_per_step(trainer)

    with loaded_batches(trainer) as batches:
        batch = batches.step_batches()
        begin_peak()
        loss = float(step(algorithm, batch).get("loss", 0.0))
        step(algorithm, batch)  # the first one made the optimizer's moments
        peak = peak_memory()
        with_loading = _speed(
            lambda: step(algorithm, batches.step_batches()), images_per_step, _read_ahead(trainer)
        )

    images = torch.cat([images for images, _ in batch])
    with quiet():
        steps = _speed(lambda: step(algorithm, batch), images_per_step)
        algorithm.eval()
        with torch.no_grad():
            predictions = _speed(lambda: algorithm.predict(images), images_per_step)
    return StepMeasures(loss, peak, steps, with_loading, predictions)


def _images_per_step(trainer: Trainer) -> int:
    return len(trainer.job.training_envs) * int(trainer.hparams["batch_size"])


def _read_ahead(trainer: Trainer) -> int:
    """Steps whose batches the loader processes have ready at the beginning, and one more."""
    return -(-2 * trainer.n_workers // len(trainer.job.training_envs)) + 1


def _speed(action: Callable[[], object], images: int, warm_up: int = 1) -> float:
    """The images/s of an action on so many, repeated for some seconds after its warm-up."""
    device = devices.default_device()
    seconds = SECONDS if devices.is_gpu(device) else SECONDS_ON_PROCESSOR
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
    """Bytes that a job may use: the GPU's, or those of this process's machine or cgroup."""
    has_gpu = devices.is_gpu(devices.default_device())
    return devices.gpu_facts().memory if has_gpu else machine.memory()


def begin_peak() -> None:
    """Forget the memory used so far, for `peak_memory`."""
    devices.begin_peak_memory(devices.default_device())
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def peak_memory() -> int:
    """Bytes in use at most since `begin_peak`: of tensors on the GPU, or of this process."""
    device = devices.default_device()
    if devices.is_gpu(device):
        return devices.peak_memory(device)
    kilobytes = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
    return int(kilobytes[1]) * 1024 if kilobytes else 0
