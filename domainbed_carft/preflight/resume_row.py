"""The row on resuming: a job that is stopped half-way and resumed ends as the undisturbed one."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.jobs.splits import EnvironmentSplits
from domainbed_carft.machine import devices
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.prepared_job import PreparedJob, quiet
from domainbed_carft.preflight.rows import Row, row_of_problem
from domainbed_carft.sweep import host

SECTION = "resume"
STEPS = 6
STOPPED_AFTER = 3  # between the checkpoints after steps 0 and 4
CHECKPOINT_FREQ = 4
EVALUATED_PICTURES = 16  # of each split

# Of the way that training moves the weights. Kernels of a GPU add up in any order, and Adam's first
# steps are as large for a small gradient as for a large one.
GPU_TOLERANCE = 0.1

_REMEDY = "report it with the versions above; without resuming, launch jobs that fit their limit"


@dataclass(frozen=True)
class Outcome:
    """The weights of a short job at its end by name, and the bytes of its state and weights."""

    weights: Mapping[str, Tensor]
    state_bytes: int
    weights_bytes: int


def resume_row(label: str, prepared: PreparedJob, folder: Path) -> tuple[Row, Outcome]:
    """Train a short job twice in ``folder``, once stopped and resumed, and compare the weights."""
    untrained = tensors_of(prepared.build_algorithm(devices.default_device()))
    undisturbed = _train(prepared, folder / "undisturbed")
    with contextlib.suppress(host.module("lib.stopping").Stopped):
        _train(prepared, folder / "resumed", stopped_after=STOPPED_AFTER)
    state_bytes = _size(folder / "resumed" / "state.pt")
    resumed = _train(prepared, folder / "resumed")

    distance = relative_distance(resumed, undisturbed, untrained)
    outcome = Outcome(undisturbed, state_bytes, _size(folder / "undisturbed" / "model.pkl"))
    return judge(label, distance, is_on_gpu=job_device.has_gpu()), outcome


def judge(label: str, distance: float, is_on_gpu: bool) -> Row:
    """The row of a relative `distance` between the weights of the two jobs."""
    tolerance = GPU_TOLERANCE if is_on_gpu else 0.0
    detail = f"stopped after {STOPPED_AFTER} of {STEPS} steps and resumed: {phrase(distance)}"
    detail += f"; tolerance {tolerance:.0%}"
    problem = "" if distance <= tolerance else "a resumed job is another one"
    figures = {"distance": str(distance), "tolerance": tolerance}
    return row_of_problem(SECTION, label, detail, problem, _REMEDY, **figures)


def phrase(distance: float) -> str:
    """A relative distance between weights, in words."""
    if distance == 0:
        return "the same weights to the bit"
    return f"weights that differ by {distance:.2%} of the way that training moved them"


def relative_distance(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], untrained: Mapping[str, Tensor]
) -> float:
    """How far weights are from those ``expected``, as a share of how far these have moved.

    0 if both are equal to the bit; infinity where names differ, or nothing has moved.
    """
    if weights.keys() != expected.keys():
        return math.inf
    if all(torch.equal(weights[name], expected[name]) for name in expected):
        return 0.0

    moved = _distance(expected, untrained)
    return _distance(weights, expected) / moved if moved else math.inf


def _distance(weights: Mapping[str, Tensor], origin: Mapping[str, Tensor]) -> float:
    """The Euclidean distance over all tensors of numbers with a fraction; NaN is infinity."""
    squares = [
        float((weights[name].double() - origin[name].double()).square().sum())
        for name in weights
        if weights[name].is_floating_point() and name in origin
    ]
    distance = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.inf
    return distance


def _train(
    prepared: PreparedJob, folder: Path, stopped_after: int | None = None
) -> dict[str, Tensor]:
    """Train the short job, from its state if there is one; returns the weights at its end.

    Raises the harness's Stopped, with the state saved, after ``stopped_after`` steps.
    """
    folder.mkdir(exist_ok=True)
    prepared.seed()
    with quiet():
        run = host.module("lib.training").Run(
            args=_short_arguments(prepared, folder),
            hparams=prepared.hparams,
            dataset=prepared.dataset,
            environments=[
                _shortened(splits, is_target=number in prepared.args.test_envs)
                for number, splits in enumerate(prepared.environments)
            ],
            state=host.module("lib.resume").load(str(folder)),
            stop=host.module("lib.stopping").StopSignals(),
            lock=None,
            pictures=prepared.pictures,
        )
        if stopped_after is not None:
            _stop_after(run, stopped_after)
        run.train()
    return tensors_of(run.algorithm)


def _stop_after(run: Any, steps: int) -> None:
    """Have a signal come to the harness's ``run`` before it takes its next step after so many."""
    stopped = host.module("lib.stopping").Stopped

    def check() -> None:
        if run.steps_done == steps:
            raise stopped("the rehearsal")

    run.stop.check = check


def _short_arguments(prepared: PreparedJob, folder: Path) -> argparse.Namespace:
    """The job's arguments, but for its folder and the number of steps."""
    changes = {
        "output_dir": str(folder),
        "steps": STEPS,
        "checkpoint_freq": CHECKPOINT_FREQ,
        "keep_weights": "last",
        "skip_model_save": False,
        "save_model_every_checkpoint": False,
        "skip_training_in_splits": True,
    }
    return argparse.Namespace(**{**vars(prepared.args), **changes})


def _shortened(splits: EnvironmentSplits, is_target: bool) -> EnvironmentSplits:
    """An environment with few pictures in the splits that are evaluated."""
    subset = host.module("lib.misc").SplitDataset

    def first(split: Any) -> Any:
        return subset(split, range(min(len(split), EVALUATED_PICTURES)))

    in_split = first(splits.in_split) if is_target else splits.in_split
    return EnvironmentSplits(in_split, first(splits.out_split), splits.uda_split)


def tensors_of(algorithm: Any) -> dict[str, Tensor]:
    """A copy of the tensors of an algorithm's state dict, on the processor."""
    return {
        name: value.detach().cpu().clone()
        for name, value in algorithm.state_dict().items()
        if isinstance(value, Tensor)
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
