"""What is checked of a command line before anything is loaded.

Every check returns a list of problems, so that a command can report all of them in one message.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from domainbed import algorithms, command_launchers, datasets, hparams_registry
from domainbed.lib import names, scalar_logs
from domainbed.lib.errors import UsageError

TASKS = ("domain_generalization", "domain_adaptation")


def algorithm_problems(name: str) -> list[str]:
    """Say if no algorithm is called `name`."""
    try:
        algorithms.get_algorithm_class(name)
    except names.UnknownNameError as error:
        return [str(error)]
    return []


def dataset_problems(name: str) -> list[str]:
    """Say if no data set is called `name`, or if the class of that name has no environments."""
    try:
        datasets.num_environments(name)
    except names.UnknownNameError as error:
        return [str(error)]
    except UsageError as error:
        return error.problems
    return []


def too_few_environments(dataset: str, single_test_envs: bool) -> list[str]:
    """Say if there is no such data set, or too few environments for the jobs of a sweep."""
    problems = dataset_problems(dataset)
    if problems:
        return problems
    needed = 2 if single_test_envs else 3
    found = datasets.num_environments(dataset)
    if found >= needed or found == 1:
        return []
    advice = " With --single_test_envs 2 are enough." if found == 2 else ""
    return [f"{dataset} has {found} environments; these jobs need at least {needed}.{advice}"]


def data_problems(
    known: Iterable[str], algorithm_names: Sequence[str], data_dir: str | None, hparams: str | None
) -> list[str]:
    """Say if the data of known data sets is not where it has to be, or not as it has to be.

    The latter is what plugins know (`datasets.DATA_CHECKS`). Data sets that plugins register may
    not have the questions answered: they get none.
    """
    problems: list[str] = []
    folders: dict[str, str] = {}
    for dataset in known:
        ask = getattr(datasets.get_dataset_class(dataset), "data_problems", None)
        absent = list(ask(data_dir)) if ask else []
        folder = picture_folder(dataset, data_dir)
        problems += absent
        if folder is not None and not absent:
            folders[dataset] = folder
    given = _given(hparams)
    for check in datasets.DATA_CHECKS if folders else ():
        problems += check(folders, algorithm_names, given)
    return problems


def picture_folder(dataset: str, data_dir: str | None) -> str | None:
    """Return the folder of a known data set's environments; None where there is none to look at."""
    ask = getattr(datasets.get_dataset_class(dataset), "picture_folder", None)
    folder: str | None = ask(data_dir) if ask else None
    return folder


def _given(hparams: str | None) -> dict[str, Any]:
    """What --hparams sets; nothing where it is wrong, of which `hparams_problems` tells."""
    try:
        given = json.loads(hparams or "{}", object_pairs_hook=_without_repeats)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs; raise ValueError for a key that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice; keep one")
        found[key] = value
    return found


def test_envs_problems(dataset: str, test_envs: Sequence[int]) -> list[str]:
    """Say what is wrong with the test environments of a known data set."""
    labels = datasets.get_dataset_class(dataset).ENVIRONMENTS
    valid = ", ".join(f"{index} ({label})" for index, label in enumerate(labels))
    problems = [
        f"--test_envs {index}: {dataset} has no such environment. Valid: {valid}."
        for index in test_envs
        if not 0 <= index < len(labels)
    ]
    if len(set(test_envs)) < len(test_envs):
        problems.append(f"--test_envs names an environment twice: {_spaced(test_envs)}.")
    if not problems and len(test_envs) == len(labels):
        problems.append(
            f"--test_envs {_spaced(test_envs)} leaves {dataset} no environment to train on. "
            "--test_envs without a number trains on all."
        )
    return problems


def hparams_problems(text: str | None, algorithm: str, dataset: str) -> list[str]:
    """Say what is wrong with --hparams.

    Keys are checked only if `algorithm` and `dataset` exist: they decide which keys there are.
    """
    if not text:
        return []
    try:
        given = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        return [f"--hparams is not valid JSON ({error}): {text}"]
    if not isinstance(given, dict):
        return [f'--hparams must be a JSON object such as {{"lr": 0.001}}, not: {text}']
    problems = _batch_size_problems(given) + _switch_problems(given)
    if not algorithm_problems(algorithm) and not dataset_problems(dataset):
        known = hparams_registry.default_hparams(algorithm, dataset)
        problems += [
            names.unknown_name(f"--hparams: hyperparameter of {algorithm}", key, sorted(known))
            for key in given
            if key not in known
        ]
    return problems


def hparam_values_problems(text: str | None, algorithm: str, dataset: str) -> list[str]:
    """Say which values in --hparams the algorithm refuses (`hparams_registry.HPARAM_CHECKS`)."""
    given = _given(text)
    checks = hparams_registry.HPARAM_CHECKS if given else ()
    return [problem for check in checks for problem in check(algorithm, dataset, given)]


def _batch_size_problems(given: dict[str, Any]) -> list[str]:
    """The harness itself makes batches, so it knows what a batch size has to be."""
    size = given.get("batch_size", 1)
    if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
        return []
    return [f"--hparams: batch_size must be a whole number of at least 1, not {size!r}."]


def _switch_problems(given: dict[str, Any]) -> list[str]:
    """The harness itself asks whether these are on, and the text "no" would be."""
    return [
        f"--hparams: {name} must be true or false, not {given[name]!r}."
        for name in ("data_augmentation", "class_balanced")
        if name in given and not (isinstance(given[name], int) and given[name] in (0, 1))
    ]


def holdout_problems(value: float) -> list[str]:
    """Say if --holdout_fraction leaves nothing to train on or nothing to select by."""
    if value == 0:
        return [
            "--holdout_fraction must be more than 0, not 0: every out-split would be empty, and "
            "models are selected by their accuracy on out-splits."
        ]
    return fraction_problems("--holdout_fraction", value)


def fraction_problems(flag: str, value: float) -> list[str]:
    """Say if `value` is no share that leaves something over."""
    if math.isfinite(value) and 0 <= value < 1:
        return []
    return [f"{flag} must be at least 0 and less than 1, not {value}."]


def least_problems(flag: str, value: int | None, least: int) -> list[str]:
    """Say if `value` is given and less than `least`."""
    if value is None or value >= least:
        return []
    return [f"{flag} must be at least {least}, not {value}."]


def seed_problems(seed: int) -> list[str]:
    """Say if numpy does not take `seed`."""
    if 0 <= seed < 2**32:
        return []
    return [f"--seed must be from 0 to {2**32 - 1}, not {seed}."]


def launch_problems(args: argparse.Namespace) -> list[str]:
    """Say what the launcher or each job of a sweep would refuse, before any folder is made.

    Args:
        args: the command line of `sweep`.
    """
    problems = command_launchers.problems(args.command_launcher, args.output_dir)
    problems += holdout_problems(args.holdout_fraction)
    problems += scalar_logs.problems(args.log)
    for dataset, algorithm in itertools.product(args.datasets, args.algorithms):
        problems += hparam_values_problems(args.hparams, algorithm, dataset)
    if args.task == "domain_adaptation":
        problems.append(
            "--task domain_adaptation needs unlabeled items, and a sweep's jobs have none: only "
            "train has --uda_holdout_fraction."
        )
    here = [
        dataset
        for dataset in dict.fromkeys(args.datasets)
        if not dataset_problems(dataset) and not _is_elsewhere(dataset, args)
    ]
    return problems + data_problems(here, args.algorithms, args.data_dir, args.hparams)


def launch_notes(args: argparse.Namespace) -> list[str]:
    """Say of which data nothing could be seen before the jobs run; of a checked command line."""
    return [
        f"{dataset} was not looked at: {picture_folder(dataset, args.data_dir)} is not on this "
        f"machine. The jobs of {args.command_launcher} look at it where they run."
        for dataset in dict.fromkeys(args.datasets)
        if _is_elsewhere(dataset, args)
    ]


def _is_elsewhere(dataset: str, args: argparse.Namespace) -> bool:
    """Whether the data is not here, and need not be for the jobs to find it."""
    if command_launchers.runs_here(args.command_launcher):
        return False
    folder = picture_folder(dataset, args.data_dir)
    return folder is not None and not os.path.isdir(folder)


def require(problems: Iterable[str]) -> None:
    """Raise a UsageError if there are problems; each is listed once."""
    distinct = list(dict.fromkeys(problems))
    if distinct:
        raise UsageError(distinct)


def _spaced(indices: Sequence[int]) -> str:
    return " ".join(map(str, indices))
