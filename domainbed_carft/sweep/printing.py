"""What ``carft sweep`` prints: states, estimates, a bar."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states
from domainbed_carft.sweep.states import Status
from domainbed_carft.text import counted as number
from domainbed_carft.text import duration, limited, shown, table

if TYPE_CHECKING:
    from domainbed_carft.sweep.estimate import Pace, Row


def counted(statuses: Iterable[Status]) -> str:
    """``12 done (2 diverged), 3 running``."""
    listed = list(statuses)
    counts = Counter(status.state for status in listed)
    parts = [f"{counts[state]} {state}" for state in states.STATES if counts[state]]
    if diverged := sum(status.diverged for status in listed):
        parts[0] += f" ({diverged} diverged)"  # only what is done, which comes first
    return ", ".join(parts)


def overview(statuses: Sequence[Status]) -> str:
    """The whole of ``status``: totals, a table by algorithm, then jobs that need a look."""
    if not statuses:
        return "There are no jobs."
    lines = [f"{number(len(statuses), 'job')}: {counted(statuses)}.", _progress(statuses), ""]
    lines.append(_by_group(statuses))
    diverged = "Diverged; carft collect leaves out their accuracies from then on:"
    for title, chosen in (
        ("Running:", [s for s in statuses if s.state == states.RUNNING]),
        (
            "Failed; left alone until carft sweep retry:",
            [s for s in statuses if s.state == states.FAILED],
        ),
        (
            "Interrupted; launch again to resume:",
            [s for s in statuses if s.state == states.INTERRUPTED],
        ),
        (diverged, [s for s in statuses if s.diverged]),
    ):
        if chosen:
            lines += ["", title, *limited([f"  {_line(status)}" for status in chosen])]
    return "\n".join(lines)


def _by_group(statuses: Sequence[Status]) -> str:
    """Counts of states, a line a variant, data set and algorithm."""
    groups: dict[tuple[str, str, str], Counter[str]] = {}
    for status in statuses:
        args = status.job.args
        key = (status.job.variant, str(args.get("dataset", "?")), str(args.get("algorithm", "?")))
        groups.setdefault(key, Counter())[status.state] += 1
    present = [s for s in states.STATES if any(c[s] for c in groups.values())]
    rows = [[*key, *(str(c[s]) if c[s] else "-" for s in present)] for key, c in groups.items()]
    return table(["variant", "data set", "algorithm", *present], rows)


def _progress(statuses: Sequence[Status]) -> str:
    known = [status for status in statuses if status.steps]
    done = sum(min(status.step, status.steps or 0) for status in known)
    total = sum(status.steps or 0 for status in known)
    speed = sum(status.pictures_per_second or 0 for status in statuses)
    rate = f"; {speed:,.0f} images a second" if speed else ""
    return f"{done:,} of {total:,} steps ({100 * done / total:.0f}%){rate}." if total else ""


def _line(status: Status) -> str:
    parts = [str(status.job)]
    if status.state == states.RUNNING:
        of = f" of {status.steps:,}" if status.steps else ""
        parts.append(f"step {status.step:,}{of}")
        if status.pictures_per_second:
            parts.append(f"{status.pictures_per_second:,.1f} images a second")
        if status.eta is not None:
            parts.append(f"{duration(status.eta)} left")
        parts.append(str(status.holder))
    elif status.detail:
        parts.append(status.detail)
    return shown("; ".join([*parts, status.job.folder.name]))


def failures(left: Sequence[Status], output: Path) -> str:
    """The jobs that failed, with exit status and last words, then others that are not done."""
    failed = [status for status in left if status.state == states.FAILED]
    others = [status for status in left if status.state != states.FAILED]
    lines = []
    for title, group in (("failed", failed), ("not done", others)):
        if group:
            reasons = [shown(f"  {s.job}: {s.detail or s.state}; {s.job.folder}") for s in group]
            lines += [f"{number(len(group), 'job')} {title}:", *limited(reasons)]
    if failed:
        lines.append(f"Once the cause is mended: {again('retry', output)}, then launch again.")
    return "\n".join(lines)


def estimate(rows: Sequence[Row], paces: Mapping[Any, Pace], skips: bool) -> str:
    """The costs that ``--dry_run`` shows; ``skips`` are those of ``--skip_training_in_splits``."""
    head = ["variant", "data set", "algorithm", "jobs", "done", "steps", "trained", "evaluated"]
    cells = [
        [
            row.variant, row.dataset, row.algorithm, f"{row.jobs:,}", f"{row.done:,}",
            f"{row.steps:,}", f"{row.trained:,}", _number(row.evaluated), _hours(row.hours),
        ]
        for row in rows
    ]  # fmt: skip
    which = "both splits of every environment"
    if skips:
        which = (
            "both splits of test environments, out-splits of the others (a checkout's own train "
            "evaluates all)"
        )
    lines = [table([*head, "hours left"], cells)]
    lines.append(f"Trained, evaluated: pictures. Evaluated: {which}.")
    if not paces:
        lines.append(
            "Hours: nothing is measured yet. --measure times a few steps of each algorithm on this "
            "machine; jobs in this folder are timed by their records."
        )
    for (dataset, algorithm), pace in paces.items():
        lines.append(f"Hours of {dataset} {algorithm}: from {pace.source}.")
    return "\n".join(lines)


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2f}" if hours < 10 else f"{hours:,.0f}"


@contextmanager
def bar(statuses: Sequence[Status], facts: Mapping[str, manifest.Dataset]) -> Iterator[None]:
    """A bar over all steps of the sweep while the block runs, fed from locks and records."""
    from tqdm import tqdm

    total = sum(status.steps or 1 for status in statuses)
    ended = threading.Event()
    with tqdm(
        total=total, initial=sum(map(_counted, statuses)), unit="step", smoothing=0, desc="sweep"
    ) as shown:
        thread = threading.Thread(target=_watch, args=(statuses, facts, shown, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=30)


def _watch(
    statuses: Sequence[Status], facts: Mapping[str, Any], shown: Any, ended: threading.Event
) -> None:
    latest = {status.job.folder: status for status in statuses}
    over = False
    while not over:
        over = ended.is_set()
        started = time.monotonic()
        for folder, before in latest.items():
            if before.state != states.DONE:
                latest[folder] = states.status(before.job, facts, states.Waiting())
        counts = [status.state for status in latest.values()]
        failed = f", {counts.count(states.FAILED)} failed" if states.FAILED in counts else ""
        text = f"{counts.count(states.DONE)} of {len(counts)} jobs done{failed}"
        # On a screen the clock goes on between records; a log gets a line a change.
        shown.set_postfix_str(text, refresh=False)
        steps = sum(map(_counted, latest.values()))
        if steps != shown.n:
            shown.update(steps - shown.n)
        elif sys.stderr.isatty():
            shown.refresh()
        # Of thousands of jobs a look takes a while; the sweep comes first.
        ended.wait(max(0.5, 10 * (time.monotonic() - started)) if not over else 0)


def _counted(status: Status) -> int:
    """Steps to show for a job; one whose steps are not known counts as one."""
    if status.steps is None:
        return int(status.state == states.DONE)
    return min(status.step, status.steps)


def again(command: str, output: Path) -> str:
    """A command line to copy."""
    return f"carft sweep {command} {shlex.quote(str(output))}"
