"""Several jobs at a time on this machine, its GPUs and cores shared out among them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import MAX_ATTEMPTS, Held, JobFolder
from domainbed_carft.launchers import attempt
from domainbed_carft.launchers.attempt import Children, Ending, FailedJob, Result, stopping
from domainbed_carft.launchers.launches import in_hand
from domainbed_carft.launchers.options import NoOptions, PoolOptions

LOOK_EVERY = 2.0  # seconds, while others have the jobs that are left


@dataclass
class SharedQueue:
    """The jobs of one call of a launcher called `name`."""

    name: str
    commands: Sequence[str]
    verbose: bool = False
    failed: list[FailedJob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = deque(self.commands)
        self._children = Children()
        self._interruptions: Counter[str] = Counter()
        self._left: list[Ending] = []
        self._held: dict[str, Held] = {}
        self._looking = threading.Lock()
        self._told: set[str] = set()
        self._ended = 0

    def run(self, slots: Sequence[Mapping[str, str]]) -> list[FailedJob]:
        """Run all jobs, one at a time in each slot, with the slot's variables.

        Jobs that other processes have are waited for at the end, and run if these leave them.

        Returns the jobs that did not succeed.
        """
        if not self.commands:
            return []
        folders = [attempt.Command(command).folder for command in self.commands]
        with (
            stopping(self._children, self.name),
            in_hand(self.name, [folder for folder in folders if folder]),
            ThreadPoolExecutor(max_workers=len(slots)) as workers,
        ):
            futures = [workers.submit(self._work, slot) for slot in slots]
            wait(futures)
            for future in futures:
                future.result()
        self._tell()
        return self.failed

    def _work(self, environment: Mapping[str, str]) -> None:
        while (command := self._next()) is not None:
            ending = attempt.run(command, environment, self._children)
            if self._is_settled(ending):
                self._ended += 1
                if self.verbose:
                    self._progress()
            elif ending.held is not None:
                with self._looking:
                    self._held[command] = ending.held
            else:
                self._waiting.append(command)

    def _next(self) -> str | None:
        """The next job: of those that others had when they were tried, once nothing else waits."""
        while self._children.stopped_by is None:
            with self._looking:
                if self._waiting:
                    return self._waiting.popleft()
                if not self._held:
                    return None
                for command, held in self._held.items():
                    if not JobFolder(held.folder).is_held():
                        del self._held[command]
                        return command
                self._tell_of_waiting()
            again = time.monotonic() + LOOK_EVERY
            while self._children.stopped_by is None and time.monotonic() < again:
                time.sleep(0.1)
        return None

    def _tell_of_waiting(self) -> None:
        new = [held for command, held in self._held.items() if command not in self._told]
        self._told.update(self._held)
        for held in new:
            print(
                f"{self.name}: waiting for {held.folder}, run by {held.holder}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def _is_settled(self, ending: Ending) -> bool:
        """Whether this launch is through with a job; if not, it is to be started again."""
        if ending.result is Result.INTERRUPTED:
            # By someone who wants it to start again, but a job may also go on like that for ever.
            self._interruptions[ending.command] += 1
            settled = self._interruptions[ending.command] >= MAX_ATTEMPTS
            if settled and ending.failure:
                self.failed.append(ending.failure)
            return settled
        if ending.result is Result.ELSEWHERE:
            self._left.append(ending)
        if ending.result is Result.LEFT and ending.failure:
            self.failed.append(ending.failure)
        return ending.result not in (Result.FAILED, Result.HELD)

    def _progress(self) -> None:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        print(
            f"{self.name}: {self._ended} of {len(self.commands)} jobs ended{failed}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def _tell(self) -> None:
        if self._left:
            print(
                f"{self.name}: {len(self._left)} jobs were left to the processes that run them, "
                f"such as: {self._left[0].held}",
                file=sys.stderr,
            )
        for failure in self.failed:
            print(f"{self.name}: {failure}", file=sys.stderr)


@dataclass(frozen=True)
class Local:
    """Run the jobs one after another; what they print is in their out.txt and err.txt."""

    options: NoOptions
    verbose: bool = False

    def __call__(self, commands: Sequence[str]) -> list[FailedJob]:
        return SharedQueue("local", commands, self.verbose).run([{}])


@dataclass(frozen=True)
class Dummy:
    """Print the commands and run none of them."""

    options: NoOptions
    verbose: bool = False

    def __call__(self, commands: Sequence[str]) -> None:
        for command in commands:
            print(f"Dummy launcher: {command}")


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
