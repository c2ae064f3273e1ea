"""Reading the job folders of sweeps, on several processors. No numpy."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from domainbed_carft.jobs import records, scan
from domainbed_carft.jobs.records import Read

# Starting processes pays from about so many jobs on.
_WORTH_IT = 300


def read(
    folders: Sequence[Path | str],
    processes: int = 1,
    meanwhile: Callable[[], object] = lambda: None,
) -> Read:
    """Everything in the job folders among ``folders`` and below, in their order.

    ``processes``: how many read at once; they are forked, so more than one suits a process without
    threads. ``meanwhile`` is called while they read.
    """
    found, faults = scan.find(folders)
    if processes < 2 or len(found) < _WORTH_IT or not hasattr(os, "fork"):
        parts = [_read_all(found)]
    else:
        parts = _read_in_parallel(found, processes, meanwhile)
    whole = _joined(parts)
    return whole._replace(faults=faults + whole.faults)


def processors() -> int:
    """How many processors this process may use; more than four read no faster."""
    usable = getattr(os, "sched_getaffinity", None)
    return min(4, len(usable(0)) if usable else os.cpu_count() or 1)


def _read_all(found: Sequence[scan.Found]) -> Read:
    collects = gc.isenabled()
    gc.disable()  # what is decoded has no cycles, and looking for some takes time
    try:
        return _joined([records.read(job) for job in found])
    finally:
        if collects:
            gc.enable()


def _joined(parts: Sequence[Read]) -> Read:
    return Read(
        [run for part in parts for run in part.runs],
        [job for part in parts for job in part.planned],
        [fault for part in parts for fault in part.faults],
        sum(part.records for part in parts),
    )


def _read_in_parallel(
    found: Sequence[scan.Found], processes: int, meanwhile: Callable[[], object]
) -> list[Read]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    size = max(50, len(found) // (8 * processes))
    chunks = [found[start : start + size] for start in range(0, len(found), size)]
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        parts = [pool.submit(_read_all, chunk) for chunk in chunks]
        meanwhile()
        return [part.result() for part in parts]
