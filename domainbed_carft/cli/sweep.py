"""The command line of ``carft sweep``. What a command does is loaded when it runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from domainbed_carft.launchers.options import OPTIONS


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
    retry.add_argument(
        "--only", metavar="PATTERN", help="only jobs whose folder or description contains PATTERN"
    )
    cancel = _upkeep(below, "cancel", "stop running and waiting jobs; they can be resumed")
    cancel.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    clean = _upkeep(below, "clean", "delete leftover files of finished jobs")
    clean.add_argument(
        "--incomplete", action="store_true",
        help="also delete jobs that are neither done, running nor queued",
    )  # fmt: skip
    clean.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _upkeep(below: Any, name: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = below.add_parser(name, help=words)
    parser.add_argument(
        "output_dir", type=Path, metavar="OUTPUT_DIR", help="output folder of the sweep"
    )

    def run(arguments: argparse.Namespace) -> int:
        from domainbed_carft.sweep import upkeep

        return int(getattr(upkeep, name)(arguments))

    parser.set_defaults(run=run)
    return parser


def _launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a sweep file, or the name of an included sweep"
    )
    parser.add_argument("--data_dir", help="folder that contains the data sets' folders")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the jobs")
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the cost without running anything",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument(
        "--keep_weights", choices=("both", "last", "best", "none"),
        help="weights to keep: last, best in validation, both or none (default: "
        "$DOMAINBED_KEEP_WEIGHTS, else both)",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", choices=("fast", "pillow"),
        help="how files become batches: fast, or pillow by upstream's transforms, from which the "
        "fast ones differ by rounding (default: $DOMAINBED_PICTURES, else fast)",
    )  # fmt: skip
    parser.add_argument(
        "--picture_cache", metavar="SIZE",
        help="how much of the decoded pictures to keep on each machine's local disk, such as 8G; 0 "
        "for nothing (default: $DOMAINBED_PICTURE_CACHE, else a quarter of the memory, at most 8G, "
        "under SLURM nothing)",
    )  # fmt: skip
    parser.add_argument(
        "--skip_training_in_splits", action="store_true",
        help="skip accuracies on the training environments' in-splits, which take most of the "
        "evaluation's time and which no selection uses",
    )  # fmt: skip
    parser.add_argument(
        "--log", nargs="+", choices=("tensorboard", "wandb"), metavar="NAME",
        help="also log scalars to tensorboard, wandb or both (default: $DOMAINBED_LOG)",
    )  # fmt: skip
    _add_launchers(parser.add_argument_group("launcher"))
    parser.set_defaults(run=_run_launch)


def _add_launchers(group: Any) -> None:
    group.add_argument(
        "--launcher", default="pool", help=f"{', '.join(OPTIONS)} (default: pool, on this machine)"
    )
    launchers: dict[str, str] = {}  # those with an option of this name
    fields = {}
    for launcher, options in OPTIONS.items():
        for field in dataclasses.fields(options):
            launchers[field.name] = ", ".join(filter(None, [launchers.get(field.name), launcher]))
            fields[field.name] = field
    for name, field in fields.items():
        text, default = field.metadata["help"], field.default
        is_told = default in (None, ()) or "default" in text
        group.add_argument(
            f"--{name}",
            action="append" if field.metadata["repeated"] else "store",
            metavar="VALUE",
            help=f"{launchers[name]}: {text}" + ("" if is_told else f" (default: {default})"),
        )


def launcher_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, whichever launcher's they are."""
    names = {field.name for options in OPTIONS.values() for field in dataclasses.fields(options)}
    return {n: v for n in sorted(names) if (v := getattr(arguments, n)) is not None}


def _run_launch(arguments: argparse.Namespace) -> int:
    from domainbed_carft.sweep import launch

    return launch.launch(arguments, launcher_options(arguments))
