"""What ``carft sweep`` prints: states, estimates, and figures for people."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from domainbed_carft.sweep import states
from domainbed_carft.sweep.estimate import Estimate
from domainbed_carft.sweep.states import Status

SHOWN = 20


def number(count: int, word: str) -> str:
    """``1 job``, ``1,320 jobs``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


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
    lines.append(by_group(statuses))
    for state, title in (
        (states.RUNNING, "Running:"),
        (states.FAILED, "Failed, and left alone until carft sweep retry:"),
        (states.STALE, "Stale, their process died; launch again and they go on:"),
        (states.STOPPED, "Stopped before their end; launch again and they go on:"),
        (states.UNKNOWN, "Unknown, made by another tool:"),
    ):
        found = [status for status in statuses if status.state == state]
        if found:
            lines += ["", title, *limited([_line(status) for status in found])]
    if diverged := [_line(status) for status in statuses if status.diverged]:
        title = "Diverged, so that carft collect leaves out their last accuracies:"
        lines += ["", title, *limited(diverged)]
    return "\n".join(line for line in lines if line is not None)


def limited(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"  ... and {more} more (--json has all)"] if more > 0 else [])]


def by_group(statuses: Sequence[Status]) -> str:
    """Counts of states, a line a variant, data set and algorithm."""
    groups: dict[tuple[str, str, str], Counter[str]] = {}
    for status in statuses:
        args = status.job.train_args
        key = (status.job.variant, str(args["dataset"]), str(args["algorithm"]))
        groups.setdefault(key, Counter())[status.state] += 1
    present = [s for s in states.STATES if any(c[s] for c in groups.values())]
    head = ["variant", "data set", "algorithm", *present]
    rows = [[*key, *(str(c[s]) if c[s] else "-" for s in present)] for key, c in groups.items()]
    return table([head, *rows])


def _progress(statuses: Sequence[Status]) -> str:
    known = [status for status in statuses if status.steps]
    done = sum(min(status.step, status.steps or 0) for status in known)
    total = sum(status.steps or 0 for status in known)
    speed = sum(status.pictures_per_second or 0 for status in statuses)
    rate = f"; {speed:,.0f} images a second" if speed else ""
    return f"{done:,} of {total:,} steps ({100 * done / total:.0f}%){rate}." if total else ""


def _line(status: Status) -> str:
    parts = [f"  {status.job}"]
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
    return "; ".join([*parts, status.job.folder.name])


def failures(left: Sequence[Status]) -> str:
    """The jobs that failed, with exit status and last words, then others that are not done."""
    failed = [status for status in left if status.state == states.FAILED]
    others = [status for status in left if status.state != states.FAILED]
    lines = []
    for title, group in (("failed", failed), ("not done", others)):
        if group:
            reasons = [f"  {s.job}: {s.detail or s.state}; {s.job.folder}" for s in group]
            lines += [f"{number(len(group), 'job')} {title}:", *limited(reasons)]
    return "\n".join(lines)


_ALL = "both splits of every environment"
_SKIPS = (
    "both splits of test environments, out-splits of the others, as asked for (a checkout's own "
    "train evaluates all)"
)


def estimate(made: Estimate, how_to_measure: str) -> str:
    """The whole of ``--dry-run``."""
    head = ["variant", "data set", "algorithm", "jobs", "done", "steps", "trained", "evaluated"]
    rows = [
        [
            row.variant, row.dataset, row.algorithm, str(row.jobs), str(row.done),
            f"{row.steps:,}", f"{row.trained:,}", _number(row.evaluated), _hours(made.hours(row)),
        ]
        for row in made.rows
    ]  # fmt: skip
    evaluated = [row.evaluated for row in made.rows]
    known = [count for count in evaluated if count is not None]
    hours = [made.hours(row) for row in made.rows]
    measured = [each for each in hours if each is not None]
    total = [
        "all", "", "", str(sum(row.jobs for row in made.rows)),
        str(sum(row.done for row in made.rows)), f"{sum(row.steps for row in made.rows):,}",
        f"{sum(row.trained for row in made.rows):,}",
        f"{sum(known):,}" if len(known) == len(evaluated) else "?",
        _hours(sum(measured)) if len(measured) == len(hours) else "?",
    ]  # fmt: skip
    lines = [table([[*head, "hours left"], *rows, total])]
    lines.append(f"Trained, evaluated: pictures. Evaluated: {_SKIPS if made.skips else _ALL}.")
    lines.append(_time(made, how_to_measure))
    lines.append(_disk(made))
    return "\n".join(lines)


def _time(made: Estimate, how_to_measure: str) -> str:
    if not made.paces:
        return f"Hours: nothing is measured yet. {how_to_measure}"
    lines = ["Hours: of the jobs that are not done, one after another on one such device."]
    for (dataset, algorithm), pace in made.paces.items():
        lines.append(f"  {dataset} {algorithm}: from {pace.source}; without: {pace.left_out}.")
    groups = {(row.dataset, row.algorithm) for row in made.rows if row.done < row.jobs}
    if groups - made.paces.keys():
        lines.append(f"  Of {len(groups - made.paces.keys())} others nothing is measured.")
    return "\n".join(lines)


def _disk(made: Estimate) -> str:
    sizes = [made.disk(row) for row in made.rows]
    known = [size for size in sizes if size is not None]
    if not known:
        return "Disk: not known before a job is done or --measure has run."
    part = "" if len(known) == len(sizes) else ", for the rows of which something is measured"
    return (
        f"Disk: {size_of(sum(known))} when all jobs are done{part}; a running job keeps its state "
        "beside that, and removes it at the end."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, figures to the right, without empty columns."""
    columns = [c for c in zip(*rows) if any(cell not in ("", "-", "?") for cell in c[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() or cell in "-?" else cell.ljust(width)
            for cell, width in zip(row, widths)
        ).rstrip()
        for row in zip(*columns)
    )


def duration(seconds: float) -> str:
    """``3 d 4 h``, ``4 h 5 min``, ``5:06``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes}:{rest:02}"


def size_of(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def clock() -> str:
    """Now, for the head of a redrawn screen."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2f}" if hours < 10 else f"{hours:,.0f}"
