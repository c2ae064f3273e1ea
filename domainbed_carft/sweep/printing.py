"""Texts that ``carft sweep`` prints about plans and states, and its progress bar."""

from __future__ import annotations

import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from domainbed_carft import process_variables
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import CHOOSE, REPEAT
from domainbed_carft.jobs.manifest import ChosenValues, Search, format_trials
from domainbed_carft.launchers import slurm
from domainbed_carft.launchers.options import SlurmOptions
from domainbed_carft.progress_bar import NO_ESTIMATE, progress
from domainbed_carft.sweep import states
from domainbed_carft.sweep.states import Status, SweepState
from domainbed_carft.text_tables import table
from domainbed_carft.wording import limit_lines, quantity

# The progress bar reads the states of all jobs at this interval per job, or at the minimum.
SECONDS_PER_JOB = 0.01
MIN_SECONDS = 0.5

# The tables of jobs that need attention in the output of `carft sweep status`.
_TITLES = {
    states.RUNNING: "Running:",
    states.FAILED: "Failed (launch again after carft sweep retry):",
    states.INTERRUPTED: "Interrupted (launch again to resume):",
    states.DONE: "Diverged (carft collect ignores their accuracies after that step):",
}


def counts_phrase(statuses: Iterable[Status]) -> str:
    """Return the number of jobs in each state, such as ``12 done (2 diverged), 3 running``."""
    listed = list(statuses)
    parts = [f"{count} {state}" for state, count in states.count_by_state(listed).items() if count]
    if diverged := sum(status.diverged for status in listed):
        parts[0] += f" ({diverged} diverged)"  # only finished jobs diverge, and they come first
    return ", ".join(parts)


def overview(statuses: Sequence[Status]) -> list[str]:
    """Return the lines of ``status``: totals, a table by algorithm, jobs that need attention."""
    if not statuses:
        return ["There are no jobs."]

    totals = f"{quantity(len(statuses), 'job')}: {counts_phrase(statuses)}."
    lines = [totals, _steps_phrase(statuses), "", *_table_by_algorithm(statuses).splitlines()]

    for state, title in _TITLES.items():
        needs_diverged = state == states.DONE
        listed = [
            status
            for status in statuses
            if status.state == state and (status.diverged or not needs_diverged)
        ]
        if listed:
            lines += ["", title, *limit_lines([f"  {_status_line(status)}" for status in listed])]
    if waiting := waiting_lines(statuses):
        lines += ["", *waiting]
    return lines


def waiting_lines(statuses: Iterable[Status]) -> list[str]:
    """Return the number of jobs that wait in SLURM for each reason, with hints."""
    counter = Counter(status.slurm_reason for status in statuses)
    reasons = [reason for reason in counter if reason not in ("", slurm.NO_REASON)]
    if not reasons:
        return []

    lines = ["Waiting in SLURM:"]
    for reason in sorted(reasons):
        line = f"  {quantity(counter[reason], 'job')}: {reason}"
        if slurm.is_lasting(reason):
            line += (
                ". SLURM does not start them: run carft sweep cancel, change the request, and "
                "launch again"
            )
        lines.append(line)
    return lines


def search_lines(state: SweepState) -> list[str]:
    """Return the progress of a search's stages, its choices, and a hint if it needs a launch."""
    search = state.search
    if search is None:
        return []

    lines = stage_lines(search, state)
    lines += limit_lines([f"  chosen: {_chosen_phrase(chosen)}" for chosen in search.chosen])
    if state.needs_second_launch:
        lines.append("The first stage is done. To launch the second, launch the sweep again.")
    return lines


def stage_lines(search: Search, state: SweepState) -> list[str]:
    """Return the states of both stages of a search on their trials."""
    first = state.get_stage(CHOOSE)
    counts = f"{quantity(len(first), 'job')}: {counts_phrase(first)}."
    lines = [f"First stage, {format_trials(search.choose_on)}: {counts}"]

    second = state.get_stage(REPEAT)
    counts = f"{quantity(len(second), 'job')}: {counts_phrase(second)}."
    if search.is_choosing:
        counts = f"{quantity(search.repeats, 'job')} when the first is done."
    return [*lines, f"Second stage, {format_trials(search.repeat_on)}: {counts}"]


def _chosen_phrase(chosen: ChosenValues) -> str:
    values = " ".join(f"{name}={value}" for name, value in chosen.values.items())
    name = " ".join(filter(None, [chosen.cell, chosen.dataset, chosen.algorithm]))
    if chosen.test_envs is not None:
        name += f", test environments {' '.join(map(str, chosen.test_envs))}"
    accuracy = f"{100 * chosen.validation:.1f}% in validation"
    return f"{name}: {values} of {chosen.members}, {accuracy}"


def evaluation_line(skips: bool) -> str:
    """Return the splits that the jobs evaluate, and how to choose the opposite."""
    if skips:
        return "Evaluation: without training in-splits (--training-in-splits adds them)."
    variable = process_variables.SKIP_TRAINING_IN_SPLITS.name
    return f"Evaluation: with training in-splits ({variable}=1 skips them)."


def request_line(options: SlurmOptions) -> str:
    """Return the resources that each job requests from SLURM."""
    resources = [quantity(options.gpus, "GPU"), quantity(options.cpus, "CPU core")]
    if options.memory_gb:
        resources.append(f"{options.memory_gb:g} GB")
    return f"SLURM: each job requests {', '.join(resources)}, and a time limit of {options.time}."


def failures(unfinished: Sequence[Status], output: Path) -> list[str]:
    """List failed jobs with exit status and last words, then other unfinished jobs."""
    failed = [status for status in unfinished if status.state == states.FAILED]
    not_done = [status for status in unfinished if status.state != states.FAILED]

    lines = []
    for title, group in (("failed", failed), ("not done", not_done)):
        if group:
            lines.append(f"{quantity(len(group), 'job')} {title}:")
            lines += limit_lines([_failure_line(status) for status in group])
    if failed:
        lines.append(f"Fix the cause, run {command_line('retry', output)}, then launch again.")
    return lines


def command_line(command: str, output: Path) -> str:
    """Return a command line to copy, such as ``carft sweep retry OUT``."""
    return f"carft sweep {command} {shlex.quote(str(output))}"


@contextmanager
def show_progress(
    statuses: Sequence[Status], facts: Mapping[str, manifest.Dataset]
) -> Iterator[None]:
    """Show a progress bar of the sweep's steps, and once a job has ended the time that is left."""
    latest = list(statuses)
    block_ended = threading.Event()
    total = sum(status.steps or 1 for status in latest)
    done = sum(map(_shown_steps, latest))
    jobs_done_before = states.count_by_state(latest)[states.DONE]

    def watch() -> None:
        is_last = False
        while not is_last:
            # Reading the states of thousands of jobs takes time that the jobs need.
            is_last = block_ended.wait(max(MIN_SECONDS, SECONDS_PER_JOB * len(latest)))
            for index, status in enumerate(latest):
                if status.state != states.DONE:
                    latest[index] = states.get_status(status.job, facts)

            counts = states.count_by_state(latest)
            failed = f", {counts[states.FAILED]} failed" if counts[states.FAILED] else ""
            note = f"{counts[states.DONE]} of {len(latest)} jobs done{failed}"
            # Until then, imports and first evaluations take longer than the steps.
            if counts[states.DONE] > jobs_done_before and progress_bar.bar_format == NO_ESTIMATE:
                progress_bar.bar_format = None
            progress_bar.set_postfix_str(note, refresh=sys.stderr.isatty())
            # The bar cannot go back for a job that starts over with fewer steps.
            progress_bar.update(max(0, sum(map(_shown_steps, latest)) - progress_bar.n))

    with progress(
        total=total, done=done, unit="step", description="sweep", has_estimate=False
    ) as progress_bar:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            block_ended.set()
            thread.join()


def _steps_phrase(statuses: Sequence[Status]) -> str:
    """Return ``14 of 88 steps (16%).``, or "" if all steps are unknown."""
    with_steps = [(status.step, status.steps) for status in statuses if status.steps]
    done = sum(min(step, steps) for step, steps in with_steps)
    total = sum(steps for _, steps in with_steps)
    return f"{done:,} of {total:,} steps ({100 * done / total:.0f}%)." if total else ""


def _table_by_algorithm(statuses: Sequence[Status]) -> str:
    counts_by_row: dict[tuple[str, str, str], Counter[str]] = {}
    for status in statuses:
        args = status.job.args
        dataset = str(args.get("dataset", "?"))
        algorithm = str(args.get("algorithm", "?"))
        row_name = (status.job.variant, dataset, algorithm)
        counts_by_row.setdefault(row_name, Counter())[status.state] += 1

    rows = [
        [*row_name, *(str(counts[state] or "-") for state in states.STATES)]
        for row_name, counts in counts_by_row.items()
    ]
    return table(["variant", "dataset", "algorithm", *states.STATES], rows)


def _status_line(status: Status) -> str:
    parts = [str(status.job)]
    if status.state == states.RUNNING:
        parts.append(f"step {status.step:,}" + (f" of {status.steps:,}" if status.steps else ""))
        if status.images_per_second:
            parts.append(f"{status.images_per_second:,.1f} images/s")
        if status.eta is not None:
            parts.append(f"{tqdm.format_interval(status.eta)} left")

    if status.detail:
        parts.append(status.detail)
    return "; ".join([*parts, status.job.folder.name])


def _failure_line(status: Status) -> str:
    line = f"  {status.job}: {status.state}"
    if status.detail:
        line += f", {status.detail}"
    return f"{line}; {status.job.folder}"


def _shown_steps(status: Status) -> int:
    """Return the steps to show for a job; a job with unknown steps counts as one step."""
    if status.steps is None:
        return int(status.state == states.DONE)
    return min(status.step, status.steps)
