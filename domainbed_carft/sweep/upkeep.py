"""The commands for launched jobs: status, retry, cancel, clean."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import UNKNOWN, Held, Holder, JobFolder
from domainbed_carft.launchers import slurm
from domainbed_carft.sweep import printing, states
from domainbed_carft.sweep.states import Status, Waiting
from domainbed_carft.text import confirm, counted, shown

SHORTEST_WATCH = 0.2  # seconds
PATIENCE = 120  # seconds that stopped jobs have to save

# Of a finished job: what only an unfinished one needs, or what was being written when it died.
LEFTOVERS = ("state.pt", "*.part")
_DELETED = ".deleted-"


def status(arguments: argparse.Namespace) -> int:
    """Print the states, repeatedly with ``--watch``; 1 if a job failed."""
    every = arguments.watch
    if every is not None and not every >= SHORTEST_WATCH:
        raise CarftError(f"--watch is {every}, expected at least {SHORTEST_WATCH} seconds")
    try:
        while True:
            waiting, statuses = states.of_output(arguments.output_dir)
            _show(arguments, waiting, statuses)
            if every is None or not _moving(statuses):
                return int(any(one.state == states.FAILED for one in statuses))
            time.sleep(every)
    except KeyboardInterrupt:  # the way out of --watch
        return 130


def _moving(statuses: Sequence[Status]) -> list[Status]:
    return [one for one in statuses if one.state in (states.RUNNING, states.QUEUED)]


def _show(arguments: argparse.Namespace, waiting: Waiting, statuses: Sequence[Status]) -> None:
    folder = str(arguments.output_dir)
    if arguments.json:
        told = {
            "output_dir": folder,
            "at": time.time(),
            "counts": {s: sum(one.state == s for one in statuses) for s in states.STATES},
            "note": waiting.note,
            "jobs": [one.as_dict() for one in statuses],
        }
        print(json.dumps(told, indent=1), flush=True)
        return
    if arguments.watch is not None:
        # Clears the screen and what was scrolled off it, then starts at its top.
        print("\033[2J\033[3J\033[H" if sys.stdout.isatty() else "", end="")
        print(f"{shown(folder)}  {time.strftime('%Y-%m-%d %H:%M:%S')}")
    print(printing.overview(statuses), *filter(None, [waiting.note]), sep="\n", flush=True)


def retry(arguments: argparse.Namespace) -> int:
    """Clear the failures of failed jobs, so that the next launch retries them.

    Their earlier attempts are kept in attempts-1.jsonl and so on.
    """
    output, pattern = arguments.output_dir, arguments.only
    failed = [one for one in states.of_output(output)[1] if one.state == states.FAILED]
    chosen = [one for one in failed if (pattern or "") in f"{one.job.folder.name} {one.job}"]
    if failed and not chosen:
        raise CarftError(f"no failed job matches {pattern!r}; for a list: carft sweep status")
    for one in chosen:
        path = JobFolder(one.job.folder).attempts_path
        kept = (path.with_name(f"attempts-{n}.jsonl") for n in range(1, 10**6))
        path.rename(next(name for name in kept if not name.exists()))
    print(f"{len(chosen)} of {len(failed)} failed jobs will be retried by the next launch.")
    if chosen:
        print("Now rerun your carft sweep launch command.")
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Stop launchers, SLURM jobs and jobs running here; 1 if something could not be reached."""
    waiting, statuses = states.of_output(arguments.output_dir)
    if not _moving(statuses) and not waiting.slurm:
        print(f"No jobs are running or queued.{' ' + waiting.note if waiting.note else ''}")
        return 0
    print(f"About to stop: {printing.counted(_moving(statuses))}.")
    confirm(arguments.yes)
    beyond = [waiting.note] if waiting.note else []
    if waiting.slurm:
        slurm.cancel(waiting.slurm)
        print(f"{counted(len(waiting.slurm), 'SLURM job')} cancelled.")
    told = {one.pid for one in waiting.alive if one.host == socket.gethostname() and _stop(one.pid)}
    beyond += [
        f"{one.launcher}, process {one.pid} on {one.host}, cannot be reached from here"
        for one in waiting.alive
        if one.pid not in told
    ]
    stopping = []
    for one in (one for one in statuses if one.state == states.RUNNING):
        holder, folder = one.holder or UNKNOWN, JobFolder(one.job.folder)
        # A launcher that got the signal stops its own jobs.
        is_told = holder.slurm in waiting.slurm or holder.pid in told
        is_here = holder.host == socket.gethostname() and _is_still(holder)
        if is_told or not folder.is_held() or (is_here and _stop(holder.pid)):
            stopping.append(folder)
        else:
            beyond.append(f"{folder.path} is run by {holder}, which cannot be reached from here")
    left, give_up = stopping, time.monotonic() + PATIENCE
    while left and time.monotonic() < give_up:
        time.sleep(0.2)
        left = [folder for folder in left if folder.is_held()]
    beyond += [f"{one.path} still runs {PATIENCE} s after the signal to stop" for one in left]
    for line in beyond:
        print(shown(line), file=sys.stderr)
    print(f"{counted(len(stopping) - len(left), 'job')} stopped; launch again to resume.")
    return 1 if beyond else 0


def _is_still(holder: Holder) -> bool:
    """Whether a lock's process id still belongs to the process that wrote it: ids are reused."""
    try:
        # The second word is the program's name, which may have any characters in it.
        words = Path(f"/proc/{holder.pid}/stat").read_text(errors="replace").rpartition(")")[2]
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        started = booted + int(words.split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # it has ended; or a system without /proc, taken at its word
        return not os.path.isdir("/proc/self")
    return started < max(holder.since, holder.updated or 0) + 1


def _stop(pid: int) -> bool:
    """Tell a process of this machine to save and exit; True if it exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid > 0:
            os.kill(pid, signal.SIGTERM)
            return True
    return False


def clean(arguments: argparse.Namespace) -> int:
    """Delete leftover files, never those of a job that runs or waits.

    With ``--incomplete`` also delete the folders of jobs that are not done, and remove from the
    manifest the jobs that never began.
    """
    output = arguments.output_dir
    waiting, statuses = states.of_output(output)
    done = [one.job.folder for one in statuses if one.state == states.DONE]
    of_no_use = [path for folder in done for name in LEFTOVERS for path in folder.glob(name)]
    count = size = 0
    for path in (*of_no_use, *waiting.ended):
        with contextlib.suppress(FileNotFoundError):  # the job, or another clean, was faster
            taken = path.stat().st_size
            path.unlink()
            count, size = count + 1, size + taken
    for path in (*output.glob(f"{_DELETED}*"), *output.glob(f"*/{_DELETED}*")):  # cut short
        shutil.rmtree(path, ignore_errors=True)
    print(f"{counted(count, 'leftover file')} deleted, {size / 1e6:,.1f} MB.")
    if not arguments.incomplete:
        return 0
    wanted = (states.INTERRUPTED, states.FAILED, states.NOT_LAUNCHED)
    chosen = [one for one in statuses if one.state in wanted]
    if not chosen:
        print("There are no incomplete jobs to delete.")
        return 0
    print(f"About to delete {counted(len(chosen), 'job')}: {printing.counted(chosen)}.")
    confirm(arguments.yes)
    waiting = states.waiting(output)  # others may have launched meanwhile
    if waiting.note:
        raise CarftError(f"no job was deleted, since some may be queued: {waiting.note}")
    gone = [one.job.folder for one in chosen if _remove_job(one.job.folder, waiting)]
    manifest.drop(output, gone)
    print(
        f"{counted(len(gone), 'job')} deleted. {printing.again('status', output)} shows the rest."
    )
    return 0


def _remove_job(path: Path, waiting: Waiting) -> bool:
    """Delete the folder of a job, unless the job is done, running or queued by now."""
    folder = JobFolder(path)
    away = path.with_name(f"{_DELETED}{path.name}-{os.getpid()}")
    try:
        with folder.claim() if path.is_dir() else contextlib.nullcontext():
            if folder.done or (path in waiting.places and not folder.failed()):
                return False
            if path.is_dir():
                # All at once: a launch from now on makes a new folder with its own lock.
                path.rename(away)
                shutil.rmtree(away)
    except (Held, FileNotFoundError):
        return False
    return True
