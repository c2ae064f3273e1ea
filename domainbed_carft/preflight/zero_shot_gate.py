"""The zero-shot gate: compare a CLIP model's zero-shot accuracy with published ones.

Jobs run through with class names in the wrong order, another edition of the data, or a wrong
normalisation or activation, but all of their results are useless. The accuracy before training
reveals such mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy

from domainbed_carft.preflight.steps import loaded_batches
from domainbed_carft.results import published
from domainbed_carft.results.published import PublishedAccuracy
from domainbed_carft.sweep.preflight_file import PreflightRow

if TYPE_CHECKING:
    from domainbed.lib.training import Trainer

SECTION = "zero-shot gate"
MAX_IMAGES = 2000  # per dataset
LEVEL = 0.95  # confidence level of the binomial interval
FAILING_POINTS = 10.0  # below the lowest published figure
NEAR_CHANCE = 1.5  # times the accuracy of guessing

_SEED = 0
_PUBLISHED_METHOD = "zero-shot CLIP"

CAUSES = (
    "check in this order: the class names (they follow the sorted class folders), the edition of "
    "the data (carft data verify), its normalisation (hparams protocol and preprocessing), the "
    "activation of the CLIP model (QuickGELU; open_clip:NAME-quickgelu/TAG)"
)


@dataclass(frozen=True)
class ZeroShot:
    """The accuracy of a CLIP model on a dataset before training."""

    accuracy: float  # percent, the mean over the environments, as in published tables
    images: int  # number of predicted images
    classes: int  # number of classes
    low: float  # ends of the binomial interval, in percent
    high: float

    @classmethod
    def from_counts(cls, correct: Sequence[int], totals: Sequence[int], classes: int) -> ZeroShot:
        """Compute the accuracy from the correct and all predictions of each environment."""
        share = float(np.mean([hits / total for hits, total in zip(correct, totals)]))
        n_images = sum(totals)
        test = scipy.stats.binomtest(round(share * n_images), n_images)
        interval = test.proportion_ci(LEVEL, method="exact")
        return cls(
            accuracy=100 * share,
            images=n_images,
            classes=classes,
            low=100 * float(interval.low),
            high=100 * float(interval.high),
        )


def gate_row(trainer: Trainer) -> PreflightRow:
    """Measure the row of a dataset, with the trainer of a job from `zero_shot_jobs`."""
    dataset, clip = trainer.args.dataset, trainer.hparams["clip_backbone"]
    label = f"{Path(dataset).name}, {clip}"
    rows = published_rows(dataset, clip)
    return compare_with_published(label, measure(trainer), rows, trainer.facts["prompts_digest"])


def published_rows(dataset: str, clip: str) -> list[PublishedAccuracy]:
    """Return the rows of published.csv with a zero-shot accuracy of this CLIP on the dataset."""
    if clip != published.BACKBONE:
        return []
    return [
        row
        for row in published.read_accuracies()
        if row.method.startswith(_PUBLISHED_METHOD) and row.dataset == dataset
    ]


def compare_with_published(
    label: str, zero_shot: ZeroShot, rows: Sequence[PublishedAccuracy], prompt_digest: str
) -> PreflightRow:
    """Return the row that compares an accuracy with the published ``rows``, if there are any.

    It is a warning if the interval lies below all of them, and a failure if the accuracy is more
    than FAILING_POINTS below the lowest one, or near chance.
    """
    listed = ", ".join(f"{row.accuracy:.1f} ({row.source})" for row in rows)
    detail = (
        f"{zero_shot.accuracy:.1f}% [{zero_shot.low:.1f}, {zero_shot.high:.1f}] of "
        f"{zero_shot.images:,} images, prompts {prompt_digest}; published: {listed or 'none'}"
    )
    chance = 100 / zero_shot.classes
    if zero_shot.low <= chance or zero_shot.accuracy < NEAR_CHANCE * chance:
        problem = f"near chance ({chance:.1f}%): {detail}"
        return PreflightRow(SECTION, label, "failure", problem, CAUSES)

    lowest = min((row.accuracy for row in rows), default=0.0)
    if zero_shot.accuracy < lowest - FAILING_POINTS:
        points = lowest - zero_shot.accuracy
        problem = f"{points:.1f} points below the lowest published accuracy: {detail}"
        return PreflightRow(SECTION, label, "failure", problem, CAUSES)
    if zero_shot.high < lowest:
        problem = f"below all published accuracies: {detail}"
        return PreflightRow(SECTION, label, "warning", problem, CAUSES)
    return PreflightRow(SECTION, label, "pass", detail)


def measure(trainer: Trainer) -> ZeroShot:
    """Measure the zero-shot accuracy with a job's evaluator, on at most MAX_IMAGES images."""
    from domainbed.lib import misc

    max_images = MAX_IMAGES
    if sum(map(len, trainer.dataset)) > MAX_IMAGES:
        max_images = MAX_IMAGES // len(trainer.dataset)
    splits = {}
    for number, environment in enumerate(trainer.dataset):
        size = min(max_images, len(environment))
        splits[f"env{number}"] = misc.split_dataset(environment, size, _SEED)[0]

    trainer.batches.evaluated, trainer.evaluator.splits = splits, [*splits]
    with loaded_batches(trainer, evaluates=True):
        accuracies = trainer.evaluator.accuracies()
    totals = [len(split) for split in splits.values()]
    correct = [round(accuracies[f"{name}_acc"] * len(splits[name])) for name in splits]
    return ZeroShot.from_counts(correct, totals, trainer.dataset.num_classes)
