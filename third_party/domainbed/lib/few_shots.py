"""Training on a few images of each class, by the hyperparameter `shots`; upstream has no such."""

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
    """What is trained on: the in-splits, or of each the first `shots` images of each class.

    An in-split is shuffled by the trial seed, so these are drawn by it, and fewer shots are a part
    of more. Records still have the accuracy on the whole in-split.

    Raises CarftError, with the names of all of them, for classes with fewer images.
    """
    in_splits = [environments[index].in_split for index in training_envs]
    shots = hparams.get("shots")
    if shots is None:
        return in_splits

    problems = []
    parts = []
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
        parts.append(misc.SplitDataset(in_split, _first_positions(labels, shots)))

    raise_for(problems)
    return parts


def _first_positions(labels: Sequence[int], shots: int) -> list[int]:
    """The positions of the first `shots` items of each class."""
    seen = Counter[int]()
    positions = []
    for position, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= shots:
            positions.append(position)
    return positions


def _class_name(environment: Any, label: int) -> str:
    """The name of a class's folder; its number where the dataset has no folders."""
    names = getattr(environment, "classes", None)
    return str(names[label]) if names else str(label)
