"""Two processes that train a method together, and one that trains it alone, in float64."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.subject import (
    Inapplicable,
    Subject,
    file_of,
    find_classes,
    gradients_of,
    minibatches,
    take_step,
)
from domainbed_carft.method.algorithms import CLASSES

SIZE = 2
TIMEOUT = 300  # seconds
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from domainbed_carft.checks.processes import main; main(*sys.argv[2:])"
)


def train_whole(subject: Subject, process_group: Any = None) -> dict[str, Any]:
    """Train by whole batches, or a process's slices: what each step measures, the last gradient."""
    algorithm = subject.build_exact()
    algorithm.process_group = process_group
    outcome: dict[str, Any] = {}
    with float64():
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            if process_group:
                share = process_group.get_slice(len(batches[0][0]))
                batches = [(x[share], y[share]) for x, y in batches]
            outcome[f"step {seed}"] = take_step(algorithm, seed, batches)
    # Not the weights: AdamW takes the rounding of gradients that are 0 for gradients.
    return {**outcome, "the gradient": gradients_of(algorithm)}


def train_in_group(subject: Subject) -> dict[str, Any]:
    """Train by `SIZE` processes, and return what the first of them returns.

    Raises AssertionError if one of them fails, and Inapplicable for a class in a notebook.
    """
    is_shipped = CLASSES.get(subject.name) is subject.algorithm_class
    method = subject.name if is_shipped else file_of(subject.algorithm_class)
    if not method:
        raise Inapplicable("its class is in no file that other processes could load")

    with tempfile.TemporaryDirectory(prefix="carft-check-") as folder:
        arguments = [method, subject.name, json.dumps(subject.given_hparams), folder]
        command = [sys.executable, "-c", _CODE, json.dumps(sys.path), *arguments]
        pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        children = [subprocess.Popen([*command, str(rank)], **pipes) for rank in range(SIZE)]
        try:
            errors = [child.communicate(timeout=TIMEOUT)[1] for child in children]
        finally:
            for child in children:
                child.kill()
        for child, error in zip(children, errors):
            if child.returncode:
                raise AssertionError(f"one of {SIZE} processes ended with {error.strip()[-300:]}")
        return torch.load(Path(folder) / "outcome.pt", weights_only=True)


def main(method: str, name: str, hparams: str, folder: str, rank: str) -> None:
    """Be one of the processes."""
    import torch.distributed as dist
    from domainbed.lib.process_group import ProcessGroup

    torch.set_num_threads(1)
    classes = {found.__name__: found for found in find_classes(method)}
    meeting_place = f"file://{folder}/meeting_place"
    dist.init_process_group("gloo", meeting_place, rank=int(rank), world_size=SIZE)
    outcome = train_whole(
        Subject(classes[name], json.loads(hparams)), ProcessGroup(int(rank), SIZE)
    )
    if int(rank) == 0:
        torch.save(outcome, Path(folder) / "outcome.pt")
    dist.barrier()
    dist.destroy_process_group()
