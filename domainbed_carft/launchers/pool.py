"""Launchers for this machine: one job at a time, or several that share its GPUs and cores."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft import escaping, machine, wording
from domainbed_carft.errors import TransientError, raise_for
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import MAX_ATTEMPTS
from domainbed_carft.launchers import attempt
from domainbed_carft.launchers.attempt import Children, JobEnd, stop_on_signals
from domainbed_carft.launchers.launch_file import announce
from domainbed_carft.launchers.options import PoolOptions


def dummy(jobs: Sequence[Job]) -> None:
    """Print the commands without running them."""
    for job in jobs:
        words = [f"{name}={shlex.quote(value)}" for name, value in job.variables.items()]
        print("Dummy launcher:", *words, job.line)


@dataclass(frozen=True)
class Pool:
    """Run several jobs at a time, each with the threads and the GPUs of its slot.

    `local` is a pool of one job. It sees all GPUs unless `gpus` limits their number.
    """

    options: PoolOptions
    name: str = "pool"

    def __call__(self, jobs: Sequence[Job]) -> list[JobEnd]:
        """Run all jobs, one at a time in each slot, and retry failed ones after all others.

        Args:
            jobs: the jobs, whose variables replace variables of their slots.

        Returns:
            The ends of jobs that are not done. They are also printed.

        Raises:
            CarftError: if there are fewer GPUs than a job needs, or if the disk is full, in which
                case no other job starts.
        """
        raise_for(self.problems())
        not_done: list[JobEnd] = []
        fork_server = ForkServer(detached=True)
        children = Children(fork_server)
        slots = self.slots(len(jobs))
        run_jobs = functools.partial(_run_jobs, deque(jobs), Counter(), not_done, children)
        workers = ThreadPoolExecutor(max_workers=len(slots))
        with fork_server, stop_on_signals(children, self.name), announce(self.name, jobs), workers:
            for _ in workers.map(run_jobs, slots):
                pass

        for end in not_done:
            if end.result == "no space":
                raise TransientError(
                    f"no space left on the disk of {end.folder}; this does not count as an "
                    "attempt. Free some space, then run the same command again"
                )
        lines = [f"{self.name}: {end}" for end in not_done]
        escaping.print_lines(*wording.limit_lines(lines), stream=sys.stderr)
        return not_done

    def problems(self, sweeps: Iterable[Path] = ()) -> Iterator[str]:
        """Iterate over the reasons why the pool cannot run jobs on this machine."""
        n_gpus = len(machine.gpus())
        per_job = self.options.gpus or 0
        if per_job > n_gpus:
            yield f"{self.name}: gpus is {per_job}, expected at most {n_gpus}, the GPUs found here"

    def slots(self, jobs: int) -> list[dict[str, str]]:
        """Return the variables of each slot, without those that the user has set.

        Args:
            jobs: total number of jobs.
        """
        options = self.options
        gpus = machine.gpus()
        per_job = options.gpus or 1
        gpu_groups = [
            ",".join(gpus[start : start + per_job])
            for start in range(0, len(gpus) - per_job + 1, per_job)
        ]

        jobs_on_gpus = len(gpu_groups) * (options.jobs_per_gpu or 1)
        jobs_at_a_time = options.jobs or jobs_on_gpus or machine.cores()
        if gpus and options.jobs_per_gpu:
            jobs_at_a_time = min(jobs_at_a_time, jobs_on_gpus)
        n_slots = max(1, min(jobs_at_a_time, jobs))

        cores = max(1, machine.cores() // n_slots)
        variables = machine.job_variables(cores, bool(gpus), os.environ, per_job)
        if n_slots > 1 and machine.IMAGE_MEMORY not in os.environ:
            variables[machine.IMAGE_MEMORY] = str(machine.image_memory(n_slots))
        variables |= own_methods.get_variables()
        sees_all_gpus = self.name == "local" and not options.gpus
        if not gpu_groups or sees_all_gpus:
            return [variables] * n_slots
        return [
            {"CUDA_VISIBLE_DEVICES": gpu_groups[slot % len(gpu_groups)], **variables}
            for slot in range(n_slots)
        ]


def _run_jobs(
    waiting: deque[Job],
    interruptions: Counter[Path],
    not_done: list[JobEnd],
    children: Children,
    slot: Mapping[str, str],
) -> None:
    """Run waiting jobs one after another, and retry failed ones after all others.

    All slots share the arguments before ``slot``.

    Args:
        waiting: the jobs that no slot has taken yet.
        interruptions: the number of interrupted attempts by job folder.
        not_done: gets the ends of jobs that are not done and are not tried again.
        children: the running processes of the launcher.
        slot: the variables of this slot.
    """
    while children.stopped_by is None and all(end.result != "no space" for end in not_done):
        try:
            job = waiting.popleft()
        except IndexError:  # no job is waiting
            return

        end = attempt.run(job, {**slot, **job.variables}, children)
        # A restart can be intended, but a job must not be restarted forever.
        interruptions[job.folder] += end.result == "interrupted"
        may_retry = end.result in ("again", "interrupted")
        if may_retry and interruptions[job.folder] < MAX_ATTEMPTS:
            waiting.append(job)
        elif end.result != "done":
            not_done.append(end)
