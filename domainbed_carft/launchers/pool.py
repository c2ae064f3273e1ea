"""Jobs on this machine: one after another, or several that share out its GPUs and cores."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft import machine, text
from domainbed_carft.jobs.folder import MAX_ATTEMPTS
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import attempt
from domainbed_carft.launchers.attempt import Children, Ending, Environment, stopping
from domainbed_carft.launchers.launches import in_hand
from domainbed_carft.launchers.options import NoOptions, PoolOptions


@dataclass
class _Queue:
    """The jobs of one call of a launcher; one that failed is tried again after all others.

    A job that another process runs is left to it: the next launch looks again.
    """

    name: str
    jobs: Sequence[Job]
    environment: Environment

    def __post_init__(self) -> None:
        self._waiting = deque(self.jobs)
        self._children = Children()
        self._interruptions: Counter[Path] = Counter()
        self._left: list[Ending] = []

    def run(self, slots: Sequence[Mapping[str, str]]) -> list[Ending]:
        """Run all jobs, one at a time in each slot, with the slot's variables below their own.

        Returns the endings of those that are not done.
        """
        if not self.jobs:
            return []
        with (
            stopping(self._children, self.name),
            in_hand(self.name, self.jobs),
            ThreadPoolExecutor(max_workers=len(slots)) as workers,
        ):
            futures = [workers.submit(self._work, slot) for slot in slots]
            wait(futures)
            for future in futures:
                future.result()
        for line in text.limited([text.shown(f"{self.name}: {one}") for one in self._left]):
            print(line, file=sys.stderr, flush=True)
        return self._left

    def _work(self, slot: Mapping[str, str]) -> None:
        while self._children.stopped_by is None and self._waiting:
            try:
                job = self._waiting.popleft()
            except IndexError:  # another slot was faster
                return
            own = self.environment(job) if self.environment else {}
            ending = attempt.run(job, {**slot, **own}, self._children)
            if self._goes_on(ending):
                self._waiting.append(job)
            elif ending.result != "done":
                self._left.append(ending)

    def _goes_on(self, ending: Ending) -> bool:
        if ending.result != "interrupted":
            return ending.result == "again"
        # By someone who wants it to start again, but a job may also go on like that for ever.
        self._interruptions[ending.folder] += 1
        return self._interruptions[ending.folder] < MAX_ATTEMPTS


@dataclass(frozen=True)
class Dummy:
    """Print the commands and run none of them."""

    options: NoOptions

    def __call__(self, jobs: Sequence[Job], environment: Environment = None) -> None:
        for job in jobs:
            variables = environment(job) if environment else {}
            words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
            print("Dummy launcher:", *words, job.line)


@dataclass(frozen=True)
class Local:
    """Run the jobs one after another; what they print is in their out.txt and err.txt."""

    options: NoOptions

    def __call__(self, jobs: Sequence[Job], environment: Environment = None) -> list[Ending]:
        return _Queue("local", jobs, environment).run([{}])


@dataclass(frozen=True)
class Pool:
    """Run N jobs at a time, each with the threads and the GPU of its slot.

    For small models on a CPU: several jobs of one thread each finish sooner than one after another
    with all threads, because much of a small job does not run in parallel.
    """

    options: PoolOptions

    def __call__(self, jobs: Sequence[Job], environment: Environment = None) -> list[Ending]:
        return _Queue("pool", jobs, environment).run(self.slots(len(jobs)))

    def slots(self, jobs: int) -> list[dict[str, str]]:
        """The variables of each slot, for so many jobs in all; what the user has set stays."""
        chosen, gpus = self.options, machine.gpus()
        on_gpus = len(gpus) * (chosen.jobs_per_gpu or 1)
        width = chosen.jobs or on_gpus or machine.cores()
        if gpus and chosen.jobs_per_gpu:
            width = min(width, on_gpus)
        count = max(1, min(width, jobs))
        names = ["DOMAINBED_CORES"]  # read by our harness, for its number of loader processes
        if "OMP_NUM_THREADS" not in os.environ:
            # OpenMP's is read by OpenBLAS and MKL too, but MKL's own wins, if it is set.
            names += ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]
        threads = dict.fromkeys(names, str(max(1, machine.cores() // count)))
        shares = [
            {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(count)
        ]
        return [{**share, **threads} for share in shares]
