"""A saved run measured: accuracy, calibration and confusion on its splits, or on a suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.confusion import ECE_BINS, ConfusionCounts
from domainbed_carft.runs.measuring import LoadingOptions, count_predictions, run_predictor
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.suite_evaluation import evaluate_on_suite
from domainbed_carft.runs.suite_scores import SuiteEvaluation
from domainbed_carft.suites import catalogue


@dataclass(frozen=True)
class SplitScores:
    """The predictions on one split of ``environment``; ``is_target``: whether it was left out."""

    name: str
    environment: str
    is_target: bool
    counts: ConfusionCounts

    def as_dict(self, classes: list[str]) -> dict[str, Any]:
        """The scores, for JSON; ``classes``: the names in label order."""
        by_class = [
            {"class": name, "pictures": row.pictures, "accuracy": row.accuracy}
            for name, row in zip(classes, self.counts.by_class)
        ]
        return {
            "name": self.name,
            "environment": self.environment,
            "is_target": self.is_target,
            "pictures": self.counts.count,
            "accuracy": self.counts.accuracy,
            "ece": self.counts.ece,
            "by_class": by_class,
            "confusion": self.counts.confusion.tolist(),
        }


@dataclass(frozen=True)
class Evaluation:
    """A run on the splits of its data set; accuracies and errors are shares of 1.

    ``run``: the path of the weights. ``step``: after which they were saved, None if unknown.
    ``transform``: how pictures of training environments are transformed, see
    `splits.transform_name`. ``targets``: the environments left out. ``test_set``: of the tasks of
    CLIP's paper, which have a test set of their own, the scores on it; ``test_set_error`` says why
    there are none.
    """

    run: str
    algorithm: str
    title: str
    soup: Mapping[str, Any] | None
    dataset: str
    weights: str
    step: int | None
    wise_ft_alpha: float | None
    transform: str
    targets: list[str]
    classes: list[str]
    splits: list[SplitScores]
    test_set: SuiteEvaluation | None = None
    test_set_error: CarftError | None = None

    @property
    def has_unread_sets(self) -> bool:
        """Whether the task's own test set is there but could not be read."""
        if self.test_set:
            return self.test_set.has_unread_sets
        return isinstance(self.test_set_error, UnreadableError)

    def as_dict(self) -> dict[str, Any]:
        """The evaluation, for JSON: everything that `carft evaluate --json` prints."""
        document: dict[str, Any] = {
            "run": self.run,
            "algorithm": self.algorithm,
            "title": self.title,
            "soup": self.soup,
            "dataset": self.dataset,
            "weights": self.weights,
            "step": self.step,
            "wise_ft_alpha": self.wise_ft_alpha,
            "transform": self.transform,
            "targets": self.targets,
            "classes": self.classes,
            "ece_bins": ECE_BINS,
            "splits": [split.as_dict(self.classes) for split in self.splits],
        }
        if self.test_set:
            document["test_set"] = self.test_set.as_dict()
        elif self.test_set_error:
            document["test_set"] = {"problems": [str(self.test_set_error)]}
        return document


def evaluate(run: TrainedRun, options: LoadingOptions) -> Evaluation:
    """The run on the splits of its data set, and on the task's own test set if it has one.

    Raises CarftError if the data is missing or not the run's, and where a picture of a split cannot
    be read.
    """
    splits = splitting.splits(run, options.data_dir)
    (counts,) = count_predictions(
        splits, run_predictor(run, options.device), options, num_classes=len(run.classes)
    )
    step = splitting.step_of(run, options.data_dir)
    test_set, test_set_error = _evaluate_own_test_set(run, options)

    return Evaluation(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        title=run.title,
        soup=run.soup,
        dataset=run.args["dataset"],
        weights=run.path.name,
        step=step,
        wise_ft_alpha=run.alpha,
        transform=splitting.transform_name(run),
        targets=sorted({split.environment for split in splits if split.is_target}),
        classes=run.classes,
        splits=[
            SplitScores(split.name, split.environment, split.is_target, split_counts)
            for split, split_counts in zip(splits, counts)
        ],
        test_set=test_set,
        test_set_error=test_set_error,
    )


def _evaluate_own_test_set(
    run: TrainedRun, options: LoadingOptions
) -> tuple[SuiteEvaluation | None, CarftError | None]:
    """The scores on the task's own test set, or why there are none; neither for other data sets."""
    task = run.args["dataset"]
    if task not in TASKS or tuple(run.classes) != catalogue.get(task).classes:
        return None, None

    try:
        return evaluate_on_suite(task, run, options), None
    except CarftError as error:  # the splits are measured all the same
        return None, error
