"""Few-shot training, by the hyperparameter `shots`, which upstream does not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed.lib import misc
from domainbed_carft.errors import raise_for
from domainbed_carft.jobs.splits import EnvironmentSplits


def training_splits(
    dataset: Any,
    environments: Sequence[EnvironmentSplits],
    training_envs: Sequence[int],
    hparams: Mapping[str, Any],
) -> list[Any]:
    """Return the data to train on: the in-splits, or the first `shots` images of each class.

    In-splits are shuffled by the trial seed, so the trial seed draws the shots, and fewer shots are
    a subset of more. Records still have the accuracy on the complete in-split.

    Args:
        dataset: the dataset.
        environments: the splits of each environment.
        training_envs: numbers of the training environments.
        hparams: the job's hyperparameters.

    Raises:
        CarftError: classes have fewer images; the message names them.
    """
    in_splits = [environments[index].in_split for index in training_envs]
    shots = hparams.get("shots")
    if shots is None:
        return in_splits

    problems = []
    shot_splits = []
    for index, in_split in zip(training_envs, in_splits, strict=True):
        labels = misc.item_labels(in_split)
        counts = Counter(labels)
        lacking = [label for label in range(dataset.num_classes) if counts[label] < shots]
        if lacking:
            names = [f"{_class_name(dataset[index], label)} ({counts[label]})" for label in lacking]
            problems.append(
                f"shots is {shots}, but {dataset.ENVIRONMENTS[index]!r} has fewer training "
                f"images of {', '.join(names)}; choose fewer shots, or a smaller "
                "--holdout_fraction"
            )
        shot_splits.append(misc.SplitDataset(in_split, _first_positions(labels, shots)))

    raise_for(problems)
    return shot_splits


def _first_positions(labels: Sequence[int], shots: int) -> list[int]:
    """Return the positions of the first `shots` items of each class."""
    counts = Counter[int]()
    positions = []
    for position, label in enumerate(labels):
        counts[label] += 1
        if counts[label] <= shots:
            positions.append(position)
    return positions


def _class_name(environment: Any, label: int) -> str:
    """Return the name of a class's folder, or its number if the dataset has no folders."""
    names = getattr(environment, "classes", None)
    return str(names[label]) if names else str(label)
