"""Checks of a command line before anything is loaded.

Every check returns a list of problems, so that a command can report all of them in one message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from domainbed import algorithms, datasets, hparams_registry
from domainbed_carft import text
from domainbed_carft.errors import CarftError
from domainbed_carft.errors import refusals as refusals  # train's, too
from domainbed_carft.files import parsing

TASKS = ("domain_generalization", "domain_adaptation")
_SIZE = "a whole number of at least 1 and less than 2147483648"
# The hyperparameters that the harness itself reads.
_READ_HERE = {
    **dict.fromkeys(("data_augmentation", "class_balanced"), algorithms.SWITCH),
    "batch_size": (_SIZE, lambda value: type(value) is int and 1 <= value < 2**31),
}


def task_problems(task: str) -> list[str]:
    advice = "is not included; use a checkout of facebookresearch/DomainBed"
    return [] if task == TASKS[0] else [f"--task {task} {advice}"]


def algorithm_problems(name: str) -> list[str]:
    return refusals(algorithms.get_algorithm_class, name)


def dataset_problems(name: str) -> list[str]:
    return refusals(datasets.num_environments, name)


def data_problems(dataset: str, data_dir: str | None) -> list[str]:
    """Say if the folders of a known data set, whose class has that check, are missing."""
    ask = getattr(datasets.get_dataset_class(dataset), "data_problems", None)
    return list(ask(data_dir)) if ask else []


def test_envs_problems(dataset: str, test_envs: Sequence[int]) -> list[str]:
    labels = datasets.get_dataset_class(dataset).ENVIRONMENTS
    valid = ", ".join(f"{index} ({label})" for index, label in enumerate(labels))
    named = " ".join(map(str, test_envs))
    problems = [
        f"--test_envs {index}: {dataset} has no such environment. Valid: {valid}"
        for index in test_envs
        if not 0 <= index < len(labels)
    ]
    if len(set(test_envs)) < len(test_envs):
        problems.append(f"--test_envs {named} names an environment twice")
    if not problems and len(test_envs) == len(labels):
        problems.append(
            f"--test_envs {named} leaves no environment of {dataset} to train on; --test_envs "
            "without a number trains on all"
        )
    return problems


def given_hparams(json: str | None) -> dict[str, Any]:
    """Return what --hparams sets. Raises CarftError for anything but a JSON object."""
    json = json or "{}"
    try:
        given = parsing.parse_json(json, unique_keys=True)
    except ValueError as error:
        # People write NAME=VALUE, or lose the quotes to their shell.
        name, sign, value = json.partition("=")
        is_number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value.strip())
        is_assignment = sign and name.strip().isidentifier() and is_number
        example = f'{{"{name.strip()}": {value.strip()}}}' if is_assignment else '{"lr": 0.1}'
        raise CarftError(
            f"--hparams is not valid JSON ({error}): {json[:200]}; expected a JSON object in "
            f"quotes, such as --hparams '{example}'"
        ) from error
    if isinstance(given, dict):
        return given
    raise CarftError(f'--hparams must be a JSON object such as {{"lr": 0.1}}, not: {json[:200]}')


def hparams_problems(json: str | None, algorithm: str, dataset: str) -> list[str]:
    """Say what is wrong with the keys of --hparams, and with values that we or the class checks."""
    if invalid := refusals(given_hparams, json):
        return invalid
    given = given_hparams(json)
    problems = algorithms.value_problems(given, _READ_HERE)
    if not given or algorithm_problems(algorithm) or dataset_problems(dataset):
        return problems
    known = sorted(hparams_registry.default_hparams(algorithm, dataset))
    unknown = [key for key in given if key not in known]
    ask = getattr(algorithms.get_algorithm_class(algorithm), "hparam_problems", None)
    return [
        *problems,
        *(text.unknown(f"hyperparameter of {algorithm}", key, known) for key in unknown),
        *(ask(dataset, given) if ask else ()),
    ]


def range_problems(flag: str, value: float | None, least: int, below: float = 2**63) -> list[str]:
    if value is None or least <= value < below:
        return []
    limit = f" and less than {below}" if below < 2**63 or value >= below else ""
    return [f"{flag} must be at least {least}{limit}, not {value}"]


def holdout_problems(value: float) -> list[str]:
    if value == 0:
        return ["--holdout_fraction must be more than 0: models are selected by the out-splits"]
    return range_problems("--holdout_fraction", value, 0, 1)
