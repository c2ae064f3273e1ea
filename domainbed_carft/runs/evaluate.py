"""A saved run measured: accuracy, calibration and confusion on its splits, or on a suite."""

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
from domainbed_carft.results.evaluations import ECE_BINS, Figures, confusion_matrix, measure
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
    """The predictions on one split of ``environment``; ``is_target``: whether it was left out.

    ``figures``: None without images. ``confusion`` (K, K): images by true class (row) and
    predicted class (column).
    """

    name: str
    environment: str
    is_target: bool
    images: int
    figures: Figures | None
    confusion: npt.NDArray[np.int64]

    def class_accuracies(self) -> list[float | None]:
        """The accuracy (recall) of each class, in label order; None without images."""
        totals = self.confusion.sum(axis=1).tolist()
        hits = self.confusion.diagonal().tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals)]

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """The scores, for JSON; ``classes``: the names in label order."""
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
    """A run on the splits of its dataset; accuracies and errors are shares of 1.

    ``run``: the path of the weights. ``step``: after which they were saved, None if unknown.
    ``transform``: how images of training environments are transformed, see
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
    """Accuracy, calibration and confusion of a run on the splits of its dataset, or on a suite.

    Of the output folder of a sweep: calibration and flips of every selected run, which
    are kept in the runs' folders.

    ``suite``: the name of whole test sets, such as "imagenet", instead of the splits. ``data_dir``:
    the folder above the dataset's, or your own data folder itself; by default the recorded one.
    ``device``: by default the run's, of a path the GPU if there is one. ``workers``: processes that
    load images; by default one per core where there are many images.

    Of sweeps alone: ``methods``, selection methods, by default those of the tables; ``jobs``, how
    many runs at a time; ``original``, the CLIP that the runs started from, needed unless that is a
    published one.

    Raises CarftError if the data is missing or not the run's, and for an unknown suite. Unlike
    ``carft evaluate --suite`` it writes no record.

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
                "a suite is for a run here; for a sweep use runs.sweep.evaluate_sweep_on_suite"
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
                f"{name} is for the output folder of a sweep, and this is a run; leave it out"
            )
    loaded = as_run(run, device)
    options = LoadingOptions(loaded.device, batch_size, workers, as_text(data_dir))
    if suite:
        return evaluate_on_suite(suite, loaded, options)
    return evaluate_splits(loaded, options)


def evaluate_splits(run: Run, options: LoadingOptions) -> Evaluation:
    """The run on the splits of its dataset, and on the task's own test set if it has one.

    Raises CarftError if the data is missing or not the run's, and where an image of a split cannot
    be read.
    """
    splits = splitting.read_splits(run, options.data_dir)
    (rows,) = predict_rows(splits, make_predictor(run, options.device), options)
    test_set, test_set_error = _evaluate_own_test_set(run, options)

    return Evaluation(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        title=run.title,
        soup=run.soup,
        dataset=run.args["dataset"],
        weights=run.path.name,
        step=splitting.get_step(run, options.data_dir),
        wise_ft_alpha=run.alpha,
        transform=splitting.transform_name(run),
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


def _evaluate_own_test_set(
    run: Run, options: LoadingOptions
) -> tuple[SuiteEvaluation | None, CarftError | None]:
    """The scores on the task's own test set, or why there are none; neither for other datasets."""
    task = run.args["dataset"]
    if task not in TASKS or tuple(run.classes) != catalogue.get(task).classes:
        return None, None

    try:
        return evaluate_on_suite(task, run, options), None
    except CarftError as error:  # the splits are measured all the same
        return None, error
