"""Small algorithms for tests of the harness, and helpers for jobs of these algorithms."""

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
    """Learns nothing and draws no random numbers, so its records depend on the data only.

    The golden file train_run.json contains the records of this algorithm from upstream's `train`.
    """

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        sizes = [len(x) for x, _ in minibatches]
        return {"loss": float(sum(sizes)), "domains": float(len(sizes))}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2]


class LinearSGD(algorithms.Algorithm):
    """Logistic regression on the raw input, with added noise in training."""

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
    """Read the records of a job."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def comparable_records(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a job without values that differ between any two jobs."""
    comparable = records(folder)
    for record in comparable:
        del record["step_time"], record["evaluation_time"]
        del record["args"]["output_dir"], record["args"]["workers"]
    return comparable


def quick_arguments(folder: Path, *flags: str) -> list[str]:
    """Return arguments of `train` for a short job with four records; `flags` override them."""
    command = "--algorithm LinearSGD --dataset Debug28 --workers 0 --steps 7 --checkpoint_freq 2"
    return [*command.split(), "--hparams", '{"batch_size": 4}', "--output_dir", str(folder), *flags]


def start_train(
    arguments: list[str], begin: Callable[[], object] = int, **variables: str
) -> BaseProcess:
    """Start a process of `train` that has LinearSGD and these variables, and calls `begin` first.

    The process is forked from a server that has taken no step: autograd does not work in the fork
    of a process that has computed gradients on a device, as earlier tests can have done.
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


def wait_for(process: BaseProcess) -> int | None:
    """Wait for a process and return its exit status; after 300 s kill it and return None."""
    process.join(timeout=300)
    exit_status = process.exitcode
    process.kill()
    return exit_status


@contextlib.contextmanager
def before_step(number: int, action: Callable[[], object]) -> Iterator[None]:
    """Call an action before LinearSGD's step of this number, counted from 1."""
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
    """Send SIGTERM to this process in LinearSGD's step of this number."""
    return before_step(number, lambda: os.kill(os.getpid(), signal.SIGTERM))


def assert_same_outcome(folder: Path, expected_folder: Path) -> None:
    """Assert that both jobs are done, with bit-identical records and weights."""
    assert comparable_records(folder) == comparable_records(expected_folder)
    for name in ("model.pkl", "model_best.pkl"):
        content, expected = (
            torch.load(path / name, weights_only=True) for path in (folder, expected_folder)
        )
        assert content.get("best_step") == expected.get("best_step")
        weights, expected_weights = content["model_dict"], expected["model_dict"]
        assert weights.keys() == expected_weights.keys()
        assert all(torch.equal(weights[key], expected_weights[key]) for key in weights)

    file_names = {path.name for path in folder.iterdir()}
    assert file_names == {path.name for path in expected_folder.iterdir()}
    assert not {"state.pt", "lock"} & file_names
