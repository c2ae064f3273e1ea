"""Retry, cancel and clean the jobs of a launched sweep."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job_folder import (
    UNKNOWN_HOLDER,
    HeldError,
    JobFolder,
    delete_claimed,
    delete_remains,
)
from domainbed_carft.launchers import slurm
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.sweep import states
from domainbed_carft.sweep.states import Queue, Status, SweepState, read_queue

SECONDS_TO_SAVE = 120  # after the signal to stop
POLL_SECONDS = 0.2

# Files that only an unfinished job needs, or whose writing was cut short.
LEFTOVERS = ("state.pt", "*.part")

# The jobs that `clean --incomplete` deletes.
INCOMPLETE = (states.INTERRUPTED, states.FAILED, states.NOT_LAUNCHED)


@dataclass(frozen=True)
class RetryReport:
    """What `retry` did.

    Attributes:
        failed: all failed jobs of the sweep.
        retried: failed jobs that the next launch runs again.
    """

    failed: Sequence[Status]
    retried: Sequence[Status]


@dataclass(frozen=True)
class CancelReport:
    """What `cancel` did."""

    slurm_jobs: Sequence[str]  # ids of cancelled jobs
    stopped: Sequence[Path]  # folders of jobs that were running
    unreachable: Sequence[str]  # descriptions of processes that can still be running


def retry(output: AnyPath, pattern: str = "") -> RetryReport:
    """Allow failed jobs to run again at the next launch.

    Earlier attempts are kept in ``attempts-1.jsonl`` and so on.

    Args:
        output: output folder of the sweep.
        pattern: text that the folder or the description of a job must contain.

    Returns:
        All failed jobs, and the failed jobs that will run again.

    Raises:
        CarftError: jobs have failed, but none matches the pattern.
    """
    failed = states.read_state(output).in_state(states.FAILED)
    chosen = [status for status in failed if pattern in f"{status.job.folder.name} {status.job}"]
    if failed and not chosen:
        raise CarftError(f"no failed job matches {pattern!r}; for a list: carft sweep status")

    for status in chosen:
        attempts_path = JobFolder(status.job.folder).attempts_path
        numbered = (attempts_path.with_name(f"attempts-{n}.jsonl") for n in itertools.count(1))
        attempts_path.rename(next(path for path in numbered if not path.exists()))
    return RetryReport(failed, chosen)


def cancel(state: SweepState) -> CancelReport:
    """Stop launchers, SLURM jobs and jobs on this machine, and wait until the jobs have saved.

    Waits at most SECONDS_TO_SAVE. Raises CarftError if SLURM refuses.
    """
    queue = state.queue
    unreachable = [queue.note] if queue.note else []
    if queue.slurm_states:
        slurm.cancel(queue.slurm_states)

    signalled_pids = {
        launch.pid for launch in queue.live_launches if _signal_to_stop(launch.host, launch.pid)
    }
    for launch in queue.live_launches:
        if launch.pid not in signalled_pids:
            process = f"{launch.launcher}, process {launch.pid} on {launch.host}"
            unreachable.append(f"{process}, cannot be reached from here")

    stopping = []
    for status in state.in_state(states.RUNNING):
        holder = status.holder or UNKNOWN_HOLDER
        folder = JobFolder(status.job.folder)
        # A launcher that received the signal stops its jobs.
        is_stopping = holder.slurm in queue.slurm_states or holder.pid in signalled_pids
        if is_stopping or not folder.is_held() or _signal_to_stop(holder.host, holder.pid):
            stopping.append(folder)
        else:
            place = f"{folder.path} is run by {holder}"
            unreachable.append(f"{place}, which cannot be reached from here")

    running = _wait_for(stopping)
    unreachable += [
        f"{folder.path} is still running {SECONDS_TO_SAVE} s after the signal to stop"
        for folder in running
    ]
    return CancelReport(
        slurm_jobs=list(queue.slurm_states),
        stopped=[folder.path for folder in stopping if folder not in running],
        unreachable=unreachable,
    )


def clean(state: SweepState) -> list[Path]:
    """Delete leftover files of finished jobs and ended launches, and complete cut-off deletions.

    Returns the deleted files.
    """
    done_folders = [status.job.folder for status in state.in_state(states.DONE)]
    files = [path for folder in done_folders for name in LEFTOVERS for path in folder.glob(name)]
    files += state.queue.ended_files
    for path in files:
        path.unlink(missing_ok=True)  # the job or another clean can be faster

    delete_remains(state.output)
    return files


def delete_jobs(output: AnyPath, jobs: Iterable[Status]) -> list[Path]:
    """Delete the folders of these jobs, except jobs that are done, running or queued by now.

    Args:
        output: output folder of the sweep.
        jobs: the jobs to delete.

    Returns:
        The deleted folders.

    Raises:
        CarftError: SLURM does not report which jobs are queued, so nothing is deleted.
    """
    output = as_path(output)
    queue = read_queue(output)  # another launch can have started meanwhile
    if queue.note:
        raise CarftError(f"no job was deleted, because some could be queued: {queue.note}")

    folders = [status.job.folder for status in jobs]
    deleted = [folder for folder in folders if _delete_job(folder, queue)]
    manifest.drop(output, deleted)
    return deleted


def _wait_for(folders: Sequence[JobFolder]) -> list[JobFolder]:
    """Wait until these jobs stop; return the jobs that still run after SECONDS_TO_SAVE."""
    deadline = time.monotonic() + SECONDS_TO_SAVE
    running = list(folders)
    while running and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        running = [folder for folder in running if folder.is_held()]
    return running


def _signal_to_stop(host: str, pid: int) -> bool:
    """Send SIGTERM to a process of this machine; return True if the process exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid > 0 and host == socket.gethostname():
            os.kill(pid, signal.SIGTERM)
            return True
    return False


def _delete_job(path: Path, queue: Queue) -> bool:
    """Delete the folder of a job, unless the job is done, running or queued by now."""
    if not path.is_dir():
        return path not in queue.positions

    folder = JobFolder(path)
    with contextlib.suppress(HeldError, FileNotFoundError), folder.claim():
        if folder.done or (path in queue.positions and not folder.get_final_failure()):
            return False
        delete_claimed(folder)
        return True
    return False
