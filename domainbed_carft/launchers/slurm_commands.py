"""What SLURM is asked and told by its own commands; accounting, which it may lack, is not used."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence

from domainbed_carft.errors import CarftError

_AT_ONCE = 500  # jobs named in one command line

# Why a job may wait that will be started in its turn. Other reasons are worth telling.
_IN_TURN = (
    *("None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit"),
    *("Cleaning", "Licenses", "RaisedSignal", ""),
)


def states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's word (PENDING, RUNNING, COMPLETING, ...) for each of these jobs that has not ended.

    Where a job does not simply wait for its turn, the reason follows: PENDING (PartitionTimeLimit).

    Args:
        ids: of jobs, or of elements of arrays, as "123_4".

    Raises:
        CarftError: SLURM cannot be asked.
    """
    asked = set(ids)
    if not asked:
        return {}
    jobs = ",".join(sorted({name.partition("_")[0] for name in asked}))
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={jobs}"]
    done = _call(command)
    if done.returncode and "Invalid job id" not in done.stderr:  # all have ended, and are forgotten
        raise CarftError(f"squeue failed: {done.stderr.strip() or done.returncode}")
    lines = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    return {name: _word(state, reason) for name, state, reason in lines if name in asked}


def _word(state: str, reason: str) -> str:
    tell = state == "PENDING" and reason not in _IN_TURN
    return f"{state} ({reason})" if tell else state


def cancel(ids: Iterable[str]) -> None:
    """Cancel these jobs, or elements of arrays; one that runs is told first, and saves.

    Raises:
        CarftError: SLURM does not do it.
    """
    named = sorted(set(ids))
    for begin in range(0, len(named), _AT_ONCE):
        done = _call(["scancel", *named[begin : begin + _AT_ONCE]])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise CarftError(f"scancel failed: {done.stderr.strip() or done.returncode}")


def requeue(name: str) -> None:
    """Have SLURM end a running job and start it again.

    Raises:
        CarftError: SLURM does not do it.
    """
    done = _call(["scontrol", "requeue", name])
    if done.returncode:
        raise CarftError(
            f"scontrol requeue {name} failed: {done.stderr.strip() or done.returncode}; launch "
            "the sweep again to go on with this job"
        )


def largest_array() -> int | None:
    """How many elements the cluster allows an array; None if it does not say."""
    try:
        done = _call(["scontrol", "show", "config"])
    except CarftError:
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(found[1])) if found and not done.returncode else None


def _call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CarftError(f"SLURM cannot be asked: {error}") from error
