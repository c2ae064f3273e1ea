"""Train methods in two processes together, and in one process alone, in float64."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.subject import Subject, get_gradients, minibatches, take_step

SIZE = 2
TIMEOUT = 300  # seconds
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from method_processes import main; main(*sys.argv[2:])"
)

Outcome = dict[str, Any]


def train(subject: Subject, process_group: Any = None) -> Outcome:
    """Train in this process; return the measurements of each step and the last gradient.

    With a ``process_group``, each batch is replaced by the slice of this process.
    """
    algorithm = subject.build_exact()
    algorithm.process_group = process_group
    outcome: Outcome = {}
    with float64():
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            if process_group:
                share = process_group.get_slice(len(batches[0][0]))
                batches = [(x[share], y[share]) for x, y in batches]
            outcome[f"step {seed}"] = take_step(algorithm, seed, batches)
    # Not the weights: AdamW would scale up the rounding errors of gradients that are 0.
    return {**outcome, "the gradient": get_gradients(algorithm)}


def train_in_processes(subjects: Mapping[str, Subject]) -> dict[str, Outcome]:
    """Train each subject in the same `SIZE` processes, and return the outcomes of the first one."""
    described = {
        name: (subject.algorithm_class.__module__, subject.name, subject.given_hparams)
        for name, subject in subjects.items()
    }
    with tempfile.TemporaryDirectory(prefix="carft-processes-") as folder:
        arguments = [json.dumps(sys.path), json.dumps(described), folder]
        command = [sys.executable, "-c", _CODE, *arguments]
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
        return torch.load(Path(folder) / "outcomes.pt", weights_only=True)


def main(described: str, folder: str, rank: str) -> None:
    """Train as one of the processes, and save the outcomes if it is the first one."""
    import torch.distributed as dist
    from domainbed.lib.process_group import ProcessGroup

    torch.set_num_threads(1)
    meeting_place = f"file://{folder}/meeting_place"
    dist.init_process_group("gloo", meeting_place, rank=int(rank), world_size=SIZE)
    outcomes = {}
    for name, (module, class_name, hparams) in json.loads(described).items():
        algorithm_class = getattr(importlib.import_module(module), class_name)
        outcomes[name] = train(Subject(algorithm_class, hparams), ProcessGroup(int(rank), SIZE))
    if int(rank) == 0:
        torch.save(outcomes, Path(folder) / "outcomes.pt")
    dist.barrier()
    dist.destroy_process_group()
