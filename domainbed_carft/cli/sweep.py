"""The command line of ``carft sweep``. What a command does is loaded when it runs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_carft.launchers.options import OPTIONS

Run = Callable[[argparse.Namespace], "int | None"]

# DomainBed's own, in place of a file.
_THEIRS = (
    "algorithms", "datasets", "n_trials", "n_hparams_from", "n_hparams", "steps", "hparams",
    "holdout_fraction", "single_test_envs", "task",
)  # fmt: skip


def add_to(commands: Any) -> None:
    """Add ``sweep`` and its own commands to argparse's ``commands``."""
    sweep = commands.add_parser(
        "sweep", help="run many jobs, watch them, and resume after whatever stopped them"
    )
    below = sweep.add_subparsers(required=True, metavar="COMMAND")
    _launch(below.add_parser("launch", help="run the jobs that are not done"))
    status = _upkeep(below, "status", "what each job is doing")
    status.add_argument("--watch", type=float, metavar="SECONDS", help="look again that often")
    status.add_argument("--json", action="store_true", help="print JSON, for scripts")
    retry = _upkeep(below, "retry", "let failed jobs be tried again")
    retry.add_argument(
        "--only", metavar="PATTERN", help="jobs with this in their folder's name or description"
    )
    cancel = _upkeep(below, "cancel", "stop what runs and waits; jobs save and can be resumed")
    cancel.add_argument("--yes", action="store_true", help="do not ask")
    clean = _upkeep(below, "clean", "remove what finished jobs have left behind")
    clean.add_argument(
        "--incomplete", action="store_true",
        help="also delete all jobs that are neither done nor running nor queued",
    )  # fmt: skip
    clean.add_argument("--yes", action="store_true", help="do not ask")


def _upkeep(below: Any, name: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = below.add_parser(name, help=words)
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR")

    def run(arguments: argparse.Namespace) -> int | None:
        from domainbed_carft.sweep import upkeep

        command: Run = getattr(upkeep, name)
        return command(arguments)

    parser.set_defaults(run=run)
    return parser


def _launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweep", nargs="?", metavar="SWEEP", help="a declared sweep, or one of ours by its name"
    )
    parser.add_argument("--data_dir", help="the folder that has the data sets' folders")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="print the cost without running"
    )
    parser.add_argument(
        "--measure", action="store_true", help="with --dry_run: time a few steps here and now"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--keep_weights", choices=("both", "last", "best", "none"),
        help="weights that jobs started now keep: the last, those that validation selects, both or "
        "none (default: what DOMAINBED_KEEP_WEIGHTS says, else both)",
    )  # fmt: skip
    parser.add_argument(
        "--skip_training_in_splits", action="store_true",
        help="jobs started now leave out the accuracies on the training environments' in-splits: "
        "most of the evaluation, and no selection uses them",
    )  # fmt: skip
    parser.add_argument(
        "--log", nargs="+", choices=("tensorboard", "wandb"), metavar="NAME",
        help="tensorboard, wandb or both: where jobs started now also log their scalars (default: "
        "what DOMAINBED_LOG says)",
    )  # fmt: skip
    _add_launchers(parser.add_argument_group("launcher"))
    _add_theirs(parser.add_argument_group("instead of SWEEP, the flags of domainbed.scripts.sweep"))
    parser.set_defaults(run=_run_launch)


def _add_launchers(group: Any) -> None:
    """``--launcher``, and a flag an option of any of them."""
    group.add_argument(
        "--launcher", default="pool", help=f"{', '.join(OPTIONS)} (default: pool, on this machine)"
    )
    users: dict[str, list[str]] = {}
    fields: dict[str, dataclasses.Field[Any]] = {}
    for launcher, options in OPTIONS.items():
        for field in dataclasses.fields(options):
            users.setdefault(field.name, []).append(launcher)
            fields.setdefault(field.name, field)
    for name, field in fields.items():
        default = field.default
        shown = "" if default in (None, ()) or "default" in field.metadata["help"] else default
        group.add_argument(
            f"--{name}",
            action="append" if field.metadata.get("repeated") else "store",
            metavar="VALUE",
            help=f"{', '.join(users[name])}: {field.metadata['help']}"
            + (f" (default: {shown})" if shown != "" else ""),
        )


def _add_theirs(group: Any) -> None:
    """Flags of ``domainbed.scripts.sweep``; None stands for not given."""
    group.add_argument("--algorithms", nargs="+", metavar="NAME")
    group.add_argument("--datasets", nargs="+", metavar="NAME")
    group.add_argument("--n_trials", type=int, help="default: 3")
    group.add_argument("--n_hparams_from", type=int, help="first hparams_seed (default: 0)")
    group.add_argument("--n_hparams", type=int, help="hparams_seed to stop before (default: 20)")
    group.add_argument("--steps", type=int, help="default: the data set's own")
    group.add_argument("--hparams", metavar="JSON", help="hyperparameters to set in every job")
    group.add_argument("--holdout_fraction", type=float, help="default: 0.2")
    group.add_argument("--single_test_envs", action="store_true", default=None)
    group.add_argument("--task", choices=("domain_generalization", "domain_adaptation"))


def launcher_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, whichever launcher's they are."""
    names = {field.name for options in OPTIONS.values() for field in dataclasses.fields(options)}
    return {n: v for n in sorted(names) if (v := getattr(arguments, n)) is not None}


def _run_launch(arguments: argparse.Namespace) -> int:
    from domainbed_carft.sweep import launch

    theirs = {name: v for name in _THEIRS if (v := getattr(arguments, name)) is not None}
    return launch.launch(arguments, theirs, launcher_options(arguments))
