"""Checks of a command line before anything is loaded.

Each check returns a list of problems, so that a command can report all of them in one message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from domainbed import algorithms, datasets
from domainbed_carft.errors import CarftError, collect_problems
from domainbed_carft.files import parsing

TASKS = ("domain_generalization", "domain_adaptation")


def task_problems(task: str) -> list[str]:
    """Return a problem if the task is not included here."""
    if task == TASKS[0]:
        return []
    return [f"--task {task} is not included; use a checkout of facebookresearch/DomainBed"]


def algorithm_problems(name: str) -> list[str]:
    """Return a problem if the algorithm is unknown."""
    return collect_problems(algorithms.get_algorithm_class, name)


def dataset_problems(name: str) -> list[str]:
    """Return a problem if the dataset is unknown, or if a folder is not a dataset."""
    return collect_problems(datasets.num_environments, name)


def data_problems(dataset: str, data_dir: str | None) -> list[str]:
    """Return the problems that the dataset's class reports for the data below a folder."""
    return [*datasets.get_dataset_class(dataset).data_problems(data_dir)]


def find_test_envs(dataset: str, words: Sequence[int | str]) -> list[int | str]:
    """Return the numbers of environments that are listed by number or name.

    Names that the dataset does not have stay as they are.
    """
    numbers = [int(word) if re.fullmatch(r"-?\d+", str(word)) else word for word in words]
    if all(isinstance(number, int) for number in numbers) or dataset_problems(dataset):
        return numbers
    labels = datasets.get_dataset_class(dataset).ENVIRONMENTS
    return [labels.index(number) if number in labels else number for number in numbers]


def test_envs_problems(dataset: str, test_envs: Sequence[int | str]) -> list[str]:
    """Return problems for unknown and repeated test environments, or if none is left to train."""
    labels = datasets.get_dataset_class(dataset).ENVIRONMENTS
    valid = ", ".join(f"{index} ({label})" for index, label in enumerate(labels))
    numbers = " ".join(map(str, test_envs))

    problems = [
        f"--test_envs {index}: {dataset} has no such environment. Valid numbers or names: {valid}"
        for index in test_envs
        if not isinstance(index, int) or not 0 <= index < len(labels)
    ]
    if len(set(test_envs)) < len(test_envs):
        problems.append(f"--test_envs {numbers} names an environment twice")
    if not problems and len(test_envs) == len(labels):
        problems.append(
            f"--test_envs {numbers} leaves no environment of {dataset} to train on; pass "
            "--test_envs without a number to train on all environments"
        )
    return problems


def parse_hparams(hparams: str | None) -> dict[str, Any]:
    """Return the values of --hparams; raise CarftError if it is not a JSON object."""
    hparams = hparams or "{}"
    try:
        overrides = json.loads(hparams, object_pairs_hook=parsing.unique_keys)
    except ValueError as error:
        # Common mistakes: NAME=VALUE, and quotes that the shell removed.
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
            f'--hparams must be a JSON object such as {{"lr": 0.1}}, not {hparams[:200]}'
        )
    return overrides


def range_problems(flag: str, value: float | None, minimum: int, below: float = 2**63) -> list[str]:
    """Return a problem if a number is outside [minimum, below); None is valid (no flag)."""
    if value is None or minimum <= value < below:
        return []

    limit = f" and less than {below}" if below < 2**63 or value >= below else ""
    return [f"{flag} must be at least {minimum}{limit}, not {value}"]


def holdout_problems(value: float) -> list[str]:
    """Return a problem if --holdout_fraction is not in (0, 1)."""
    if value == 0:
        return [
            "--holdout_fraction must be more than 0: the out-splits are needed to select models"
        ]
    return range_problems("--holdout_fraction", value, 0, 1)
