"""Two processes that train a method together, and one that trains it alone, in float64."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.subject import (
    Inapplicable,
    Minibatches,
    Subject,
    file_of,
    find_classes,
    minibatches,
    take_step,
)
from domainbed_carft.method.algorithms import CLASSES

SIZE = 2
TIMEOUT = 120  # seconds
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from domainbed_carft.checks.processes import main; main(sys.argv[2:])"
)

Outcome = tuple[list[dict[str, float]], dict[str, Tensor]]


def train_whole(subject: Subject, process_group: Any = None) -> Outcome:
    """Train by whole batches, or by the slices of a process; what was measured, and the weights."""
    algorithm = subject.build_exact()
    algorithm.process_group = process_group
    measured = []
    with float64():
        for seed in range(algorithm.lp_steps + 3):
            batches = minibatches(seed, torch.float64)
            if process_group:
                batches = _sliced(batches, process_group)
            measured.append(take_step(algorithm, seed, batches))
        return measured, algorithm.state_dict()


def _sliced(batches: Minibatches, process_group: Any) -> Minibatches:
    return [
        (x[process_group.slice_of(len(x))], y[process_group.slice_of(len(y))]) for x, y in batches
    ]


def train_in_group(subject: Subject) -> Outcome:
    """Train by `SIZE` processes; what the first of them has measured, and its weights."""
    algorithm_class = subject.algorithm_class
    is_shipped = CLASSES.get(subject.name) is algorithm_class
    method = subject.name if is_shipped else file_of(algorithm_class)
    if not method:
        raise Inapplicable("its class is in no file that other processes could load")
    with tempfile.TemporaryDirectory(prefix="carft-check-") as folder:
        arguments = [method, subject.name, subject.as_json(), folder]
        command = [sys.executable, "-c", _CODE, json.dumps(sys.path), *arguments]
        children = [
            subprocess.Popen(
                [*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            for rank in range(SIZE)
        ]
        try:
            errors = [child.communicate(timeout=TIMEOUT)[1] for child in children]
        finally:
            for child in children:
                child.kill()
        for child, error in zip(children, errors):
            if child.returncode:
                lines = error.decode(errors="replace").splitlines() or ["it wrote no error"]
                raise AssertionError(f"a process of {SIZE} failed: {lines[-1]}")
        measured, state = torch.load(Path(folder) / "outcome.pt", weights_only=True)
        return measured, state


def main(arguments: list[str]) -> None:
    """Be one of the processes."""
    import torch.distributed as dist
    from domainbed.lib.process_group import ProcessGroup

    method, name, hparams, folder, rank = arguments
    classes = {found.__name__: found for found in find_classes(method)}
    subject = Subject(classes[name], json.loads(hparams))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=SIZE
    )
    outcome = train_whole(subject, ProcessGroup(int(rank), SIZE))
    if int(rank) == 0:
        torch.save(outcome, Path(folder) / "outcome.pt")
    dist.barrier()
    dist.destroy_process_group()
