"""The zero-shot gate: what the sweep's CLIP says of its data, beside what is published.

Class names in another order, another edition, another normalisation or activation stop no job, and
ruin all of its results. They show in the accuracy before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from domainbed_carft.method import job
from domainbed_carft.preflight.steps import loaded_batches
from domainbed_carft.results import published
from domainbed_carft.sweep import host
from domainbed_carft.sweep.preflight_file import PreflightRow

if TYPE_CHECKING:
    from domainbed.lib.training import Trainer

SECTION = "zero-shot gate"
MAX_IMAGES = 2000  # of a dataset
LEVEL = 0.95  # of the binomial interval
FAILING_POINTS = 10.0  # below the lowest published figure
NEAR_CHANCE = 1.5  # times the accuracy of guessing

_SEED = 0
_PUBLISHED_METHOD = "zero-shot CLIP"

CAUSES = (
    "check, the most likely first: class names (in the order of the sorted class folders), the "
    "data's edition (carft data verify), its normalisation (protocol, preprocessing), the CLIP's "
    "activation (QuickGELU; open_clip:NAME-quickgelu/TAG)"
)


@dataclass(frozen=True)
class ZeroShot:
    """The accuracy of a CLIP before training on ``images`` of a dataset, in percent.

    It is the mean over the environments, as in published tables; ``low`` and ``high``: the binomial
    interval of as many images.
    """

    accuracy: float
    images: int
    classes: int
    low: float
    high: float

    @classmethod
    def of_counts(cls, correct: Sequence[int], totals: Sequence[int], classes: int) -> ZeroShot:
        """The accuracy of the ``correct`` predictions among ``totals``, of each environment."""
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
    """The row of a dataset, of a job of `zero_shot_jobs` that trains on no environment."""
    dataset, clip = trainer.args.dataset, trainer.hparams["clip_backbone"]
    facts = job.find_job_facts(trainer.hparams, trainer.dataset.num_classes, has_kl=False)
    label = f"{Path(dataset).name}, {clip}"
    return judge(label, measure(trainer), published_rows(dataset, clip), facts.prompts.digest)


def published_rows(dataset: str, clip: str) -> list[dict[str, Any]]:
    """The rows of published.csv with a zero-shot accuracy of this CLIP on the dataset."""
    if clip != published.BACKBONE:
        return []
    return [
        row
        for row in published.figures()
        if row["method"].startswith(_PUBLISHED_METHOD) and row["dataset"] == dataset
    ]


def judge(
    label: str, zero_shot: ZeroShot, rows: Sequence[dict[str, Any]], prompt_digest: str
) -> PreflightRow:
    """The row of an accuracy beside the published ``rows``, if there are any.

    A warning where it is below the lowest of them by more than the interval; a failure where it is
    more than FAILING_POINTS below it, or near chance.
    """
    listed = ", ".join(f"{row['accuracy']:.1f} ({row['source']})" for row in rows)
    detail = (
        f"{zero_shot.accuracy:.1f}% [{zero_shot.low:.1f}, {zero_shot.high:.1f}] of "
        f"{zero_shot.images:,} images, prompts {prompt_digest}; published: {listed or 'none'}"
    )
    chance = 100 / zero_shot.classes
    if zero_shot.low <= chance or zero_shot.accuracy < NEAR_CHANCE * chance:
        problem = f"near chance, which is {chance:.1f}%: {detail}"
        return PreflightRow(SECTION, label, "failure", problem, CAUSES)

    lowest = min((row["accuracy"] for row in rows), default=0.0)
    if zero_shot.accuracy < lowest - FAILING_POINTS:
        points = lowest - zero_shot.accuracy
        problem = f"{points:.1f} points below the lowest published: {detail}"
        return PreflightRow(SECTION, label, "failure", problem, CAUSES)
    if zero_shot.high < lowest:
        return PreflightRow(SECTION, label, "warning", f"below all published: {detail}", CAUSES)
    return PreflightRow(SECTION, label, "pass", detail)


def measure(trainer: Trainer) -> ZeroShot:
    """The zero-shot accuracy, as a job evaluates: on all images, or some drawn by a seed."""
    misc = host.module("lib.misc")
    share = MAX_IMAGES // len(trainer.dataset)
    is_small = sum(map(len, trainer.dataset)) <= MAX_IMAGES
    splits = {}
    for number, environment in enumerate(trainer.dataset):
        size = len(environment) if is_small else min(share, len(environment))
        splits[f"env{number}"] = misc.split_dataset(environment, size, _SEED)[0]

    trainer.batches.evaluated, trainer.evaluator.splits = splits, [*splits]
    with loaded_batches(trainer, evaluates=True):
        accuracies = trainer.evaluator.accuracies()
    totals = [len(split) for split in splits.values()]
    correct = [round(accuracies[f"{name}_acc"] * len(splits[name])) for name in splits]
    return ZeroShot.of_counts(correct, totals, trainer.dataset.num_classes)
