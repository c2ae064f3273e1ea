"""Checks of a command line before anything is loaded.

Every check returns a list of problems, so that a command can report all of them in one message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed import algorithms, datasets, hparams_registry
from domainbed_carft import text
from domainbed_carft.errors import CarftError
from domainbed_carft.errors import problems_of as problems_of  # train's, too
from domainbed_carft.files import parsing
from domainbed_carft.jobs.job import READ_BY_TRAIN

TASKS = ("domain_generalization", "domain_adaptation")


def task_problems(task: str) -> list[str]:
    """Say that a task of upstream's is not included."""
    if task == TASKS[0]:
        return []
    return [f"--task {task} is not included; use a checkout of facebookresearch/DomainBed"]


def algorithm_problems(name: str) -> list[str]:
    """Say that an algorithm is unknown."""
    return problems_of(algorithms.get_algorithm_class, name)


def dataset_problems(name: str) -> list[str]:
    """Say that a dataset is unknown, or that a folder is not one."""
    return problems_of(datasets.num_environments, name)


def data_problems(dataset: str, data_dir: str | None) -> list[str]:
    """Say what the class of a known dataset finds wrong with the data below a folder."""
    return [*datasets.get_dataset_class(dataset).data_problems(data_dir)]


def test_envs_problems(dataset: str, test_envs: Sequence[int]) -> list[str]:
    """Say which test environments do not exist, come twice, or leave none to train on."""
    labels = datasets.get_dataset_class(dataset).ENVIRONMENTS
    valid = ", ".join(f"{index} ({label})" for index, label in enumerate(labels))
    numbers = " ".join(map(str, test_envs))

    problems = [
        f"--test_envs {index}: {dataset} has no such environment. Valid: {valid}"
        for index in test_envs
        if not 0 <= index < len(labels)
    ]
    if len(set(test_envs)) < len(test_envs):
        problems.append(f"--test_envs {numbers} names an environment twice")
    if not problems and len(test_envs) == len(labels):
        problems.append(
            f"--test_envs {numbers} leaves no environment of {dataset} to train on; --test_envs "
            "without a number trains on all"
        )
    return problems


def parse_hparams(hparams: str | None) -> dict[str, Any]:
    """Return what --hparams sets. Raises CarftError for anything but a JSON object."""
    hparams = hparams or "{}"
    try:
        overrides = json.loads(hparams, object_pairs_hook=parsing.unique_keys)
    except ValueError as error:
        # People write NAME=VALUE, or lose the quotes to their shell.
        name, sign, value = hparams.partition("=")
        is_number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value.strip())
        is_assignment = sign and name.strip().isidentifier() and is_number
        example = f'{{"{name.strip()}": {value.strip()}}}' if is_assignment else '{"lr": 0.1}'
        raise CarftError(
            f"--hparams is not valid JSON ({error}): {hparams[:200]}; expected a JSON object in "
            f"quotes, such as --hparams '{example}'"
        ) from error

    if not isinstance(overrides, dict):
        raise CarftError(
            f'--hparams must be a JSON object such as {{"lr": 0.1}}, not: {hparams[:200]}'
        )
    return overrides


def hparams_problems(
    overrides: Mapping[str, Any], algorithm: str, dataset: str, steps: int | None
) -> list[str]:
    """Say what is wrong with the keys of --hparams, and with values that we or the class checks.

    `steps`: those of the job, None for the dataset's.
    """
    problems = [*map(str, algorithms.value_problems(overrides, READ_BY_TRAIN))]
    if not overrides or algorithm_problems(algorithm) or dataset_problems(dataset):
        return problems

    defaults = hparams_registry.default_hparams(algorithm, dataset)
    valid_names = sorted({*defaults, *hparams_registry.OPTIONAL_HPARAMS})
    algorithm_class = algorithms.get_algorithm_class(algorithm)
    for name in overrides:
        if name not in valid_names and name not in algorithm_class.EXTRA_HPARAMS:
            problems.append(text.unknown(f"hyperparameter of {algorithm}", name, valid_names))

    implied = algorithm_class.implied_hparams(dataset, overrides, None, steps=steps)
    problems += map(str, algorithm_class.hparam_problems(dataset, {**implied, **overrides}))
    return problems


def range_problems(flag: str, value: float | None, least: int, below: float = 2**63) -> list[str]:
    """Say that a number is outside [least, below); None, a flag that was not given, is fine."""
    if value is None or least <= value < below:
        return []

    limit = f" and less than {below}" if below < 2**63 or value >= below else ""
    return [f"{flag} must be at least {least}{limit}, not {value}"]


def holdout_problems(value: float) -> list[str]:
    """Say that the share held out is not in (0, 1)."""
    if value == 0:
        return ["--holdout_fraction must be more than 0: models are selected by the out-splits"]
    return range_problems("--holdout_fraction", value, 0, 1)
