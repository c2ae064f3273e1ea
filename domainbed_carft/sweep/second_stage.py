"""The small SLURM job that submits a search's second stage when the first has ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft.launchers import launch_file
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.sweep.queue import queue_of
from domainbed_carft.sweep.stages import SECOND_STAGE_FLAG

# The name of the small job among the jobs of a launch, where others have the names of folders.
NAME = "second-stage"


def submit(launcher: Slurm, output: Path, command: Sequence[str]) -> None:
    """Submit the small job, after all jobs of the sweep that SLURM has.

    Does nothing if SLURM has none, or has a small job already that waits for all of them.
    ``command``: the words after ``carft`` that launch what the sweep lacks.
    """
    queue = queue_of(output)
    waiting_ids = _ids_of_small_jobs(output) & queue.slurm_states.keys()
    job_ids = queue.slurm_states.keys() - waiting_ids
    if not job_ids:
        return

    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)
    if waiting_ids and max(map(int, waiting_ids)) > int(arrays[-1]):
        return  # it was submitted after all of them
    words = [sys.executable, "-m", "domainbed_carft", *command, SECOND_STAGE_FLAG]
    job_id = launcher.submit_command(words, output.absolute(), name=NAME, after=arrays)
    print(f"slurm: job {job_id} submits the second stage when these have ended")


def _ids_of_small_jobs(output: Path) -> set[str]:
    """The SLURM ids of all small jobs that were ever submitted and are still listed."""
    launches = launch_file.read(output)
    ids = (launch.jobs.get(NAME) for launch in launches if launch.launcher == "slurm")
    return {job_id for job_id in ids if job_id}
