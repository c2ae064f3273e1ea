"""Rows on one step of an algorithm, at the batch, the model and the precision of its job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.doctor import Finding
from domainbed_carft.errors import is_out_of_memory
from domainbed_carft.machine import devices
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.prepared_job import Batch, RehearsedJob, quiet
from domainbed_carft.preflight.rows import (
    failed_row,
    passed_row,
    row_of_problem,
)
from domainbed_carft.sweep import host
from domainbed_carft.text import quantity

SECTION = "one step"

# How far a loss may be from that of the same step in float32 on the processor: nats, and a share of
# the loss if that is larger than one nat. bf16 has 8 bits, and CLIP multiplies cosines by 100.
TOLERANCES = {"bf16": 0.1, "off": 0.01}
COMPARED_PICTURES = 24  # of a batch: a processor needs seconds for each step of a ViT-B/16
_REFERENCE = {"amp": "off", "compile_blocks": False}

MOST_MEMORY = 0.95  # of the device; fragments take the rest

_FIX_LOSS = "set amp to 'off', and report this card and the versions above if that helps"
_FIX_GRADIENTS = "set amp to 'off' or a lower lr; a job would diverge at its first step"


@dataclass(frozen=True)
class MemoryUse:
    """What a step of a whole batch takes: bytes at most, and the micro-batch that it needs.

    ``micro_batch``: 0 where the batch fits as the job has it, None where nothing fits.
    """

    peak: int
    micro_batch: int | None


@dataclass
class TrainedStep:
    """An algorithm on the device with a batch of its job, ready to take steps."""

    prepared: RehearsedJob
    algorithm: Any
    batches: Sequence[Batch]

    @classmethod
    def of(cls, prepared: RehearsedJob) -> TrainedStep:
        """The algorithm of a prepared job, and the batch of one of its steps."""
        device = devices.default_device()
        with prepared.loaded_batches(device) as loaded, quiet():
            batches = loaded.step_batches()
        return cls(prepared, prepared.build_algorithm(device), batches)

    def take(self) -> Mapping[str, Tensor]:
        """Take a step; returns what it measured, as tensors on the device."""
        with quiet():
            return take_step(self.algorithm, self.batches)


def take_step(algorithm: Any, batches: Sequence[Batch]) -> Mapping[str, Tensor]:
    """A step as the harness takes it, also of an algorithm that has only ``update``.

    The first phase of LP-FT is passed over: the second one costs more.
    """
    if getattr(algorithm, "lp_steps", 0) > getattr(algorithm, "steps_taken", 0):
        algorithm.steps_taken = algorithm.lp_steps
    values: Mapping[str, Tensor] = host.module("lib.step_meters").step(algorithm, batches)
    return values


def loss_row(label: str, prepared: RehearsedJob) -> Finding:
    """Whether a step's loss is finite, and near that of float32 on the processor."""
    device = devices.default_device()
    with prepared.loaded_batches(device) as loaded:
        batches = first_pictures(loaded.step_batches(), COMPARED_PICTURES)

    loss = _loss_of(prepared.build_algorithm(device), batches)
    on_processor = [(pictures.cpu(), labels.cpu()) for pictures, labels in batches]
    reference_algorithm = prepared.build_algorithm(torch.device("cpu"), _REFERENCE)
    reference = _loss_of(reference_algorithm, on_processor)
    return judge_loss(label, loss, reference, prepared.precision)


def judge_loss(label: str, loss: float, reference: float, precision: str) -> Finding:
    """The row of a loss beside its ``reference``; ``precision``: a key of TOLERANCES."""
    tolerance = TOLERANCES[precision] * max(1.0, abs(reference))
    detail = (
        f"loss {loss:.4f} in {precision if precision != 'off' else 'float32'}; {reference:.4f} in "
        f"float32 on the processor, tolerance {tolerance:.3g}"
    )
    problem = ""
    if not math.isfinite(loss):
        problem = "the loss is not finite"
    elif not abs(loss - reference) <= tolerance:
        problem = "the loss is another on this device"
    name = f"{label}: loss"
    figures = {"loss": str(loss), "reference": str(reference), "tolerance": tolerance}
    return row_of_problem(SECTION, name, detail, problem, _FIX_LOSS, **figures)


def first_pictures(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Of each domain's batch the first pictures, in all ``count`` or one of each domain."""
    of_each = max(1, count // len(batches))
    return [(pictures[:of_each], labels[:of_each]) for pictures, labels in batches]


def gradients_row(label: str, algorithm: Any) -> Finding:
    """Whether all gradients of the step that was taken last are finite."""
    gradients = {
        name: parameter.grad
        for name, parameter in algorithm.named_parameters()
        if parameter.grad is not None
    }
    name = f"{label}: gradients"
    if not gradients:
        return passed_row(SECTION, name, "it trains nothing")

    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    detail = f"those of {quantity(len(gradients), 'tensor')}"
    problem = f"{len(broken)} are not finite, the first of {broken[0]}" if broken else ""
    return row_of_problem(SECTION, name, detail, problem, _FIX_GRADIENTS)


def weights_bytes(algorithm: Any) -> int:
    """The bytes of an algorithm's weights, as a file of them has them."""
    tensors = [value for value in algorithm.state_dict().values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_row(label: str, step: TrainedStep) -> tuple[Finding, MemoryUse]:
    """The peak memory of a step against the device's, and a micro-batch that fits."""
    total = job_device.total_memory()

    def peak_with(micro_batch: int) -> int:
        return _peak_of_steps(step, micro_batch)

    has_micro_batches = "micro_batch" in step.algorithm.hparams
    declared = step.algorithm.hparams.get("micro_batch", 0)
    batch = sum(len(labels) for _, labels in step.batches)
    sizes = [declared, *halves(declared or batch)] if has_micro_batches else [declared]
    use = find_micro_batch(sizes, peak_with, int(MOST_MEMORY * total))
    if has_micro_batches and use.micro_batch:
        step.algorithm.hparams["micro_batch"] = use.micro_batch
    return judge_memory(label, use, total, declared), use


def judge_memory(label: str, use: MemoryUse, total: int, declared: int) -> Finding:
    """The row of the memory that steps take, on a device with ``total`` bytes.

    ``declared``: the hparam micro_batch of the job.
    """
    name = f"{label}: memory"
    figures = {"peak_bytes": use.peak, "total_bytes": total, "micro_batch": use.micro_batch}
    if use.micro_batch is None:
        remedy = "set a smaller batch_size or clip_backbone, checkpoint_blocks, or a larger card"
        return failed_row(SECTION, name, "no micro-batch fits into the device", remedy, **figures)

    detail = f"{use.peak / 1e9:.2f} GB at most, of {total / 1e9:.1f} GB"
    if use.micro_batch == declared:
        return passed_row(SECTION, name, detail, **figures)
    problem = f"the batch does not fit; in micro-batches of {use.micro_batch}: {detail}"
    remedy = f"set the hparam micro_batch to {use.micro_batch}, which gives the same gradients"
    return failed_row(SECTION, name, problem, remedy, **figures)


def halves(size: int) -> Iterator[int]:
    """Smaller sizes to try: half of it, a quarter, and so on down to 1."""
    while size > 1:
        size = -(-size // 2)
        yield size


def find_micro_batch(
    sizes: Sequence[int], peak_with: Callable[[int], int], limit: int
) -> MemoryUse:
    """The first of ``sizes`` whose steps take at most ``limit`` bytes, by trying them.

    ``peak_with``: takes steps in such micro-batches and returns their peak in bytes; it may raise
    torch's error of too little memory.
    """
    for size in sizes:
        try:
            peak = peak_with(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue  # the next one begins by giving back what this one took
        if peak <= limit:
            return MemoryUse(peak, size)
    return MemoryUse(0, None)


def _peak_of_steps(step: TrainedStep, micro_batch: int) -> int:
    """The peak in bytes of two steps; the first one makes the optimizer's moments."""
    if "micro_batch" in step.algorithm.hparams:
        step.algorithm.hparams["micro_batch"] = micro_batch
    step.algorithm.zero_grad(set_to_none=True)
    job_device.begin_peak()
    step.take()
    step.take()
    job_device.wait()
    return job_device.peak_memory()


def _loss_of(algorithm: Any, batches: Sequence[Batch]) -> float:
    """The loss of the first step; of an algorithm that measures none 0."""
    torch.manual_seed(0)
    with quiet():
        values = take_step(algorithm, batches)
    return float(values["loss"]) if "loss" in values else 0.0
