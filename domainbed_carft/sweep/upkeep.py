"""The commands for launched jobs: status, retry, cancel, clean."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
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
    while True:
        waiting, statuses = states.of_output(arguments.output_dir)
        folder, every = str(arguments.output_dir), arguments.watch
        if arguments.json:
            counts = Counter(one.state for one in statuses)
            told = {
                **{"output_dir": folder, "at": time.time()},
                "counts": {state: counts[state] for state in states.STATES},
                **{"note": waiting.note, "jobs": [one.as_dict() for one in statuses]},
            }
            print(json.dumps(told, indent=1), flush=True)
        else:
            if every is not None:
                # Clears the screen and what was scrolled off it, then starts at its top.
                print("\033[2J\033[3J\033[H" if sys.stdout.isatty() else "", end="")
                print(f"{shown(folder)}  {time.strftime('%Y-%m-%d %H:%M:%S')}")
            print(printing.overview(statuses), *filter(None, [waiting.note]), sep="\n", flush=True)
        if every is None or not _moving(statuses):
            return int(any(one.state == states.FAILED for one in statuses))
        time.sleep(max(SHORTEST_WATCH, every))


def _moving(statuses: Sequence[Status]) -> list[Status]:
    return [one for one in statuses if one.state in (states.RUNNING, states.QUEUED)]


def retry(arguments: argparse.Namespace) -> int:
    """Let the next launch retry failed jobs; their attempts are kept in attempts-1.jsonl, ..."""
    output, pattern = arguments.output_dir, arguments.only or ""
    failed = [one for one in states.of_output(output)[1] if one.state == states.FAILED]
    chosen = [one for one in failed if pattern in f"{one.job.folder.name} {one.job}"]
    if failed and not chosen:
        raise CarftError(f"no failed job matches {pattern!r}; for a list: carft sweep status")
    for one in chosen:
        path = JobFolder(one.job.folder).attempts_path
        kept = (path.with_name(f"attempts-{n}.jsonl") for n in itertools.count(1))
        path.rename(next(name for name in kept if not name.exists()))
    print(f"{len(chosen)} of {len(failed)} failed jobs will be retried by the next launch.")
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Stop launchers, SLURM jobs and jobs running here; 1 if something could not be reached."""
    waiting, statuses = states.of_output(arguments.output_dir)
    if not _moving(statuses) and not waiting.slurm:
        print(f"No jobs are running or queued. {waiting.note}".rstrip())
        return 0
    print(f"About to stop: {printing.counted(_moving(statuses))}.")
    confirm(arguments.yes)
    beyond = [waiting.note] if waiting.note else []
    if waiting.slurm:
        slurm.cancel(waiting.slurm)
        print(f"{counted(len(waiting.slurm), 'SLURM job')} cancelled.")
    told = {one.pid for one in waiting.alive if _stop(one.host, one.pid)}
    for one in waiting.alive:
        if one.pid not in told:
            words = f"{one.launcher}, process {one.pid} on {one.host}"
            beyond.append(f"{words}, cannot be reached from here")
    stopping = []
    for status in (one for one in statuses if one.state == states.RUNNING):
        holder, folder = status.holder or UNKNOWN, JobFolder(status.job.folder)
        # A launcher that got the signal stops its own jobs.
        is_told = holder.slurm in waiting.slurm or holder.pid in told
        if is_told or not folder.is_held() or (_is_still(holder) and _stop(*holder[:2])):
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


def _stop(host: str, pid: int) -> bool:
    """Tell a process, if it is of this machine, to save and exit; True if it exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid > 0 and host == socket.gethostname():
            os.kill(pid, signal.SIGTERM)
            return True
    return False


def clean(arguments: argparse.Namespace) -> int:
    """Delete leftover files and, with ``--incomplete``, jobs that are not done, run or wait."""
    output = arguments.output_dir
    waiting, statuses = states.of_output(output)
    done = [one.job.folder for one in statuses if one.state == states.DONE]
    of_no_use = [path for folder in done for name in LEFTOVERS for path in folder.glob(name)]
    of_no_use += waiting.ended
    for path in of_no_use:
        path.unlink(missing_ok=True)  # the job, or another clean, may be faster
    for path in (*output.glob(f"{_DELETED}*"), *output.glob(f"*/{_DELETED}*")):  # cut short
        shutil.rmtree(path, ignore_errors=True)
    print(f"{counted(len(of_no_use), 'leftover file')} deleted.")
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
    print(f"{counted(len(gone), 'job')} deleted.")
    return 0


def _remove_job(path: Path, waiting: Waiting) -> bool:
    """Delete the folder of a job, unless the job is done, running or queued by now."""
    if not path.is_dir():
        return path not in waiting.places
    folder = JobFolder(path)
    with contextlib.suppress(Held, FileNotFoundError), folder.claim():
        if folder.done or (path in waiting.places and not folder.failed()):
            return False
        # All at once: a launch from now on makes a new folder with its own lock.
        away = path.rename(path.with_name(f"{_DELETED}{path.name}-{os.getpid()}"))
        shutil.rmtree(away)
        return True
    return False
