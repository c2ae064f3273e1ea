"""Jobs on this machine: one after another, or several that share its GPUs and cores."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft import machine, text
from domainbed_carft.errors import raise_for
from domainbed_carft.jobs.folder import MAX_ATTEMPTS
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import attempt
from domainbed_carft.launchers.attempt import Children, Ending, Environment, stopping
from domainbed_carft.launchers.launches import in_hand
from domainbed_carft.launchers.options import PoolOptions


def dummy(jobs: Sequence[Job], environment: Environment = None) -> None:
    """Print the commands and run none of them."""
    for job in jobs:
        variables = environment(job) if environment else {}
        words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        print("Dummy launcher:", *words, job.line)


@dataclass(frozen=True)
class Pool:
    """Run N jobs at a time, each with the threads and the GPUs of its slot.

    `local` is the pool of one job, which sees all GPUs unless it is given a number of them.
    """

    options: PoolOptions
    name: str = "pool"

    def __call__(self, jobs: Sequence[Job], environment: Environment = None) -> list[Ending]:
        """Run all jobs, one at a time in each slot, with the slot's variables below their own.

        A job that failed is retried after all others. Returns the endings of those that are not
        done. Raises CarftError if a job is to have more GPUs than there are.
        """
        raise_for(self.problems())
        waiting, left, warm = deque(jobs), list[Ending](), ForkServer(detached=True)
        children, slots = Children(warm), self.slots(len(jobs))
        interruptions: Counter[Path] = Counter()

        def work(slot: Mapping[str, str]) -> None:
            while children.stopped_by is None:
                try:
                    job = waiting.popleft()
                except IndexError:  # none is left
                    return
                own = environment(job) if environment else {}
                ending = attempt.run(job, {**slot, **own}, children)
                # Someone may want it to restart, but a job could also do this forever.
                interruptions[job.folder] += ending.result == "interrupted"
                again = ending.result in ("again", "interrupted")
                if again and interruptions[job.folder] < MAX_ATTEMPTS:
                    waiting.append(job)
                elif ending.result != "done":
                    left.append(ending)

        workers = ThreadPoolExecutor(max_workers=len(slots))
        with warm, stopping(children, self.name), in_hand(self.name, jobs), workers:
            for _ in workers.map(work, slots):
                pass
        for line in text.limited([text.shown(f"{self.name}: {one}") for one in left]):
            print(line, file=sys.stderr, flush=True)
        return left

    def problems(self, sweeps: Iterable[Path] = ()) -> Iterator[str]:
        """Why it cannot run jobs here."""
        if (wanted := self.options.gpus or 0) > (found := len(machine.gpus())):
            yield f"{self.name}: gpus is {wanted}, expected at most the {found} of this machine"

    def slots(self, jobs: int) -> list[dict[str, str]]:
        """The variables of each slot, for so many jobs in all; what the user has set stays."""
        chosen, gpus, each = self.options, machine.gpus(), self.options.gpus or 1
        cards = [",".join(gpus[i : i + each]) for i in range(0, len(gpus) - each + 1, each)]
        on_gpus = len(cards) * (chosen.jobs_per_gpu or 1)
        width = chosen.jobs or on_gpus or machine.cores()
        if gpus and chosen.jobs_per_gpu:
            width = min(width, on_gpus)
        count = max(1, min(width, jobs))
        own = machine.variables(max(1, machine.cores() // count), bool(gpus), os.environ, each)
        if not cards or (self.name == "local" and not chosen.gpus):
            return [own] * count
        return [{"CUDA_VISIBLE_DEVICES": cards[i % len(cards)], **own} for i in range(count)]
