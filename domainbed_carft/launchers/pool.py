"""Several jobs at a time on this machine, its GPUs and cores shared out among them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers.options import PoolOptions
from domainbed_carft.launchers.protocol import FailedJob
from domainbed_carft.launchers.shared_queue import SharedQueue


@dataclass(frozen=True)
class Pool:
    """Run N jobs at a time, each with the threads and the GPU of its slot.

    For small models on a CPU: several jobs of one thread each finish sooner than one after another
    with all threads, because much of a small job does not run in parallel.
    """

    options: PoolOptions
    verbose: bool = False

    def __call__(self, commands: Sequence[str]) -> list[FailedJob]:
        return SharedQueue("pool", commands, self.verbose).run(self.slots(len(commands)))

    def problems(self, sweeps: Iterable[Path]) -> list[str]:
        """Why this machine cannot do what the options say."""
        try:
            self._width(len(machine.gpus()))
        except CarftError as error:
            return [str(error)]
        return []

    def slots(self, jobs: int) -> list[dict[str, str]]:
        """The variables of each slot, for so many jobs in all."""
        gpus = machine.gpus()
        count = max(1, min(self._width(len(gpus)), jobs))
        shares = [
            {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(count)
        ]
        return [{**share, **_threads(count)} for share in shares]

    def _width(self, gpus: int) -> int:
        chosen = self.options
        if chosen.jobs_per_gpu and not gpus:
            raise CarftError(
                f"pool: jobs_per_gpu = {chosen.jobs_per_gpu}, but there is no GPU: "
                "CUDA_VISIBLE_DEVICES lists none, or nvidia-smi does not find one. Use jobs instead"
            )
        widths = [chosen.jobs] if chosen.jobs else []
        if chosen.jobs_per_gpu or (gpus and not widths):
            widths.append(gpus * (chosen.jobs_per_gpu or 1))
        return min(widths or [machine.cores()])


def _threads(jobs: int) -> dict[str, str]:
    """The cores of each of so many jobs; the threads that the user has set stay."""
    share = str(max(1, machine.cores() // jobs))
    # Read by our harness, for its number of loader processes.
    names = ["DOMAINBED_CORES"]
    if "OMP_NUM_THREADS" not in os.environ:
        # OpenMP's is read by OpenBLAS and MKL too, but MKL's own wins, if it is set.
        names += ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    return dict.fromkeys(names, share)
