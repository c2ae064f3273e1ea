"""The flags of ``carft sweep``: DomainBed's own in place of a file, and the launchers'."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from domainbed_carft.launchers.options import OPTIONS

if TYPE_CHECKING:
    from domainbed_carft.sweep.declaration import Declaration

TASKS = ("domain_generalization", "domain_adaptation")

# Upstream's defaults (domainbed/scripts/sweep.py at b93c22a).
DEFAULTS: dict[str, Any] = {
    "n_trials": 3,
    "n_hparams_from": 0,
    "n_hparams": 20,
    "steps": None,
    "hparams": None,
    "holdout_fraction": 0.2,
    "single_test_envs": False,
    "task": TASKS[0],
}


def add_domainbeds(parser: argparse.ArgumentParser) -> None:
    """Flags of ``domainbed.scripts.sweep``; None stands for not given."""
    group = parser.add_argument_group("instead of SWEEP, the flags of domainbed.scripts.sweep")
    group.add_argument("--algorithms", nargs="+", metavar="NAME")
    group.add_argument("--datasets", nargs="+", metavar="NAME")
    group.add_argument("--n_trials", type=int, help="default: 3")
    group.add_argument("--n_hparams_from", type=int, help="first hparams_seed (default: 0)")
    group.add_argument("--n_hparams", type=int, help="hparams_seed to stop before (default: 20)")
    group.add_argument("--steps", type=int, help="default: the data set's own")
    group.add_argument("--hparams", metavar="JSON", help="hyperparameters to set in every job")
    group.add_argument("--holdout_fraction", type=float, help="default: 0.2")
    group.add_argument("--single_test_envs", action="store_true", default=None)
    group.add_argument("--task", choices=TASKS)


def add_launchers(parser: argparse.ArgumentParser) -> None:
    """``--launcher``, and a flag an option of any of them."""
    group = parser.add_argument_group("launcher")
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


def add_extent(parser: argparse.ArgumentParser) -> None:
    """What jobs keep beside their records and evaluate, which is no part of what they are."""
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


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Where jobs log to beside their records, which is no part of what they are."""
    parser.add_argument(
        "--log", nargs="+", choices=("tensorboard", "wandb"), metavar="NAME",
        help="tensorboard, wandb or both: where jobs started now log their scalars, too (default: "
        "what DOMAINBED_LOG says)",
    )  # fmt: skip


def launcher_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, whichever launcher's they are."""
    names = {field.name for options in OPTIONS.values() for field in dataclasses.fields(options)}
    return {n: v for n in sorted(names) if (v := getattr(arguments, n)) is not None}


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """DomainBed's flags that were given."""
    names = ("algorithms", "datasets", *DEFAULTS)
    return {name: v for name in names if (v := getattr(arguments, name)) is not None}


def declared(flags: Mapping[str, Any], checked: bool = False) -> Declaration:
    """The sweep that DomainBed's flags ask for. Raises CarftError with all their problems."""
    from domainbed_carft.sweep import declaration
    from domainbed_carft.sweep.problems import Flags, Problem

    values = {**DEFAULTS, **flags}
    problems = []
    first, beyond = values["n_hparams_from"], values["n_hparams"]
    if beyond <= first:
        text = f"it is {beyond}, expected more than --n_hparams_from = {first}"
        problems.append(Problem(("hparams_seeds",), text))
    data: dict[str, Any] = {
        "name": "flags",
        "datasets": values.get("datasets", []),
        "algorithms": values.get("algorithms", []),
        "trials": values["n_trials"],
        "hparams_seeds": {"from": first, "n": max(1, beyond - first)},
        "holdout_fraction": values["holdout_fraction"],
        "selection": ["training-domain", "oracle"],
    }
    if not values["single_test_envs"]:
        data["selection"].append("leave-one-domain-out")
    if values["steps"] is not None:
        data["steps"] = values["steps"]
    if values["hparams"]:
        try:
            data["hparams"] = json.loads(values["hparams"], object_pairs_hook=_without_repeats)
        except ValueError as error:
            problems.append(Problem(("hparams",), f"it is not valid JSON ({error})"))
    if values["task"] != TASKS[0]:
        text = "it needs unlabeled items, and the jobs of a sweep have none"
        problems.append(Problem(("task",), text))
    made = declaration.build(data, Flags("flags"), problems, checked)
    return replace(made, task=values["task"], hparams_text=values["hparams"])


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its pairs; raises ValueError for a key that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice; keep one")
        found[key] = value
    return found
