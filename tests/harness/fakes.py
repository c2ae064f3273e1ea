"""Small algorithms for trying out the harness, and what is done with jobs of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from domainbed import algorithms
from domainbed.scripts import train


class Still(algorithms.Algorithm):
    """Learns nothing and draws no random number, so that its records depend on the data alone.

    The golden file train_run.json holds the records that upstream's train makes of it.
    """

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        sizes = [len(x) for x, _ in minibatches]
        return {"loss": float(sum(sizes)), "domains": float(len(sizes))}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2]


class LinearSGD(algorithms.Algorithm):
    """Logistic regression on the raw input, in training with noise on it."""

    def __init__(self, input_shape: Any, num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear = torch.nn.Linear(math.prod(input_shape), num_classes)
        self.optimizer = torch.optim.SGD(self.linear.parameters(), lr=hparams["lr"])

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        inputs = torch.cat([x for x, _ in minibatches])
        labels = torch.cat([y for _, y in minibatches])
        noisy = inputs + 0.1 * torch.randn_like(inputs)

        loss = torch.nn.functional.cross_entropy(self.trained_logits(noisy), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        values = {"loss": loss.item()}
        if unlabeled is not None:
            values["unlabeled"] = float(sum(map(len, unlabeled)))
        return values

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits


ALL = (Still, LinearSGD)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def comparable_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run without what differs between any two."""
    comparable = records(folder)
    for record in comparable:
        del record["step_time"], record["evaluation_time"]
        del record["args"]["output_dir"], record["args"]["workers"]
    return comparable


def quick_arguments(folder: Path, *flags: str) -> list[str]:
    """Arguments of a run of four records; `flags` go over them."""
    command = "--algorithm LinearSGD --dataset Debug28 --workers 0 --steps 7 --checkpoint_freq 2"
    return [*command.split(), "--hparams", '{"batch_size": 4}', "--output_dir", str(folder), *flags]


def start(arguments: list[str], begin: Callable[[], object] = int, **variables: str) -> BaseProcess:
    """A process of `train` that knows LinearSGD, with these variables, and calls `begin` first.

    It is a fork of a server that has taken no step: autograd refuses to work in the fork of a
    process that has computed gradients on a device, as tests before may have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "domainbed.scripts.train", "domainbed_carft.method"])
    environment = {**os.environ, **variables}
    process = context.Process(target=_train, args=(arguments, begin, environment))
    process.start()
    return process


def _train(arguments: list[str], begin: Callable[[], object], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    algorithms.LinearSGD = LinearSGD  # type: ignore[attr-defined]
    begin()
    sys.exit(train.main(arguments))


def status(process: BaseProcess) -> int | None:
    """The exit status of a process, once it has ended; None if it had to be killed."""
    process.join(timeout=300)
    exit_status = process.exitcode
    process.kill()
    return exit_status


@contextlib.contextmanager
def before_step(number: int, action: Callable[[], object]) -> Iterator[None]:
    """While this lasts, LinearSGD calls an action before its step of this number, from 1."""
    original = LinearSGD.update
    steps = itertools.count(1)

    def update(self: LinearSGD, *args: Any) -> dict[str, float]:
        if next(steps) == number:
            action()
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearSGD, "update", update)
        yield


def stop_in_step(number: int) -> contextlib.AbstractContextManager[None]:
    """While this lasts, LinearSGD's process gets SIGTERM in its step of this number."""
    return before_step(number, lambda: os.kill(os.getpid(), signal.SIGTERM))
