"""Accuracy, calibration and confusion of a saved run on its splits, or on a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from domainbed_carft.arguments import COUNT, TEXTS, check
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.results.evaluations import ECE_BINS, Metrics, confusion_matrix, measure
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    check_loading,
    make_predictor,
    predict_rows,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, as_run
from domainbed_carft.runs.suites import SuiteEvaluation, evaluate_on_suite
from domainbed_carft.runs.sweep import (
    SweepEvaluation,
    SweepOptions,
    evaluate_sweep,
    is_sweep_folder,
)
from domainbed_carft.suites import catalogue


@dataclass(frozen=True)
class SplitScores:
    """Scores of a run on one split.

    Attributes:
        name: name of the split in the records, such as "env0_in".
        environment: name of the environment.
        is_target: True if the environment was held out in training.
        images: number of images.
        figures: accuracy and calibration, or None if the split is empty.
        confusion: (K, K), number of images by true class (row) and predicted class (column).
    """

    name: str
    environment: str
    is_target: bool
    images: int
    figures: Metrics | None
    confusion: npt.NDArray[np.int64]

    def class_accuracies(self) -> list[float | None]:
        """Return the accuracy (recall) of each class.

        Returns:
            A share of 1 for each class, in label order, or None if the class has no image.
        """
        totals = self.confusion.sum(axis=1).tolist()
        hits = self.confusion.diagonal().tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals)]

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the scores for JSON.

        Args:
            classes: class names, in label order.
        """
        totals = self.confusion.sum(axis=1).tolist()
        return {
            "name": self.name,
            "environment": self.environment,
            "is_target": self.is_target,
            "images": self.images,
            "accuracy": self.figures.accuracy if self.figures else None,
            "ece": self.figures.calibration.ece if self.figures else None,
            "by_class": [
                {"class": name, "images": total, "accuracy": accuracy}
                for name, total, accuracy in zip(classes, totals, self.class_accuracies())
            ],
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on the splits of its dataset; accuracies and errors are shares of 1.

    Attributes:
        run: path of the weights file.
        algorithm: name of the algorithm.
        title: title of the run, see `Run.title`.
        soup: description of a soup, or None.
        dataset: name of the dataset.
        weights: name of the weights file.
        step: step after which the weights were saved, or None if unknown.
        wise_ft_alpha: alpha of weights that ``carft wise-ft`` saved, or None.
        transform: transform of images of training environments, "as in training" or "test".
        targets: names of the environments held out in training.
        classes: class names, in label order.
        splits: scores of each split.
        test_set: scores on the dataset's official test set; only for the tasks of CLIP's paper.
        test_set_error: reason why there are no scores on the official test set, or None.
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
        """True if the official test set was found but could not be read."""
        if self.test_set:
            return self.test_set.has_unread_sets
        return isinstance(self.test_set_error, UnreadableError)

    def as_dict(self) -> dict[str, Any]:
        """Return the evaluation for JSON, with the keys of ``carft evaluate --json``."""
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


def evaluate(
    run: AnyRun,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    original: AnyPath | None = None,
    methods: Sequence[str] | None = None,
    jobs: int | None = None,
) -> Evaluation | SuiteEvaluation | SweepEvaluation:
    """Evaluate a run on the splits of its dataset or on a suite, or all selected runs of a sweep.

    The results of a sweep are saved in the folders of its runs. Unlike ``carft evaluate --suite``,
    this function writes no record of a suite.

    Args:
        run: a `Run`, a job's folder, a weights file, or the output folder of a sweep.
        suite: name of a suite of test sets, such as "imagenet", to use instead of the splits.
        data_dir: the folder that contains the dataset's folder or, for your own data, the data
            folder itself. Default: the recorded one.
        device: such as "cpu" or "cuda:1". Default: the device of a `Run`, otherwise the GPU if
            there is one.
        batch_size: images per batch.
        workers: number of processes that load images. Default: one per core if there are many
            images.
        original: for sweeps, the CLIP checkpoint that the runs started from; required unless it is
            a published one.
        methods: for sweeps, names of selection methods. Default: the methods shown in the tables.
        jobs: for sweeps, number of runs evaluated at a time.

    Returns:
        An `Evaluation` of a run on its splits, a `SuiteEvaluation` if ``suite`` is given, or a
        `SweepEvaluation` if ``run`` is the folder of a sweep.

    Raises:
        CarftError: if the data is missing or differs from the run's, the suite is unknown, or an
            image of a split cannot be read.

    Examples:
        >>> evaluation = evaluate(job, workers=0)
        >>> evaluation.splits[0].name, evaluation.splits[0].is_target
        ('env0_in', True)
        >>> 0 <= evaluation.splits[0].figures.accuracy <= 1
        True
        >>> evaluation.as_dict()["splits"][0]["images"] == evaluation.splits[0].images
        True
    """
    check_loading(suite, batch_size, workers)
    check(TEXTS, is_optional=True, methods=methods)
    check(COUNT, is_optional=True, jobs=jobs)
    if not isinstance(run, Run) and is_sweep_folder(as_path(run)):
        if suite:
            raise CarftError(
                "suite needs a single run here; for a sweep call runs.sweep.evaluate_sweep_on_suite"
            )
        sweep_options = SweepOptions(
            device=device,
            batch_size=batch_size,
            workers=workers,
            data_dir=as_text(data_dir),
            original=as_text(original),
            jobs=jobs,
        )
        return evaluate_sweep(as_path(run), sweep_options, methods)

    for name, value in (("original", original), ("methods", methods), ("jobs", jobs)):
        if value is not None:
            raise CarftError(
                f"{name} is for the output folder of a sweep, but you passed a run; omit {name}"
            )
    loaded = as_run(run, device)
    options = LoadingOptions(loaded.device, batch_size, workers, as_text(data_dir))
    if suite:
        return evaluate_on_suite(suite, loaded, options)
    return evaluate_splits(loaded, options)


def evaluate_splits(run: Run, options: LoadingOptions) -> Evaluation:
    """Evaluate a run on the splits of its dataset and, if there is one, its official test set."""
    splits = splitting.read_splits(run, options.data_dir)
    (rows,) = predict_rows(splits, make_predictor(run, options.device), options)
    test_set, test_set_error = _evaluate_official_test_set(run, options)

    return Evaluation(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        title=run.title,
        soup=run.soup,
        dataset=run.args["dataset"],
        weights=run.path.name,
        step=splitting.get_step(run, options.data_dir),
        wise_ft_alpha=run.alpha,
        transform=splitting.get_transform_name(run),
        targets=sorted({split.environment for split in splits if split.is_target}),
        classes=run.classes,
        splits=[
            SplitScores(
                name=split.name,
                environment=split.environment,
                is_target=split.is_target,
                images=len(part.label),
                figures=measure(part, run.classes) if len(part.label) else None,
                confusion=confusion_matrix(part, len(run.classes)),
            )
            for split, part in zip(splits, rows)
        ],
        test_set=test_set,
        test_set_error=test_set_error,
    )


def _evaluate_official_test_set(
    run: Run, options: LoadingOptions
) -> tuple[SuiteEvaluation | None, CarftError | None]:
    """Return the scores on a task's test set, or the error; (None, None) for other datasets."""
    task = run.args["dataset"]
    if task not in TASKS or tuple(run.classes) != catalogue.get(task).classes:
        return None, None

    try:
        return evaluate_on_suite(task, run, options), None
    except CarftError as error:  # the scores on the splits are still worth reporting
        return None, error
