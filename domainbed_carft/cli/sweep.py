"""The command line of ``carft sweep``. What a command does is loaded when it runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from domainbed_carft.launchers.options import OPTIONS

# The options of all launchers, by name.
FIELDS = {one.name: one for options in OPTIONS.values() for one in dataclasses.fields(options)}
YES = {"action": "store_true", "help": "do not ask for confirmation"}


def add_to(commands: Any) -> None:
    """Add ``sweep`` and its own commands to argparse's ``commands``."""
    sweep = commands.add_parser(
        "sweep", help="launch many jobs, watch them, and resume them after an interruption"
    )
    below = sweep.add_subparsers(required=True, metavar="COMMAND")
    _launch(below.add_parser("launch", help="run the jobs that are not done"))
    status = _upkeep(below, "status", "show what each job is doing")
    status.add_argument("--watch", type=float, metavar="SECONDS", help="refresh every SECONDS")
    status.add_argument("--json", action="store_true", help="print JSON, for scripts")
    retry = _upkeep(below, "retry", "allow failed jobs to run again")
    only = "only jobs whose folder or description contains PATTERN"
    retry.add_argument("--only", metavar="PATTERN", help=only)
    cancel = _upkeep(below, "cancel", "stop running and waiting jobs; they can be resumed")
    cancel.add_argument("--yes", **YES)
    clean = _upkeep(below, "clean", "delete leftover files of finished jobs")
    incomplete = "also delete jobs that are neither done, running nor queued"
    clean.add_argument("--incomplete", action="store_true", help=incomplete)
    clean.add_argument("--yes", **YES)


def _upkeep(below: Any, name: str, words: str) -> Any:
    parser = below.add_parser(name, help=words)
    folder = "output folder of the sweep"
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help=folder)

    def run(arguments: argparse.Namespace) -> int:
        from domainbed_carft.sweep import upkeep

        return int(getattr(upkeep, name)(arguments))

    parser.set_defaults(run=run)
    return parser


def _launch(parser: Any) -> None:
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a sweep file, or the name of an included sweep")
    add("--data_dir", help="folder that contains the data sets' folders")
    add("--output_dir", type=Path, required=True, help="folder for the jobs")
    add("--dry-run", "--dry_run", action="store_true", help="print the cost, and run nothing")
    add("--yes", **YES)
    add(
        "--keep_weights", choices=("both", "last", "best", "none"),
        help="weights to keep: last, best in validation, both or none (default: "
        "$DOMAINBED_KEEP_WEIGHTS, else both)",
    )  # fmt: skip
    add(
        "--pictures", choices=("fast", "pillow"),
        help="how files become batches: fast, or pillow by upstream's transforms, from which the "
        "fast ones differ by rounding (default: $DOMAINBED_PICTURES, else fast)",
    )  # fmt: skip
    add(
        "--picture_cache", metavar="SIZE",
        help="how much of the decoded pictures to keep on each machine's local disk, such as 8G; 0 "
        "for nothing (default: $DOMAINBED_PICTURE_CACHE, else a quarter of the memory, at most 8G, "
        "under SLURM nothing)",
    )  # fmt: skip
    which_splits = parser.add_mutually_exclusive_group()
    which_splits.add_argument(
        "--training_in_splits", action="store_false", dest="skip_training_in_splits", default=None,
        help="also evaluate the training environments' in-splits, which takes most of the "
        "evaluation's time and which no selection uses",
    )  # fmt: skip
    which_splits.add_argument(
        "--skip_training_in_splits", action="store_true", default=None,
        help="do not evaluate them (default: $DOMAINBED_SKIP_TRAINING_IN_SPLITS, else as the sweep "
        "was begun; new sweeps skip them)",
    )  # fmt: skip
    add(
        "--log", nargs="+", choices=("tensorboard", "wandb"), metavar="NAME",
        help="also log scalars to tensorboard, wandb or both (default: $DOMAINBED_LOG)",
    )  # fmt: skip
    add = parser.add_argument_group("launcher").add_argument
    add("--launcher", default="pool", help=f"{', '.join(OPTIONS)} (default: pool, on this machine)")
    for name, field in FIELDS.items():
        users = (kind for kind, options in OPTIONS.items() if hasattr(options, name))
        text, action = field.metadata["help"], "append" if field.metadata["repeated"] else "store"
        if field.default not in (None, ()) and "default" not in text:
            text += f" (default: {field.default})"
        add(f"--{name}", action=action, metavar="VALUE", help=f"{', '.join(users)}: {text}")
    parser.set_defaults(run=_run_launch)


def _run_launch(arguments: argparse.Namespace) -> int:
    from domainbed_carft.sweep import launch

    return launch.launch(arguments, {name: getattr(arguments, name) for name in FIELDS})
