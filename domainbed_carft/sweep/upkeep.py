"""``carft sweep``: a function a command."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import UNKNOWN
from domainbed_carft.sweep import clearing, output, printing, recalled, states
from domainbed_carft.sweep.launch import again, confirm, launch
from domainbed_carft.sweep.states import Queues, Status

__all__ = ["cancel", "clean", "launch", "retry", "status"]

SHORTEST_WATCH = 0.2  # seconds
PATIENCE = 120  # seconds that stopped jobs have to save


def status(arguments: argparse.Namespace) -> int:
    """Print the states; 1 if a job failed."""
    every = arguments.watch
    if every is not None and not every >= SHORTEST_WATCH:
        raise CarftError(f"--watch is {every}, expected at least {SHORTEST_WATCH} seconds")
    try:
        return _watch(arguments, every)
    except KeyboardInterrupt:  # the way out of --watch
        return 130


def _watch(arguments: argparse.Namespace, every: float | None) -> int:
    while True:
        started = time.monotonic()
        waiting, statuses = look(arguments.output_dir)
        _show(arguments, waiting, statuses)
        if every is None or not _moving(statuses):
            return int(any(one.state == states.FAILED for one in statuses))
        # At most a tenth of the time goes into looking.
        time.sleep(max(every, 9 * (time.monotonic() - started)))


def look(folder: Path) -> tuple[Queues, list[Status]]:
    """The states of all jobs of an output folder: those that were launched, and others in it."""
    launched = recalled.declared(folder)
    known = [] if launched is None else output.settle(launched[1], folder)
    waiting = states.queues(folder)
    return waiting, states.look([*known, *output.found_jobs(folder, known)], folder, waiting)


def _moving(statuses: Sequence[Status]) -> bool:
    return any(one.state in (states.RUNNING, states.QUEUED) for one in statuses)


def _show(arguments: argparse.Namespace, waiting: Queues, statuses: Sequence[Status]) -> None:
    if arguments.json:
        print(json.dumps(_as_dict(arguments.output_dir, waiting, statuses), indent=1), flush=True)
        return
    redraws = arguments.watch is not None and sys.stdout.isatty()
    # Clears the screen and what was scrolled off it, then starts at its top.
    head = "\033[2J\033[3J\033[H" if redraws else ""
    if arguments.watch is not None:
        head += f"{arguments.output_dir}  {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    note = f"\n{waiting.note}" if waiting.note else ""
    print(head + printing.overview(statuses) + note, flush=True)


def _as_dict(folder: Path, waiting: Queues, statuses: Sequence[Status]) -> dict[str, Any]:
    counts = {state: sum(one.state == state for one in statuses) for state in states.STATES}
    return {
        "output_dir": str(folder),
        "at": time.time(),
        "counts": counts,
        "note": waiting.note,
        "jobs": [one.as_dict() for one in statuses],
    }


def retry(arguments: argparse.Namespace) -> int:
    """Forget the failures of failed jobs, so that the next launch takes them up."""
    _, statuses = look(arguments.output_dir)
    failed = [one for one in statuses if one.state == states.FAILED]
    chosen = [one for one in failed if clearing.matches(one, arguments.only)]
    if failed and not chosen:
        names = "\n".join(
            printing.limited([f"  {one.job}; {one.job.folder.name}" for one in failed])
        )
        raise CarftError(f"no failed job matches {arguments.only!r}; those that failed:\n{names}")
    clearing.forgive(chosen)
    print(f"{len(chosen)} of {len(failed)} failed jobs may be tried again.")
    if chosen:
        print(f"Now run the same carft sweep launch again, with --output_dir {_quoted(arguments)}.")
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Stop launchers, SLURM jobs and what still runs here; 1 if something could not be reached."""
    folder = arguments.output_dir
    waiting, statuses = look(folder)
    if not _moving(statuses) and not waiting.slurm:
        print(f"Nothing runs or waits.{' ' + waiting.note if waiting.note else ''}")
        return 0
    print(f"About to stop: {printing.counted(s for s in statuses if s.state in _STOPPED)}.")
    confirm(arguments.yes)
    beyond = [waiting.note] if waiting.note else []
    if waiting.slurm:
        from domainbed_carft.launchers import slurm

        slurm.cancel(waiting.slurm)
        print(f"{printing.number(len(waiting.slurm), 'SLURM job')} cancelled.")
    told = set()
    for launcher in (one for one in waiting.launches if one.alive):
        if clearing.is_here(launcher.host) and clearing.stop(launcher.pid):
            told.add(launcher.pid)
        else:
            beyond.append(
                f"{launcher.launcher}, process {launcher.pid} on {launcher.host}, cannot be "
                "reached from here: run the same command there"
            )
    here, out_of_reach = _stop_orphans(statuses, told, waiting.slurm)
    beyond += out_of_reach
    left = clearing.wait_until_free(here, PATIENCE)
    beyond += [f"{folder} still runs {PATIENCE} s after it was told to stop" for folder in left]
    for line in beyond:
        print(line, file=sys.stderr)
    print(f"{printing.number(len(here) - len(left), 'job')} stopped; launch again to go on.")
    return 1 if beyond else 0


_STOPPED = (states.RUNNING, states.QUEUED)


def _stop_orphans(
    statuses: Sequence[Status], told: Collection[int], cancelled: Collection[str]
) -> tuple[list[Path], list[str]]:
    """Stop running jobs of which no launcher was told: it is gone, or there never was one.

    Args:
        told: processes of launchers that stop their own jobs.
        cancelled: SLURM jobs.

    Returns the folders of those here that will end, and who cannot be reached.
    """
    stopping, beyond = [], []
    for one in (one for one in statuses if one.state == states.RUNNING):
        holder, folder = one.holder or UNKNOWN, one.job.folder
        slurm = holder.slurm in cancelled
        if holder.pid and not clearing.is_here(holder.host):
            if not slurm:
                beyond.append(f"{folder} is run by {holder}, not on this machine")
        elif slurm or clearing.stop_job(folder, told):
            stopping.append(folder)
        else:
            beyond.append(
                f"{folder} is run by {holder}, which cannot be reached: no process that holds its "
                "lock is to be seen here, or may be stopped; it is another user's or container's"
            )
    return stopping, beyond


def clean(arguments: argparse.Namespace) -> int:
    """Remove what is of no use any more, never of a job that runs or waits."""
    folder = arguments.output_dir
    waiting, statuses = look(folder)
    done = [one for one in statuses if one.state == states.DONE]
    files = clearing.leftovers(done) + clearing.ended_launches(folder)
    count, size = clearing.remove_files(files)
    for path in clearing.half_deleted(folder):
        shutil.rmtree(path, ignore_errors=True)
    print(f"{printing.number(count, 'file')} removed, {printing.size_of(size)}.")
    if not arguments.incomplete:
        return 0
    wanted = [states.STOPPED, states.STALE, states.FAILED, states.NOT_LAUNCHED]
    wanted += [states.UNKNOWN] if arguments.unknown else []
    chosen = [one for one in statuses if one.state in wanted and one.job.folder.is_dir()]
    kept = [one for one in statuses if one.state == states.UNKNOWN and not arguments.unknown]
    if kept:
        print(
            f"{printing.number(len(kept), 'folder')} made by another tool, of which is not to be "
            "seen whether it still runs, will stay. If it does not: --unknown."
        )
    if waiting.note and chosen:
        raise CarftError(f"{waiting.note}; so it is not known which jobs wait, and none is deleted")
    if not chosen:
        print("There is no incomplete job to delete.")
        return 0
    print(f"About to delete {printing.number(len(chosen), 'folder')}: {printing.counted(chosen)}.")
    confirm(arguments.yes)
    deleted = sum(clearing.remove_folder(one, folder) for one in chosen)
    print(
        f"{printing.number(deleted, 'folder')} deleted. {again('status', folder)} shows the rest."
    )
    return 0


def _quoted(arguments: argparse.Namespace) -> str:
    return again("", arguments.output_dir).split(" ", 3)[-1]
