"""The last step in building a dataset: the transforms of its images, and its facts.

The harness, the datasets of this package and those of checkouts share it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from domainbed_carft.data.verification import DataReport
from domainbed_carft.images.dataset_facts import DatasetFacts, EnvironmentFacts
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import Normalisation
from domainbed_carft.images.transforms import PlanTransform


def set_up(
    dataset: Any,
    report: DataReport | None,
    plan: ImagePlan | None,
    protocol: str,
    *,
    test_envs: Sequence[int] | None,
    augment: bool = True,
    names: Sequence[str] | None = None,
) -> DatasetFacts:
    """Set the transforms of a dataset's environments and its `dataset_facts`, and return them.

    Args:
        dataset: the dataset, with its environments in ``datasets``.
        report: the report of the verification; None if the data was not verified.
        plan: the plan of training images; None keeps the transforms.
        protocol: the preset of the transforms.
        test_envs: numbers of the test environments; None if unknown.
        augment: augment all environments except the test environments.
        names: names of the environments. Default: those of their folders.
    """
    if plan is not None:
        dataset.input_shape = (3, plan.size, plan.size)
        unaugmented = plan.without_augmentation()
        for index, environment in enumerate(dataset.datasets):
            is_augmented = augment and index not in (test_envs or ())
            environment.transform = PlanTransform(plan if is_augmented else unaugmented)

    names = names or [_find_name(*item) for item in enumerate(dataset.datasets)]
    environments = [
        EnvironmentFacts(
            name,
            getattr(environment, "classes", None),
            (plan.mean, plan.std) if plan else _find_normalisation(environment),
        )
        for name, environment in zip(names, dataset.datasets, strict=True)
    ]
    dataset.dataset_facts = DatasetFacts(environments, report, protocol, test_envs)
    return dataset.dataset_facts


def _find_name(index: int, environment: Any) -> str:
    return os.path.basename(os.path.normpath(getattr(environment, "root", str(index))))


def _find_normalisation(environment: Any) -> Normalisation | None:
    """Return mean and standard deviation of the last normalising step, or None without one."""
    transform = getattr(environment, "transform", None)
    steps = list_steps(transform) or [transform]
    normalising = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
    if not normalising:
        return None
    last = normalising[-1]
    return tuple(map(float, last.mean)), tuple(map(float, last.std))


def list_steps(transform: Any) -> Sequence[Any]:
    """Return the steps of a composed transform, none of another."""
    steps: Sequence[Any] = getattr(transform, "transforms", ())
    return steps
