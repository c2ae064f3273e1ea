"""Flags of the commands that run jobs: ``demo``, ``preflight`` and those of ``sweep``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domainbed_carft import process_variables
from domainbed_carft.launchers.options import OPTIONS

# The last line after Ctrl-C, when the jobs have saved their states.
INTERRUPTED = "interrupted; to resume, run the same command again"
WRONG_ARGUMENTS = 2  # exit status of preflight, whose 1 means a failed test


def add_to(commands: Any) -> None:
    """Add the commands to argparse's ``commands``."""
    _add_demo(commands)
    _add_preflight(commands)

    sweep = commands.add_parser(
        "sweep", help="launch many jobs, watch them, and resume them after an interruption"
    )
    subcommands = sweep.add_subparsers(required=True, metavar="COMMAND")
    subcommands.add_parser("list", run=_run, help="list the included sweeps")
    _add_launch(subcommands)

    status = _add_on_sweep(subcommands, "status", "show the state of each job")
    status.add_argument("--json", action="store_true", help="print JSON, for scripts")

    retry = _add_on_sweep(subcommands, "retry", "allow failed jobs to run again")
    pattern_help = "retry only failed jobs whose folder or description contains this text"
    retry.add_argument("--only", metavar="PATTERN", default="", help=pattern_help)

    cancel_help = "stop running and queued jobs, which can be resumed"
    _add_yes(_add_on_sweep(subcommands, "cancel", cancel_help))

    clean = _add_on_sweep(subcommands, "clean", "delete leftover files of finished jobs")
    incomplete_help = "also delete jobs that are neither done, running nor queued"
    clean.add_argument("--incomplete", action="store_true", help=incomplete_help)
    _add_yes(clean)


def _run(name: str, arguments: argparse.Namespace) -> int | None:
    from domainbed_carft.cli import sweep_output  # imports what only these commands need

    return sweep_output.COMMANDS[name](arguments)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        run=_run,
        help="train CAR-FT and two baselines on the embedded benchmark; print a table",
    )
    parser.set_defaults(interrupted=INTERRUPTED)
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        default=Path("demo_output"),
        help="folder for jobs, table and report (default: demo_output)",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="trials per cell (default: 1)")


def _add_preflight(commands: Any) -> None:
    parser = commands.add_parser(
        "preflight",
        run=_run,
        help="test a sweep in minutes: data, zero-shot accuracy, steps, memory, hours",
        description="Test in minutes whether a sweep will run on this machine: verify its data, "
        "compare zero-shot accuracies with published ones, and train a few steps of each kind of "
        "job. The exit status is 0 if all tests passed, also with warnings, 1 if one failed, and 2 "
        "for wrong arguments.",
    )
    parser.set_defaults(status_of_errors=WRONG_ARGUMENTS)
    _add_sweep(parser, "; the results are written to preflight.json in it")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    _add_launcher_options(parser, parser, [OPTIONS["pool"]])


def _add_launch(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "launch", run=_run, help="run all jobs of a sweep that are not done"
    )
    parser.set_defaults(interrupted=INTERRUPTED)
    _add_sweep(parser)
    dry_run_help = "print the number of jobs and their cost, then stop"
    confirmation = parser.add_mutually_exclusive_group()
    confirmation.add_argument("--dry-run", action="store_true", help=dry_run_help)
    _add_yes(confirmation)

    # The jobs receive these flags as process variables.
    jobs = parser.add_argument_group("jobs")
    jobs.add_argument(
        "--keep-weights",
        choices=("both", "last", "best", "none"),
        help="weights that each job keeps: of the last step, of the best checkpoint in validation, "
        f"both or none (default: ${process_variables.KEEP_WEIGHTS.name} if it is set, otherwise "
        "both)",
    )
    jobs.add_argument(
        "--training-in-splits",
        action="store_false",
        dest="skip_training_in_splits",
        default=None,
        help="also evaluate the in-splits of the training environments, as DomainBed does. This "
        "takes most of the evaluation time, and model selection does not use it. By default, a new "
        "sweep does not evaluate them, and a sweep that you launch again keeps its choice; "
        f"${process_variables.SKIP_TRAINING_IN_SPLITS.name} (0 or 1) changes the default",
    )
    jobs.add_argument(
        "--log",
        nargs="+",
        choices=("tensorboard", "wandb"),
        metavar="NAME",
        default=(),
        help="also log scalars to tensorboard, wandb or both (default: "
        f"${process_variables.LOG.name} if it is set, otherwise neither)",
    )

    launcher = parser.add_argument_group("launcher")
    launcher.add_argument(
        "--launcher",
        metavar="NAME",
        default="pool",
        help="local runs one job at a time on this machine, pool runs several at a time, slurm "
        "submits the jobs, and dummy prints their commands (default: pool)",
    )
    _add_launcher_options(parser, launcher, OPTIONS.values())


def _add_on_sweep(subcommands: Any, name: str, description: str) -> Any:
    """Add a command with the argument OUTPUT_DIR."""
    parser = subcommands.add_parser(name, run=_run, help=description)
    folder = "output folder of the sweep"
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help=folder)
    return parser


def _add_sweep(parser: Any, remark: str = "") -> None:
    add = parser.add_argument
    add(
        "sweep",
        metavar="SWEEP",
        help="a sweep file, or the name of an included sweep (carft sweep list)",
    )
    add("--data_dir", metavar="DIR", help="folder that contains the datasets' folders")
    folder = f"output folder of the sweep{remark}"
    add("--output_dir", type=Path, metavar="DIR", required=True, help=folder)


def _add_yes(parser: Any) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add_launcher_options(parser: Any, group: Any, option_classes: Iterable[type]) -> None:
    """Add a flag to the group for each field of these classes; the parser sets their names."""
    fields = {field.name: field for kind in option_classes for field in dataclasses.fields(kind)}
    parser.set_defaults(launcher_options=list(fields))
    for name, field in fields.items():
        launchers = ", ".join(kind for kind, options in OPTIONS.items() if hasattr(options, name))
        description = field.metadata["help"]
        if field.default not in (None, ()) and "default" not in description:
            description += f" (default: {field.default})"

        action = "append" if field.metadata["repeated"] else "store"
        help_text = f"{launchers}: {description}"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            action=action,
            metavar=field.metadata["metavar"],
            help=help_text,
        )
