"""The zero-shot gate: what the sweep's CLIP says of its data, beside what is published.

Class names in another order, another edition, another normalisation or activation stop no job, and
ruin all of its results. They show in the accuracy before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from domainbed_carft.doctor import Finding
from domainbed_carft.machine import devices
from domainbed_carft.method import job
from domainbed_carft.preflight.prepared_job import RehearsedJob, quiet
from domainbed_carft.preflight.rows import failed_row, passed_row, warning_row
from domainbed_carft.results import published
from domainbed_carft.sweep import host

SECTION = "zero-shot gate"
MOST_PICTURES = 2000  # of a data set
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
    """The accuracy of a CLIP before training on ``pictures`` of a data set, in percent.

    It is the mean over the environments, as in published tables; ``low`` and ``high``: the binomial
    interval of as many pictures.
    """

    accuracy: float
    pictures: int
    classes: int
    low: float
    high: float

    @classmethod
    def of_counts(cls, correct: Sequence[int], totals: Sequence[int], classes: int) -> ZeroShot:
        """The accuracy of the ``correct`` predictions among ``totals``, of each environment."""
        share = float(np.mean([hits / total for hits, total in zip(correct, totals)]))
        n_pictures = sum(totals)
        test = scipy.stats.binomtest(round(share * n_pictures), n_pictures)
        interval = test.proportion_ci(LEVEL, method="exact")
        return cls(
            accuracy=100 * share,
            pictures=n_pictures,
            classes=classes,
            low=100 * float(interval.low),
            high=100 * float(interval.high),
        )


def gate_row(prepared: RehearsedJob) -> Finding:
    """The row of a data set, of the job that `prepare_zero_shot` made of one of its jobs."""
    zero_shot = measure(prepared, MOST_PICTURES)
    rows = published_rows(prepared.job.args.dataset, prepared.job.hparams["clip_backbone"])
    label = f"{Path(prepared.job.args.dataset).name}, {prepared.job.hparams['clip_backbone']}"
    facts = job.find_facts(prepared.job.hparams, prepared.job.dataset.num_classes, has_kl=False)
    return judge(label, zero_shot, rows, facts.prompts.digest)


def published_rows(dataset: str, clip: str) -> list[dict[str, Any]]:
    """The rows of published.csv with a zero-shot accuracy of this CLIP on the data set."""
    if clip != published.BACKBONE:
        return []
    return [
        row
        for row in published.figures()
        if row["method"].startswith(_PUBLISHED_METHOD) and row["dataset"] == dataset
    ]


def judge(
    label: str, zero_shot: ZeroShot, rows: Sequence[dict[str, Any]], prompt_digest: str
) -> Finding:
    """The row of an accuracy beside the published ``rows``, if there are any.

    A warning where it is below the lowest of them by more than the interval; a failure where it is
    more than FAILING_POINTS below it, or near chance.
    """
    listed = ", ".join(f"{row['accuracy']:.1f} ({row['source']})" for row in rows)
    detail = (
        f"{zero_shot.accuracy:.1f}% [{zero_shot.low:.1f}, {zero_shot.high:.1f}] of "
        f"{zero_shot.pictures:,} pictures, prompts {prompt_digest}; published: {listed or 'none'}"
    )
    figures = {
        **vars(zero_shot),
        "prompt_digest": prompt_digest,
        "published": [
            {name: row[name] for name in ("method", "accuracy", "source")} for row in rows
        ],
    }

    chance = 100 / zero_shot.classes
    if zero_shot.low <= chance or zero_shot.accuracy < NEAR_CHANCE * chance:
        problem = f"near chance, which is {chance:.1f}%: {detail}"
        return failed_row(SECTION, label, problem, CAUSES, **figures)
    if not rows:
        return passed_row(SECTION, label, detail, **figures)

    lowest = min(row["accuracy"] for row in rows)
    if zero_shot.accuracy < lowest - FAILING_POINTS:
        points = lowest - zero_shot.accuracy
        problem = f"{points:.1f} points below the lowest published: {detail}"
        return failed_row(SECTION, label, problem, CAUSES, **figures)
    if zero_shot.high < lowest:
        return warning_row(SECTION, label, f"below all published: {detail}", CAUSES, **figures)
    return passed_row(SECTION, label, detail, **figures)


def measure(prepared: RehearsedJob, picture_count: int) -> ZeroShot:
    """The zero-shot accuracy, as a job evaluates: on all pictures or so many, drawn by a seed."""
    misc = host.module("lib.misc")
    share = picture_count // len(prepared.job.dataset)
    is_small = sum(map(len, prepared.job.dataset)) <= picture_count
    splits = {}
    for number, environment in enumerate(prepared.job.dataset):
        size = len(environment) if is_small else min(share, len(environment))
        splits[f"env{number}"] = misc.split_dataset(environment, size, _SEED)[0]

    accuracies = _accuracies(prepared, splits)
    totals = [len(split) for split in splits.values()]
    correct = [round(accuracies[f"{name}_acc"] * len(splits[name])) for name in splits]
    return ZeroShot.of_counts(correct, totals, prepared.job.dataset.num_classes)


def _accuracies(prepared: RehearsedJob, splits: dict[str, Any]) -> dict[str, float]:
    """The accuracy on each split, through the loaders and the evaluator of the harness."""
    device = devices.default_device()
    algorithm = prepared.build_algorithm(device)
    stopping = host.module("lib.stopping")
    with prepared.loaded_batches(device, evaluated=splits) as batches, quiet():
        evaluator = host.module("lib.evaluation").Evaluator(
            algorithm=algorithm,
            splits=[*splits],
            batches=batches,
            device=device,
            stop=stopping.StopSignals(),
            process_group=host.module("lib.process_group").SINGLE_PROCESS,
            is_constant=False,
        )
        accuracies: dict[str, float] = evaluator.accuracies()
    return accuracies
