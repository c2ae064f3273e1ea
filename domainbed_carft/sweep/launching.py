"""Launching the jobs of a sweep that need it, under one progress bar."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft import launchers
from domainbed_carft.errors import raise_for
from domainbed_carft.jobs.job import Job
from domainbed_carft.sweep import jobs, logs, names, output, states
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import Status

if TYPE_CHECKING:
    from domainbed_carft.launchers import Ending, Launcher

NEEDED = (states.NOT_LAUNCHED, states.STOPPED, states.STALE)


@dataclass(frozen=True)
class Origin:
    """Where a declaration is from: the file and its text, or DomainBed's flags."""

    file: str | None = None
    text: str | None = None
    flags: dict[str, object] | None = None


def look(declaration: Declaration, data_dir: str, folder: Path) -> list[Status]:
    """All jobs of the sweep, each in its folder, and their states."""
    return states.look(output.settle(jobs.make(declaration, data_dir, folder), folder), folder)


def needed(statuses: Sequence[Status], unknown: bool = False) -> list[Status]:
    """Those to launch; with ``unknown`` also those of which nobody can say whether they run."""
    wanted = (*NEEDED, states.UNKNOWN) if unknown else NEEDED
    return [status for status in statuses if status.state in wanted]


def run(
    declaration: Declaration,
    data_dir: str,
    folder: Path | str,
    launcher: Launcher,
    name: str = "pool",
    origin: Origin | None = None,
    unknown: bool = False,
    environment: Mapping[str, str] | None = None,
) -> list[Status]:
    """Run what is not done of a sweep; where the launcher waits, with a bar.

    Returns the jobs of the sweep that are not done by the end, each with the reason as its detail;
    none where the launcher does not wait.

    ``name`` is what the launcher is called; its jobs' folders are made and described first, so
    that a sweep that is interrupted can be looked at. ``environment`` is set for each job.

    Must be called from the main thread, where the launcher sees to Ctrl-C.
    """
    folder = Path(folder)
    statuses = look(declaration, data_dir, folder)
    chosen = needed(statuses, unknown)
    raise_for(launchers.problems(launcher, {status.job.folder.parent for status in chosen}))
    prepare(declaration, data_dir, folder, chosen, name, origin or Origin())
    if name == "slurm":
        if chosen:
            hand_over(launcher, chosen, environment)
        return []
    endings: Sequence[Ending] = ()
    if chosen:
        with bar(statuses, folder):
            endings = hand_over(launcher, chosen, environment)
    return not_done(states.look([status.job for status in statuses], folder), endings)


def hand_over(
    launcher: Launcher, chosen: Sequence[Status], environment: Mapping[str, str] | None = None
) -> list[Ending]:
    """Have a launcher run these jobs, with these variables set for each."""
    handed = [Job(one.job.train_args, one.job.folder, one.job.variant) for one in chosen]
    return launcher(handed, lambda job: logs.of_variant(environment or {}, job.variant)) or []


def not_done(statuses: Sequence[Status], endings: Sequence[Ending] = ()) -> list[Status]:
    """The jobs that are not done, each with the reason as its detail."""
    told = {ending.folder: ending for ending in endings}
    left = [status for status in statuses if status.state != states.DONE]
    return [replace(one, detail=_reason(one, told.get(one.job.folder))) for one in left]


def _reason(status: Status, failure: Ending | None) -> str:
    if status.state == states.RUNNING:
        return f"running elsewhere: {status.holder}"
    if status.state == states.QUEUED:
        return f"queued elsewhere: {status.detail}"
    if status.attempt is None and failure is not None:  # there could be no attempt
        return failure.last_words or str(failure)
    return status.detail or status.state


def prepare(
    declaration: Declaration,
    data_dir: str,
    folder: Path,
    chosen: Sequence[Status],
    launcher: str,
    origin: Origin,
) -> None:
    """Write down what is launched, in the output folder and in each job's."""
    folder.mkdir(parents=True, exist_ok=True)
    launched = output.Launched(
        declaration.name,
        data_dir,
        origin.file,
        origin.flags,
        {name: asdict(names.dataset(name)) for name in declaration.datasets},
        launcher,
        time.time(),
    )
    output.remember(folder, launched, origin.text)
    for status in chosen:
        output.describe(status.job, origin.file)


@contextmanager
def bar(statuses: Sequence[Status], folder: Path) -> Iterator[None]:
    """A bar over all steps of the sweep while the block runs, fed from locks and records."""
    from tqdm import tqdm

    total = sum(status.steps or 1 for status in statuses)
    before = sum(_counted(status) for status in statuses)
    ended = threading.Event()
    with tqdm(total=total, initial=before, unit="step", smoothing=0, desc="sweep") as shown:
        watcher = _Watcher(statuses, shown, ended)
        thread = threading.Thread(target=watcher.watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=30)


class _Watcher:
    def __init__(self, statuses: Sequence[Status], shown: Any, ended: threading.Event) -> None:
        self._open = {status.job.folder: status for status in statuses}
        self._jobs = len(statuses)
        self._closed = 0
        self._shown = shown
        self._ended = ended

    def watch(self) -> None:
        while True:
            over = self._ended.is_set()
            started = time.monotonic()
            self._update()
            if over:
                return
            # Of thousands of jobs a look takes a while; the sweep comes first.
            self._ended.wait(max(0.5, 10 * (time.monotonic() - started)))

    def _update(self) -> None:
        failed = 0
        idle = states.Queues()
        for folder, before in list(self._open.items()):
            now = states.status(before.job, idle)
            failed += now.state == states.FAILED
            if now.state == states.DONE:
                self._closed += now.steps or 1
                del self._open[folder]
            else:
                self._open[folder] = now
        steps = self._closed + sum(_counted(status) for status in self._open.values())
        done = self._jobs - len(self._open)
        failures = f", {failed} failed" if failed else ""
        screen = sys.stderr.isatty()
        # On a screen the clock goes on between records; a log gets a line a change.
        self._shown.set_postfix_str(f"{done} of {self._jobs} jobs done{failures}", refresh=False)
        if steps != self._shown.n:
            self._shown.update(steps - self._shown.n)
        elif screen:
            self._shown.refresh()


def _counted(status: Status) -> int:
    """Steps to show for a job; one whose steps are not known counts as one."""
    if status.steps is None:
        return int(status.state == states.DONE)
    return min(status.step, status.steps)
