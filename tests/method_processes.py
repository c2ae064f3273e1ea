"""Train a method in two processes together, and in one process alone, in float64."""

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
    find_classes,
    find_file,
    get_gradients,
    minibatches,
    take_step,
)
from domainbed_carft.method.algorithms import CLASSES

SIZE = 2
TIMEOUT = 300  # seconds
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from method_processes import main; main(*sys.argv[2:])"
)


def train(subject: Subject, process_group: Any = None) -> dict[str, Any]:
    """Train in this process; return the measurements of each step and the last gradient.

    With a ``process_group``, each batch is replaced by the slice of this process.
    """
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
    # Not the weights: AdamW would scale up the rounding errors of gradients that are 0.
    return {**outcome, "the gradient": get_gradients(algorithm)}


def train_in_processes(subject: Subject) -> dict[str, Any]:
    """Train in `SIZE` processes, and return the outcome of the first process.

    Raises AssertionError if a process fails, and Inapplicable for a class defined in a notebook.
    """
    if CLASSES.get(subject.name) is subject.algorithm_class:
        method = subject.name
    else:
        method = find_file(subject.algorithm_class)
    if not method:
        raise Inapplicable("its class is not defined in a file that other processes can load")

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
                raise AssertionError(f"one of {SIZE} processes failed: {error.strip()[-300:]}")
        return torch.load(Path(folder) / "outcome.pt", weights_only=True)


def main(method: str, name: str, hparams: str, folder: str, rank: str) -> None:
    """Train as one of the processes, and save the outcome if it is the first one."""
    import torch.distributed as dist
    from domainbed.lib.process_group import ProcessGroup

    torch.set_num_threads(1)
    classes = {algorithm.__name__: algorithm for algorithm in find_classes(method)}
    meeting_place = f"file://{folder}/meeting_place"
    dist.init_process_group("gloo", meeting_place, rank=int(rank), world_size=SIZE)
    outcome = train(Subject(classes[name], json.loads(hparams)), ProcessGroup(int(rank), SIZE))
    if int(rank) == 0:
        torch.save(outcome, Path(folder) / "outcome.pt")
    dist.barrier()
    dist.destroy_process_group()
