"""The command ``carft sweep launch``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft import process_variables
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.launchers.options import OPTIONS
from domainbed_carft.questions import confirm
from domainbed_carft.text import print_lines, quantity

if TYPE_CHECKING:
    from domainbed_carft.sweep.launch import LaunchPlan
    from domainbed_carft.sweep.preflight_file import Preflight

# The last line after Ctrl-C, when the jobs have saved their states.
INTERRUPTED = "interrupted; to resume, run the same command again"

# The options of all launchers, by name.
FIELDS = {field.name: field for kind in OPTIONS.values() for field in dataclasses.fields(kind)}
POOL_FLAGS = [field.name for field in dataclasses.fields(OPTIONS["pool"])]


def add_to(subcommands: Any) -> None:
    """Add ``launch`` to the commands of ``sweep``."""
    parser = subcommands.add_parser("launch", help="run all jobs of a sweep that are not done")
    _add_launch_flags(parser)
    add_job_flags(parser)
    add_launcher_flags(parser)
    parser.set_defaults(run=_launch, interrupted=INTERRUPTED)


def add_yes(parser: Any) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add_launch_flags(parser: Any) -> None:
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a sweep file, or the name of an included sweep")
    add("--data_dir", help="folder that contains the datasets' folders")
    add("--output_dir", type=Path, required=True, help="output folder of the sweep")
    add("--dry-run", action="store_true", help="print the number of jobs and their cost, then stop")
    add_yes(parser)


def add_job_flags(parser: Any) -> None:
    """Add the flags that the jobs receive as process variables."""
    jobs = parser.add_argument_group("jobs")
    add = jobs.add_argument
    add(
        "--keep_weights",
        choices=("both", "last", "best", "none"),
        help="weights that each job keeps: of the last step, of the best checkpoint in validation, "
        f"both or none (default: ${process_variables.KEEP_WEIGHTS.name} if it is set, otherwise "
        "both)",
    )

    add(
        "--training_in_splits",
        action="store_false",
        dest="skip_training_in_splits",
        default=None,
        help="also evaluate the in-splits of the training environments, as DomainBed does. This "
        "takes most of the evaluation time, and model selection does not use it. By default, a new "
        "sweep does not evaluate them, and a sweep that you launch again keeps its choice; "
        f"${process_variables.SKIP_TRAINING_IN_SPLITS.name} (0 or 1) changes the default",
    )

    add(
        "--log",
        nargs="+",
        choices=("tensorboard", "wandb"),
        metavar="NAME",
        default=(),
        help="also log scalars to tensorboard, wandb or both (default: "
        f"${process_variables.LOG.name} if it is set, otherwise neither)",
    )


def add_launcher_flags(parser: Any) -> None:
    """Add ``--launcher`` and the options of all launchers."""
    group = parser.add_argument_group("launcher")
    group.add_argument(
        "--launcher",
        default="pool",
        help="local runs one job at a time on this machine, pool runs several at a time, slurm "
        "submits the jobs, and dummy prints their commands (default: pool)",
    )
    add_launcher_options(group, FIELDS)


def add_launcher_options(parser: Any, names: Iterable[str]) -> None:
    """Add a flag for each of these launcher options."""
    for name in names:
        field = FIELDS[name]
        launchers = ", ".join(kind for kind, options in OPTIONS.items() if hasattr(options, name))
        description = field.metadata["help"]
        if field.default not in (None, ()) and "default" not in description:
            description += f" (default: {field.default})"

        action = "append" if field.metadata["repeated"] else "store"
        help_text = f"{launchers}: {description}"
        parser.add_argument(f"--{name}", action=action, metavar="VALUE", help=help_text)


def _launch(arguments: argparse.Namespace) -> int:
    """Launch the jobs that are not done; return 1 if some are not done at the end."""
    from domainbed_carft.sweep import launch, printing, states

    launch_plan = launch.plan(
        arguments.sweep,
        arguments.data_dir,
        arguments.output_dir,
        arguments.launcher,
        options={name: getattr(arguments, name) for name in FIELDS},
        keep_weights=arguments.keep_weights,
        log=arguments.log,
        skip_training_in_splits=arguments.skip_training_in_splits,
    )
    if arguments.dry_run:
        return _dry_run(launch_plan)

    raise_for(launch_plan.problems)
    _print_plan(launch_plan)
    _print_failed(launch_plan)
    print_lines(*printing.waiting_lines(launch_plan.state.statuses))
    if launch_plan.launcher_name != "dummy":
        count = len(launch_plan.jobs_to_run)
        if count:
            jobs = quantity(count, "job")
            if launch_plan.waiting_jobs:
                jobs += f", then {len(launch_plan.waiting_jobs):,} of the second stage,"
            folder = launch_plan.output
            print_lines(f"About to launch {jobs} into {folder} ({launch_plan.launcher_name}).")
            confirm(arguments.yes)
        else:
            print("There is nothing to launch.")

    unfinished = launch.run_plan(launch_plan)
    if unfinished:
        print_lines(*printing.failures(unfinished, launch_plan.output), stream=sys.stderr)
    elif launch_plan.launcher_name == "slurm" and launch_plan.jobs_to_run:
        watch = printing.command_line("status", launch_plan.output)
        print(f"Submitted. To watch the jobs: {watch}")
        print_lines(*printing.waiting_lines(states.read_state(launch_plan.output).statuses))
    return int(bool(unfinished))


def _dry_run(plan: LaunchPlan) -> int:
    """Print the plan and its costs, then refuse broken data."""
    from domainbed_carft.sweep import costs

    for problem in plan.log_problems:
        print_lines(f"Warning: a launch would fail: {problem}", stream=sys.stderr)
    preflight = _print_plan(plan)

    print_lines(f"Selection: {', '.join(plan.declaration.selection)}. Nothing is launched.", "")
    if plan.waiting_jobs:
        print("The costs of the second stage assume the last member of each search.\n")
    estimate = plan.estimate_costs(preflight)
    print(costs.format_table(estimate, bool(plan.skips_training_in_splits), preflight))
    raise_for(plan.data_problems)
    return 0


def _print_plan(plan: LaunchPlan) -> Preflight | None:
    """Print jobs, data and evaluation; return the last preflight if it is of this declaration."""
    from domainbed_carft.sweep import printing

    jobs = quantity(len(plan.state.statuses) + len(plan.waiting_jobs), "job")
    if plan.state.search:
        print_lines(f"{plan.declaration.name}: {jobs} in two stages.")
        print_lines(*printing.stage_lines(plan.state.search, plan.state))
    else:
        print_lines(
            f"{plan.declaration.name}: {jobs}: {printing.counts_phrase(plan.state.statuses)}."
        )
    for check in plan.data_checks:
        print_lines(f"Data: {check.description}.")
    if plan.skips_training_in_splits is not None:
        print(printing.evaluation_line(plan.skips_training_in_splits))
    return _print_preflight(plan)


def _print_preflight(plan: LaunchPlan) -> Preflight | None:
    """Print the status and age of the sweep's last preflight, if there was one.

    Returns the preflight if it is of the same declaration.
    """
    from domainbed_carft.sweep import preflight_file

    try:
        preflight = preflight_file.read(plan.output)
    except CarftError as error:
        print_lines(f"Preflight: {error}.")
        return None
    if not preflight:
        return None
    print_lines(f"Preflight: {preflight.describe(plan.declaration.text)}.")
    is_current = preflight.declaration == preflight_file.digest(plan.declaration.text)
    return preflight if is_current else None


def _print_failed(plan: LaunchPlan) -> None:
    """Print the number of jobs that failed earlier, and how to retry them."""
    from domainbed_carft.sweep import printing, states

    failed = len(plan.state.in_state(states.FAILED))
    if failed:
        jobs = quantity(failed, "failed job is", "failed jobs are")
        status = printing.command_line("status", plan.output)
        retry = printing.command_line("retry", plan.output)
        print(f"{jobs} not launched. For the reasons: {status}; to retry: {retry}")
