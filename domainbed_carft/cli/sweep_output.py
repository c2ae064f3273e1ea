"""Output of the commands that run jobs: ``demo``, ``preflight`` and those of ``sweep``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.escaping import print_lines
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.sweep import printing, states, upkeep
from domainbed_carft.wording import quantity

# Plans load pydantic and jinja2, which `carft sweep status` does without.
if TYPE_CHECKING:
    from domainbed_carft.sweep.launch import LaunchPlan
    from domainbed_carft.sweep.preflight_file import Preflight, PreflightRow

FAILED = 1  # exit status


def demo_command(arguments: argparse.Namespace) -> None:
    """Train the demo, and print its table."""
    from domainbed_carft.cli import demo  # matplotlib and pandas take a second to import

    if arguments.trials is not None and arguments.trials < 1:
        raise CarftError(invalid("--trials", arguments.trials, "at least 1"))
    demo.run(arguments.output_dir, arguments.trials)


def preflight_command(arguments: argparse.Namespace) -> int:
    """Print a row for each test while it runs, then a conclusion; return 1 if a test failed."""
    from domainbed_carft.preflight.run import run_preflight  # torch takes seconds to import
    from domainbed_carft.sweep import launch, preflight_file

    plan = launch.plan(
        arguments.sweep,
        arguments.data_dir,
        arguments.output_dir,
        "pool",
        options={name: getattr(arguments, name) for name in arguments.launcher_options},
    )
    raise_for(plan.launcher_problems)
    arguments.status_of_errors = FAILED  # errors below are not caused by wrong arguments
    preflight = run_preflight(plan, report=(lambda row: None) if arguments.json else _print_row)
    preflight_file.write(plan.output, preflight)

    if arguments.json:
        print(json.dumps(preflight.model_dump(), indent=2))
    else:
        details = f"Details: {plan.output / preflight_file.NAME}"
        print_lines("", _describe_result(preflight), details)
    return FAILED if preflight.status == "failed" else 0


def _print_row(row: PreflightRow) -> None:
    hint = [f"{'':8} -> {row.hint}"] if row.hint else []
    print_lines(f"{row.state:8} {row.section}, {row.name}: {row.found}", *hint)


def _describe_result(preflight: Preflight) -> str:
    """Return the status of the preflight in a sentence, with advice if it failed."""
    counts = Counter(row.state for row in preflight.rows)
    rows = quantity(len(preflight.rows), "row")
    if counts["failure"]:
        failures = quantity(counts["failure"], "failure")
        return f"Failed: {failures} of {rows}, see the arrows. Fix them before you launch."
    if counts["warning"]:
        return f"Passed with {quantity(counts['warning'], 'warning')} of {rows}, see the arrows."
    return f"Passed: {rows}, {counts['skipped']} of them skipped."


def list_command(arguments: argparse.Namespace) -> None:
    """Print name and description of each included sweep."""
    from domainbed_carft.sweep import declaration_file

    descriptions = declaration_file.read_descriptions().items()
    width = max(len(name) for name, _ in descriptions)
    print_lines(*(f"{name:{width}}  {description}" for name, description in descriptions))


def launch_command(arguments: argparse.Namespace) -> int:
    """Launch the jobs that are not done; return 1 if some are not done at the end."""
    from domainbed_carft.sweep import launch

    plan = launch.plan(
        arguments.sweep,
        arguments.data_dir,
        arguments.output_dir,
        arguments.launcher,
        options={name: getattr(arguments, name) for name in arguments.launcher_options},
        keep_weights=arguments.keep_weights,
        log=arguments.log,
        skip_training_in_splits=arguments.skip_training_in_splits,
    )
    if arguments.dry_run:
        return _dry_run(plan)

    raise_for(plan.problems)
    _print_plan(plan)
    _print_failed(plan)
    print_lines(*printing.waiting_lines(plan.state.statuses))
    if plan.launcher_name != "dummy":
        _confirm_launch(plan, arguments.yes)

    unfinished = launch.run_plan(plan)
    if unfinished:
        print_lines(*printing.failures(unfinished, plan.output), stream=sys.stderr)
    elif plan.launcher_name == "slurm" and plan.jobs_to_run:
        print_lines(
            f"Submitted. To watch the jobs: {printing.command_line('status', plan.output)}",
            *printing.waiting_lines(states.read_state(plan.output).statuses),
        )
    return int(bool(unfinished))


def _dry_run(plan: LaunchPlan) -> int:
    """Print the plan and its costs, then refuse broken data."""
    from domainbed_carft.sweep import costs

    warnings = [f"Warning: a launch would fail: {problem}" for problem in plan.log_problems]
    print_lines(*warnings, stream=sys.stderr)
    preflight = _print_plan(plan)

    print_lines(f"Selection: {', '.join(plan.declaration.selection)}. Nothing is launched.", "")
    if plan.waiting_jobs:
        print_lines("The costs of the second stage assume the last member of each search.", "")
    estimate = plan.estimate_costs(preflight)
    print(costs.format_table(estimate, bool(plan.skips_training_in_splits), preflight))
    raise_for(plan.data_problems)
    return 0


def _print_plan(plan: LaunchPlan) -> Preflight | None:
    """Print jobs, data, evaluation and the last preflight; return it if it is current."""
    from domainbed_carft.sweep import preflight_file

    jobs = quantity(len(plan.state.statuses) + len(plan.waiting_jobs), "job")
    if plan.state.search:
        lines = [f"{plan.declaration.name}: {jobs} in two stages."]
        lines += printing.stage_lines(plan.state.search, plan.state)
    else:
        counts = printing.counts_phrase(plan.state.statuses)
        lines = [f"{plan.declaration.name}: {jobs}: {counts}."]
    lines += [f"Data: {finding.description}." for finding in plan.data_findings]
    if plan.skips_training_in_splits is not None:
        lines.append(printing.evaluation_line(plan.skips_training_in_splits))
    if isinstance(plan.launcher, Slurm):
        lines.append(printing.request_line(plan.launcher.options))

    preflight = None
    try:
        preflight = preflight_file.read(plan.output)
    except CarftError as error:
        lines.append(f"Preflight: {error}.")
    if preflight:
        lines.append(f"Preflight: {preflight.describe(plan.declaration.text)}.")
    print_lines(*lines)

    digest = preflight_file.digest(plan.declaration.text)
    return preflight if preflight and preflight.declaration == digest else None


def _print_failed(plan: LaunchPlan) -> None:
    """Print the number of jobs that failed earlier, and how to retry them."""
    failed = len(plan.state.in_state(states.FAILED))
    if failed:
        jobs = quantity(failed, "failed job is", "failed jobs are")
        status = printing.command_line("status", plan.output)
        retry = printing.command_line("retry", plan.output)
        print_lines(f"{jobs} not launched. For the reasons: {status}; to retry: {retry}")


def _confirm_launch(plan: LaunchPlan, yes: bool) -> None:
    if not plan.jobs_to_run:
        print("There is nothing to launch.")
        return
    jobs = quantity(len(plan.jobs_to_run), "job")
    if plan.waiting_jobs:
        jobs += f", then {len(plan.waiting_jobs):,} of the second stage,"
    print_lines(f"About to launch {jobs} into {plan.output} ({plan.launcher_name}).")
    _confirm(yes)


def _confirm(yes: bool) -> None:
    """Ask on a terminal, unless ``yes``; exit the program if the answer is no."""
    if yes or sys.stdin is None or not sys.stdin.isatty():
        return

    try:
        answer = input("Continue? (y/n) ")
    except EOFError:  # Ctrl-D
        answer = ""
        print()
    if not answer.strip().lower().startswith("y"):
        print("Nothing was done.")
        raise SystemExit(0)


def status_command(arguments: argparse.Namespace) -> int:
    """Print the states of all jobs, and the progress of a search; return 1 if a job failed."""
    state = states.read_state(arguments.output_dir)
    if arguments.json:
        print(json.dumps(state.as_dict(), indent=1))
    else:
        search_lines = printing.search_lines(state)
        notes = [state.queue.note] if state.queue.note else []
        spaced_lines = ["", *search_lines] if search_lines else []
        print_lines(*printing.overview(state.statuses), *spaced_lines, *notes)
    return int(bool(state.in_state(states.FAILED)))


def retry_command(arguments: argparse.Namespace) -> None:
    """Allow failed jobs to run again, and print their number."""
    report = upkeep.retry(arguments.output_dir, arguments.only)
    if not report.failed:
        print("No job has failed.")
        return
    retried = f"{len(report.retried)} of {quantity(len(report.failed), 'failed job')}"
    print(f"{retried} will be retried by the next launch.")


def cancel_command(arguments: argparse.Namespace) -> int:
    """Stop launchers and jobs; return 1 if some could not be reached."""
    state = states.read_state(arguments.output_dir)
    if not state.is_moving and not state.queue.slurm_states:
        print_lines(f"No jobs are running or queued. {state.queue.note}".rstrip())
        return 0

    moving = state.in_state(states.RUNNING, states.QUEUED)
    print(f"About to stop: {printing.counts_phrase(moving)}.")
    _confirm(arguments.yes)
    report = upkeep.cancel(state)
    if report.slurm_jobs:
        print(f"{quantity(len(report.slurm_jobs), 'SLURM job')} cancelled.")
    print_lines(*report.unreachable, stream=sys.stderr)
    print(f"{quantity(len(report.stopped), 'job')} stopped; launch again to resume.")
    return int(bool(report.unreachable))


def clean_command(arguments: argparse.Namespace) -> None:
    """Delete leftover files and, with ``--incomplete``, incomplete jobs."""
    state = states.read_state(arguments.output_dir)
    print(f"{quantity(len(upkeep.clean(state)), 'leftover file')} deleted.")
    if not arguments.incomplete:
        return

    incomplete = state.in_state(*upkeep.INCOMPLETE)
    if not incomplete:
        print("There are no incomplete jobs to delete.")
        return
    counts = printing.counts_phrase(incomplete)
    print(f"About to delete {quantity(len(incomplete), 'job')}: {counts}.")
    _confirm(arguments.yes)
    deleted = upkeep.delete_jobs(state.output, incomplete)
    print(f"{quantity(len(deleted), 'job')} deleted.")


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "demo": demo_command,
    "preflight": preflight_command,
    "list": list_command,
    "launch": launch_command,
    "status": status_command,
    "retry": retry_command,
    "cancel": cancel_command,
    "clean": clean_command,
}
