"""Scores of weights on sets of images: the splits of a run's dataset, or test sets of a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from domainbed_carft.files import weights
from domainbed_carft.results.metrics import (
    FORMAT,
    EvaluationFacts,
    ImageSetFacts,
    ImageSetMetrics,
    confusion_matrix,
    measure_image_set,
)
from domainbed_carft.runs.predictions import LoadingOptions, Predictor, predict_image_sets
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.splits import ImageSet, get_step


@dataclass(frozen=True)
class Scores:
    """Scores of weights on sets of images; `dataclasses.asdict` makes the JSON of the commands.

    Attributes:
        run: path of the weights file, or the name of a CLIP checkpoint.
        algorithm: name of the algorithm.
        title: title of the weights, see `Run.title`.
        classes: class names of the model, in label order.
        dataset: name of the run's dataset, or None for a CLIP checkpoint.
        targets: names of the environments held out in training, or [] on a suite.
        weights: name of the weights file, or None for a CLIP checkpoint.
        step: step after which the weights were saved, or None if unknown.
        wise_ft_alpha: alpha of weights between the original CLIP model (0) and the fine-tuned
            weights (1), or None for other weights.
        soup: description of a soup, or None.
        transform: transform of images of training environments, "as in training" or "test".
        suite: name of the suite, or None for the splits of the run's dataset.
        sets: metrics by name of the split, such as "env0_in", or of the test set. Splits without
            images, and missing and unreadable test sets are absent. Flips and calibration at a
            fitted temperature are only computed by `evaluate_sweep`.
        confusions: for splits measured by `evaluate`, the (K, K) numbers of images by true class
            (row) and predicted class (column), by name of the split.
        means: mean accuracies by key. For splits, "in_domain" is the mean over the out-splits of
            the training environments and "out_of_domain" over the in-splits of the targets. For
            suites, "mean" is over the shifted sets, and other keys over groups of sets; None unless
            all of its sets are complete.
        problems: sentences by name of the test set.
        unread: names of the test sets that could not be read.
        unsaved: the reason why the evaluation could not be saved next to the run's records; empty
            if it was saved, or was not meant to be.
        test_set: scores on the dataset's official test set; only for the tasks of CLIP's paper.
    """

    run: str
    algorithm: str
    title: str
    classes: list[str]
    dataset: str | None = None
    targets: list[str] = field(default_factory=list)
    weights: str | None = None
    step: int | None = None
    wise_ft_alpha: float | None = None
    soup: Mapping[str, Any] | None = None
    transform: str = "test"
    suite: str | None = None
    sets: dict[str, ImageSetMetrics] = field(default_factory=dict)
    confusions: dict[str, list[list[int]]] = field(default_factory=dict)
    means: dict[str, float | None] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unsaved: str = ""
    test_set: Scores | None = None

    @property
    def in_domain(self) -> float | None:
        """Mean accuracy on the out-splits of the training environments; None on a suite."""
        return self.means.get("in_domain")

    @property
    def out_of_domain(self) -> float | None:
        """Mean accuracy on the in-splits of the test environments; None on a suite."""
        return self.means.get("out_of_domain")

    @property
    def has_unread_sets(self) -> bool:
        """True if a test set was found but could not be read."""
        return bool(self.unread or (self.test_set and self.test_set.has_unread_sets))

    @property
    def reason_unsaved(self) -> str:
        """The reason why this evaluation, or the one on the official test set, was not saved."""
        return self.unsaved or (self.test_set.unsaved if self.test_set else "")


def describe_run(run: Run, data_dir: str | None = None) -> Scores:
    """Return the description of a run's weights, without scores.

    Args:
        run: the run.
        data_dir: folder of the data, whose dataset can have a number of steps.
    """
    return Scores(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        title=run.title,
        dataset=run.args["dataset"],
        classes=run.classes,
        weights=run.path.name,
        step=get_step(run, data_dir),
        wise_ft_alpha=run.alpha,
        soup=run.soup,
        transform="as in training" if run.soup is None else "test",
    )


def describe_evaluation(
    run: Run, step: int, image_sets: Sequence[ImageSetFacts], data: str
) -> EvaluationFacts:
    """Return the facts of an evaluation of a run's weights, without temperature and validation.

    Args:
        run: the run.
        step: step of its weights.
        image_sets: the evaluated splits or test sets.
        data: SHA-256 of the list of images.
    """
    return EvaluationFacts(
        format=FORMAT,
        dataset=run.args["dataset"],
        algorithm=run.args["algorithm"],
        test_envs=list(run.args["test_envs"]),
        trial_seed=run.args.get("trial_seed") or 0,
        hparams_seed=run.args.get("hparams_seed") or 0,
        step=step,
        weights=weights.cached_sha256(run.path),
        data=data,
        prompts_digest=run.hparams["prompts_digest"],
        clip_digest=run.hparams["clip_digest"],
        classes=list(run.classes),
        contexts=list(run.contexts),
        images=sum(image_set.images for image_set in image_sets),
        image_sets=list(image_sets),
        temperature=None,
    )


def measure_splits(
    splits: Sequence[ImageSet],
    predict: Predictor,
    options: LoadingOptions,
    descriptions: Sequence[Scores],
    *,
    with_confusion: bool = False,
) -> list[Scores]:
    """Measure each variant of a run's weights that ``predict`` returns on the splits.

    Args:
        splits: the splits of the run's dataset.
        predict: returns the logits of a batch for each variant.
        options: how to load the images.
        descriptions: the descriptions of the variants, without scores.
        with_confusion: also count the confusions.
    """
    measured = []
    predictions_of_variants = predict_image_sets(splits, predict, options, len(descriptions))
    for description, predictions in zip(descriptions, predictions_of_variants):
        predictions_by_split = {
            split.name: (split.facts, part) for split, part in zip(splits, predictions) if len(part)
        }
        sets = {
            name: measure_image_set(part, split, description.classes)
            for name, (split, part) in predictions_by_split.items()
        }
        confusions = {
            name: confusion_matrix(part, len(description.classes)).tolist()
            for name, (_, part) in predictions_by_split.items()
            if with_confusion
        }
        scores = replace(
            description,
            targets=sorted({split.environment for split in splits if split.is_target}),
            sets=sets,
            confusions=confusions,
            means=mean_accuracies(sets),
        )
        measured.append(scores)
    return measured


def mean_accuracies(sets: Mapping[str, ImageSetMetrics]) -> dict[str, float | None]:
    """Return the two means of `Scores.means` over the splits ``sets``."""
    accuracies: dict[str, list[float]] = {"in_domain": [], "out_of_domain": []}
    for name, scores in sets.items():
        is_target = scores.image_set.is_target
        mean, ending = ("out_of_domain", "_in") if is_target else ("in_domain", "_out")
        if name.endswith(ending):
            accuracies[mean].append(scores.accuracy)
    return {name: float(np.mean(part)) if part else None for name, part in accuracies.items()}
