"""Scores of weights on sets of images: the splits of a run's dataset, or test sets of a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from domainbed_carft.results.evaluations import ImageRows, confusion_matrix, measure
from domainbed_carft.runs.predictions import LoadingOptions, Predictor, predict_rows
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.splits import Split, get_step


@dataclass(frozen=True)
class SetScores:
    """Scores on one split or test set; accuracies and errors are shares of 1.

    Attributes:
        environment: name of the split's environment; of a test set, the name of its suite.
        is_target: True if the environment was held out in training, or the test set is shifted.
        is_complete: True if no image of the test set is missing.
        images: number of images.
        correct: number of correctly predicted images.
        accuracy: accuracy on all images, or None without images.
        interval: Wilson's 95% confidence interval of the accuracy, only for test sets.
        ece: expected calibration error, or None without images.
        mean_per_class: mean accuracy of the classes, only for test sets reported by this metric.
        class_images: number of images of each class, in the order of the set's labels.
        class_correct: number of correctly predicted images of each class.
        confusion: (K, K), number of images by true class (row) and predicted class (column); only
            for splits that `evaluate` measured.
    """

    environment: str
    is_target: bool
    is_complete: bool
    images: int
    correct: int
    accuracy: float | None
    interval: tuple[float, float] | None
    ece: float | None
    mean_per_class: float | None
    class_images: list[int]
    class_correct: list[int]
    confusion: list[list[int]] | None = None

    @property
    def class_accuracies(self) -> list[float | None]:
        """The accuracy (recall) of each class, or None if the class has no image."""
        return [
            correct / images if images else None
            for correct, images in zip(self.class_correct, self.class_images)
        ]


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
        sets: scores by name of the split, such as "env0_in", or of the test set. Missing and
            unreadable test sets are absent.
        means: mean accuracies by key. For splits, "in_domain" is the mean over the out-splits of
            the training environments and "out_of_domain" over the in-splits of the targets. For
            suites, "mean" is over the shifted sets, and other keys over groups of sets; None unless
            all of its sets are complete.
        problems: sentences by name of the test set.
        unread: names of the test sets that could not be read.
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
    sets: dict[str, SetScores] = field(default_factory=dict)
    means: dict[str, float | None] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
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


def measure_splits(
    splits: Sequence[Split],
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
    rows_of_variants = predict_rows(splits, predict, options, len(descriptions))
    for description, rows in zip(descriptions, rows_of_variants):
        sets = {
            split.name: score_set(split, part, description.classes, with_confusion=with_confusion)
            for split, part in zip(splits, rows)
        }
        targets = sorted({split.environment for split in splits if split.is_target})
        measured.append(
            replace(description, targets=targets, sets=sets, means=mean_accuracies(sets))
        )
    return measured


def score_set(
    split: Split,
    rows: ImageRows,
    classes: Sequence[str],
    *,
    with_confusion: bool = False,
    by_class: bool = False,
) -> SetScores:
    """Return the scores on one split or test set.

    Args:
        split: the split.
        rows: the rows of its images.
        classes: the names of its classes, in label order.
        with_confusion: count the confusions.
        by_class: compute the mean accuracy of the classes.
    """
    metrics = measure(rows, classes) if len(rows) else None
    return SetScores(
        environment=split.environment,
        is_target=split.is_target,
        is_complete=True,
        images=len(rows),
        correct=sum(metrics.class_correct) if metrics else 0,
        accuracy=metrics.accuracy if metrics else None,
        interval=None,
        ece=metrics.calibration.ece if metrics else None,
        mean_per_class=metrics.mean_per_class if metrics and by_class else None,
        class_images=metrics.class_images if metrics else [0] * len(classes),
        class_correct=metrics.class_correct if metrics else [0] * len(classes),
        confusion=confusion_matrix(rows, len(classes)).tolist() if with_confusion else None,
    )


def mean_accuracies(sets: Mapping[str, SetScores]) -> dict[str, float | None]:
    """Return the two means of `Scores.means` over the splits ``sets``."""
    accuracies: dict[str, list[float]] = {"in_domain": [], "out_of_domain": []}
    for name, scores in sets.items():
        mean, ending = ("out_of_domain", "_in") if scores.is_target else ("in_domain", "_out")
        if name.endswith(ending) and scores.accuracy is not None:
            accuracies[mean].append(scores.accuracy)
    return {name: float(np.mean(part)) if part else None for name, part in accuracies.items()}
