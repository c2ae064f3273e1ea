"""The words of ``carft sweep`` for states, and its progress bar."""

from __future__ import annotations

import shlex
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states
from domainbed_carft.sweep.states import Status
from domainbed_carft.text import counted as number
from domainbed_carft.text import limited, progress, shown, table


def counted(statuses: Iterable[Status]) -> str:
    """``12 done (2 diverged), 3 running``."""
    listed = list(statuses)
    counts = Counter(status.state for status in listed)
    parts = [f"{counts[state]} {state}" for state in states.STATES if counts[state]]
    if diverged := sum(status.diverged for status in listed):
        parts[0] += f" ({diverged} diverged)"  # only what is done, which comes first
    return ", ".join(parts)


def overview(statuses: Sequence[Status]) -> str:
    """The output of ``status``: totals, a table by algorithm, then jobs that need attention."""
    if not statuses:
        return "There are no jobs."
    steps = [(min(one.step, one.steps), one.steps) for one in statuses if one.steps]
    done, total = sum(step for step, _ in steps), sum(of for _, of in steps)
    of_steps = f"{done:,} of {total:,} steps ({100 * done / total:.0f}%)." if total else ""
    groups: dict[tuple[str, str, str], Counter[str]] = {}
    for one in statuses:
        args = one.job.args
        key = (one.job.variant, str(args.get("dataset", "?")), str(args.get("algorithm", "?")))
        groups.setdefault(key, Counter())[one.state] += 1
    rows = [[*key, *(str(c[s] or "-") for s in states.STATES)] for key, c in groups.items()]
    head = ["variant", "data set", "algorithm", *states.STATES]
    totals = f"{number(len(statuses), 'job')}: {counted(statuses)}."
    lines = [totals, of_steps, "", table(head, rows)]
    titles = {
        states.RUNNING: "Running:",
        states.FAILED: "Failed (launch again after carft sweep retry):",
        states.INTERRUPTED: "Interrupted (launch again to resume):",
        states.DONE: "Diverged (carft collect leaves out their accuracies from then on):",
    }
    for state, title in titles.items():
        chosen = [s for s in statuses if s.state == state and (s.diverged or state != states.DONE)]
        if chosen:
            lines += ["", title, *limited([f"  {_line(status)}" for status in chosen])]
    return "\n".join(lines)


def _line(status: Status) -> str:
    parts = [str(status.job)]
    if status.state == states.RUNNING:
        parts.append(f"step {status.step:,}" + (f" of {status.steps:,}" if status.steps else ""))
        if status.pictures_per_second:
            parts.append(f"{status.pictures_per_second:,.1f} images/s")
        if status.eta is not None:
            parts.append(f"{tqdm.format_interval(status.eta)} left")
    parts += [status.detail] if status.detail else []
    return shown("; ".join([*parts, status.job.folder.name]))


def failures(left: Sequence[Status], output: Path) -> str:
    """The jobs that failed, with exit status and last words, then others that are not done."""
    failed = [status for status in left if status.state == states.FAILED]
    lines = []
    for title, group in (("failed", failed), ("not done", [s for s in left if s not in failed])):
        told = [", ".join(filter(None, [f"  {s.job}: {s.state}", s.detail])) for s in group]
        told = [shown(f"{line}; {s.job.folder}") for line, s in zip(told, group)]
        lines += [f"{number(len(group), 'job')} {title}:", *limited(told)] if group else []
    if failed:
        lines.append(f"Fix the cause, run {again('retry', output)}, then launch again.")
    return "\n".join(lines)


@contextmanager
def bar(statuses: Sequence[Status], facts: Mapping[str, manifest.Dataset]) -> Iterator[None]:
    """Show how far all steps of the sweep are while the block runs, from locks and records."""
    latest, ended = list(statuses), threading.Event()
    total, done = sum(status.steps or 1 for status in latest), sum(map(_counted, latest))

    def watch() -> None:
        over = False
        while not over:
            # Of thousands of jobs a look takes a while; the sweep comes first.
            over = ended.wait(max(0.5, len(latest) / 100))
            for index, one in enumerate(latest):
                if one.state != states.DONE:
                    latest[index] = states.status(one.job, facts)
            counts = Counter(one.state for one in latest)
            failed = f", {counts[states.FAILED]} failed" if counts[states.FAILED] else ""
            text = f"{counts[states.DONE]} of {len(latest)} jobs done{failed}"
            shown_progress.set_postfix_str(text)
            # A job that starts over has fewer: the bar waits for it.
            shown_progress.update(max(0, sum(map(_counted, latest)) - shown_progress.n))

    with progress(total=total, done=done, unit="step", description="sweep") as shown_progress:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _counted(status: Status) -> int:
    """Steps to show for a job; one whose steps are not known counts as one."""
    if status.steps is None:
        return int(status.state == states.DONE)
    return min(status.step, status.steps)


def again(command: str, output: Path) -> str:
    """A command line to copy."""
    return f"carft sweep {command} {shlex.quote(str(output))}"
