"""What SLURM says of its jobs and of itself, and how jobs are cancelled there."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable

from domainbed_carft.errors import CarftError


def states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's state (PENDING, RUNNING, COMPLETING, ...) of each of these jobs that has not ended.

    The reason of a wait follows, as in PENDING (Resources). The ids are those of jobs, or of
    elements of arrays, as "123_4". Raises CarftError if SLURM does not answer.
    """
    distinct_ids = set(ids)
    if not distinct_ids:
        return {}

    jobs = ",".join(sorted({job_id.partition("_")[0] for job_id in distinct_ids}))
    output = call("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={jobs}")
    lines = [line.strip().split("|") for line in output.splitlines() if line.count("|") == 2]
    return {
        job_id: f"{state} ({reason})" if state == "PENDING" else state
        for job_id, state, reason in lines
        if job_id in distinct_ids
    }


def cancel(ids: Iterable[str]) -> None:
    """Cancel these jobs, or elements of arrays; a running one gets a signal first, and saves."""
    call("scancel", *sorted(set(ids)))


def largest_array() -> int | None:
    """How many elements the cluster allows an array; None if it does not say."""
    with contextlib.suppress(CarftError):
        config = call("scontrol", "show", "config")
        size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.M)
        if size:
            return max(1, int(size[1]))
    return None


def call(*command: str) -> str:
    """What a command of SLURM prints; raises CarftError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a null byte
        raise CarftError(f"SLURM does not answer: {error}") from error

    # Jobs that have ended are forgotten after a while.
    if done.returncode and "Invalid job id" not in done.stderr:
        raise CarftError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
