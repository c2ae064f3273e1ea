"""The row on several processes: two ranks that share each batch train as one process does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import machine
from domainbed_carft.files import weights
from domainbed_carft.machine import devices
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.prepared_job import PreparedJob, quiet
from domainbed_carft.preflight.resume_row import (
    GPU_TOLERANCE,
    phrase,
    relative_distance,
    tensors_of,
)
from domainbed_carft.preflight.rows import Row, failed_row, row_of_problem, skipped_row
from domainbed_carft.preflight.step_rows import take_step
from domainbed_carft.sweep import host

SECTION = "several processes"
RANKS = 2
STEPS = 2
TOLERANCE = GPU_TOLERANCE  # on a processor, too: sums of two slices are rounded in another way
PATIENCE = 300.0  # seconds for both ranks

_REMEDY = "train each job in one process: --gpus 1 of carft sweep launch"


def process_row(label: str, prepared: PreparedJob, folder: Path) -> Row:
    """Take two steps by two ranks, in processes of their own, and compare them with one process."""
    reason = reason_against(prepared)
    if reason:
        return skipped_row(SECTION, label, reason)

    untrained = tensors_of(prepared.build_algorithm(torch.device("cpu")))
    expected = train(prepared)
    problem = _run_ranks(prepared, folder)
    if problem:
        return failed_row(SECTION, label, problem, _REMEDY)

    trained = weights.load_weights(folder / "ranks.pt")
    return judge(label, relative_distance(trained, expected, untrained))


def reason_against(prepared: PreparedJob) -> str:
    """Why two ranks are not tried here; "" if they can be."""
    if job_device.has_gpu() and devices.gpu_count() < RANKS:
        return "there is one GPU"
    if not job_device.has_gpu() and machine.cores() < RANKS:
        return "there is one core"
    algorithm = prepared.build_algorithm(torch.device("cpu"))
    why_indivisible: str = algorithm.indivisible()
    return why_indivisible


def judge(label: str, distance: float) -> Row:
    """The row of a relative `distance` between the weights of two ranks and of one process."""
    detail = (
        f"after {STEPS} steps {RANKS} ranks have, beside one process, {phrase(distance)}; "
        f"tolerance {TOLERANCE:.0%}"
    )
    problem = "" if distance <= TOLERANCE else "several processes train something else"
    return row_of_problem(SECTION, label, detail, problem, _REMEDY, distance=str(distance))


def train(prepared: PreparedJob, process_group: Any = None) -> dict[str, Tensor]:
    """Take STEPS steps of a job, by this process or as one rank; returns its tensors by name."""
    device = devices.default_device()
    algorithm = prepared.build_algorithm(device)
    if process_group:
        attach = host.module("lib.process_group").attach_process_group
        attach(algorithm, process_group, prepared.hparams["batch_size"])

    with prepared.loaded_batches(device, process_group=process_group) as batches, quiet():
        for _ in range(STEPS):
            take_step(algorithm, batches.step_batches())
    return tensors_of(algorithm)


def _run_ranks(prepared: PreparedJob, folder: Path) -> str:
    """Run both ranks, which write ``ranks.pt`` into the folder; returns what went wrong."""
    request = folder / "ranks.json"
    request.write_text(json.dumps({"args": dict(prepared.job.args)}))
    with contextlib.ExitStack() as logs:
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "domainbed_carft.preflight.rank", str(request)],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=logs.enter_context((folder / f"rank{variables['RANK']}.txt").open("wb")),
            )
            for variables in rank_variables()
        ]
    try:
        statuses = [child.wait(PATIENCE) for child in children]
    except subprocess.TimeoutExpired:
        return f"the ranks did not finish within {PATIENCE:g} seconds"
    finally:
        for child in children:
            child.kill()
            child.wait()

    failing = [rank for rank, status in enumerate(statuses) if status]
    if not failing:
        return ""
    lines = (folder / f"rank{failing[0]}.txt").read_text(errors="replace").strip().splitlines()
    return f"rank {failing[0]} ended with {statuses[failing[0]]}: {lines[-1] if lines else ''}"


def rank_variables() -> list[Mapping[str, str]]:
    """The variables of torchrun for each rank, with a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        for rank in range(RANKS)
    ]
