"""What SLURM says of its jobs and of itself, and how jobs are cancelled there."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from domainbed_carft.errors import CarftError

PENDING = "PENDING"
NO_REASON = "None"  # of a job that SLURM has not looked at yet

# Reasons of SLURM for which a job waits until somebody changes the request or the cluster.
_LASTING_REASONS = (
    "AccountNotAllowed",
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "JobHeldUser",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
    "QOSTimeLimit",
)
_LASTING_LIMITS = "PerJobLimit"  # the end of the names of many others

# What SLURM and sbatch write for no limit of time.
_UNLIMITED = ("UNLIMITED", "INFINITE", "0")


@dataclass(frozen=True)
class JobState:
    """SLURM's state of a job (PENDING, RUNNING, COMPLETING, ...), and why it waits, else ""."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def is_lasting(reason: str) -> bool:
    """Whether a job that waits for this reason of SLURM does not start by itself."""
    return reason in _LASTING_REASONS or reason.endswith(_LASTING_LIMITS)


def states(ids: Iterable[str]) -> dict[str, JobState]:
    """SLURM's state of each of these jobs that has not ended.

    The ids are those of jobs, or of elements of arrays, as "123_4". Raises CarftError if SLURM does
    not answer.
    """
    distinct_ids = set(ids)
    if not distinct_ids:
        return {}

    jobs = ",".join(sorted({job_id.partition("_")[0] for job_id in distinct_ids}))
    output = call("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={jobs}")
    lines = [line.strip().split("|") for line in output.splitlines() if line.count("|") == 2]
    return {
        job_id: JobState(state, reason if state == PENDING else "")
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


def time_limit(partition: str | None) -> tuple[float, str, str]:
    """The longest time in seconds of a partition, as SLURM writes it, and the partition's name.

    Of several partitions, separated by commas, the one with the longest time counts; None is the
    cluster's default. Infinite where SLURM does not say.
    """
    limits = [(math.inf, "", "")]
    with contextlib.suppress(CarftError):
        lines = call("scontrol", "show", "partition", "--oneliner").splitlines()
        partitions = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
        names = partition.split(",") if partition else []
        limits = [
            (seconds(fields["MaxTime"]), fields["MaxTime"], fields["PartitionName"])
            for fields in partitions
            if fields.get("PartitionName") in names
            or (not names and fields.get("Default") == "YES")
        ] or limits
    return max(limits)


def seconds(time: str) -> float:
    """A limit of time as SLURM and sbatch write it, such as 90, 1:30:00 or 1-12, in seconds.

    Infinite for no limit, and for what is no time: sbatch refuses that.
    """
    if time.upper() in _UNLIMITED:
        return math.inf

    days, dash, clock = time.rpartition("-")
    try:
        numbers = [int(part) for part in clock.split(":")]
        if dash:
            numbers = [*numbers, 0, 0][:3]
        elif len(numbers) == 1:
            numbers = [0, *numbers, 0]
        elif len(numbers) == 2:
            numbers = [0, *numbers]
        hours, minutes, rest = numbers
        return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest)
    except ValueError:
        return math.inf


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
