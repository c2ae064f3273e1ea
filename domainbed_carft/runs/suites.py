"""Evaluate a run, or a CLIP checkpoint without a run, on the test sets of a suite."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from domainbed_carft.clips import backbone
from domainbed_carft.data import image_files
from domainbed_carft.data.benchmarks import data_dir_problems
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.files import weights
from domainbed_carft.images import loading, stages
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.method import objective, prompts
from domainbed_carft.results.evaluations import ImageRows, measure
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    Predictor,
    SplitAccuracies,
    compute_accuracies,
    make_predictor,
    predict_rows,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.splits import Split, get_step
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite, TestSet, TestSetCopy


@dataclass(frozen=True)
class TestSetScores:
    """Scores of one model on one test set; accuracy, interval and error are shares of 1.

    Attributes:
        images: number of images.
        correct: number of correctly predicted images.
        accuracy: accuracy on all images.
        interval: Wilson's 95% confidence interval of the accuracy.
        ece: expected calibration error.
        is_complete: True if no image of the test set is missing.
        mean_per_class: mean accuracy of the classes, only for test sets reported by this metric.
    """

    __test__ = False  # not a pytest class

    images: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    ece: float
    is_complete: bool
    mean_per_class: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the scores for JSON documents and suites.jsonl."""
        document: dict[str, Any] = {
            "n": self.images,
            "right": self.correct,
            "accuracy": self.accuracy,
            "interval": self.interval,
            "ece": self.ece,
            "complete": self.is_complete,
        }
        if self.mean_per_class is not None:
            document["mean_per_class"] = self.mean_per_class
        return document


@dataclass(frozen=True)
class SuiteScores:
    """Scores of one model on a suite.

    Attributes:
        suite: name of the suite.
        sets: scores by name of the test set; missing and unreadable sets are absent.
        means: mean accuracies of the shifted sets by key; None unless all of its sets are complete.
        problems: sentences by name of the test set.
        unread: names of the test sets that could not be read.
    """

    suite: str
    sets: Mapping[str, TestSetScores]
    means: Mapping[str, float | None]
    problems: Mapping[str, list[str]]
    unread: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the scores for JSON, with each mean as a top-level key."""
        return {
            "suite": self.suite,
            "sets": {name: scores.as_dict() for name, scores in self.sets.items()},
            **self.means,
            "problems": dict(self.problems),
            "unread": self.unread,
        }


@dataclass(frozen=True)
class SuiteEvaluation:
    """Scores of a model on a suite, with a description of the model.

    Attributes:
        model: description of a run (see `describe_weights`), or the name of a CLIP checkpoint as
            "clip"; the first items of document and record.
        scores: scores on the suite.
    """

    model: Mapping[str, Any]
    scores: SuiteScores

    @property
    def has_unread_sets(self) -> bool:
        """True if a test set was found but could not be read."""
        return bool(self.scores.unread)

    def as_dict(self) -> dict[str, Any]:
        """Return model and scores for JSON."""
        return {**self.model, **self.scores.as_dict()}


@dataclass(frozen=True)
class SuiteTest:
    """The test sets of a suite, found on the disk and ready to be predicted."""

    suite: Suite
    copies: Mapping[str, TestSetCopy]  # by name of the test set
    unread: Mapping[str, str]  # reason why a test set cannot be read, by its name
    plan: ImagePlan  # transform of the images
    options: LoadingOptions

    def measure(self, predict: Predictor, variants: int = 1) -> list[SuiteScores]:
        """Return the scores of each of the ``variants`` of the weights that ``predict`` returns.

        Test sets with an unreadable folder or image have no scores. Raises UnreadableError if no
        test set has scores.
        """
        problems: dict[str, list[str]] = {}
        unread = []
        sets_of_variants: list[dict[str, TestSetScores]] = [{} for _ in range(variants)]

        for test_set in self.suite.sets:
            if test_set.name in self.unread:
                problems[test_set.name] = [self.unread[test_set.name]]
                unread.append(test_set.name)
                continue

            copy = self.copies[test_set.name]
            if copy.problems:
                problems[test_set.name] = list(copy.problems)
            if not copy.samples:
                continue
            try:
                rows_of_variants = self._predict(test_set, copy, predict, variants)
            except CarftError as error:  # the other sets can still be measured
                problems.setdefault(test_set.name, []).append(str(error))
                unread.append(test_set.name)
                continue
            for sets, rows in zip(sets_of_variants, rows_of_variants):
                sets[test_set.name] = _score_test_set(test_set, copy, rows)

        if not sets_of_variants[0]:
            raise _make_unreadable_error(self.suite, problems)
        return [
            SuiteScores(self.suite.name, sets, self._means(sets), problems, unread)
            for sets in sets_of_variants
        ]

    def _predict(
        self, test_set: TestSet, copy: TestSetCopy, predict: Predictor, variants: int
    ) -> list[ImageRows]:
        """Return the rows of one test set for each variant, in terms of the set's classes."""

        def predict_groups(squares: Tensor) -> Iterator[Tensor]:
            no_draws = stages.draw_choices(self.plan).expand(len(squares), -1)
            images = stages.second_stage(self.plan, squares, no_draws)
            return (group_logits(logits, test_set.groups) for logits in predict(images))

        split = Split(
            name=test_set.name,
            environment=self.suite.name,
            is_target=test_set.is_shifted,
            items=TestSetImages(
                copy.samples, test_set.border, self.plan, test_set.is_resized_by_pillow
            ),
        )
        rows_of_variants = predict_rows([split], predict_groups, self.options, variants)
        return [rows for (rows,) in rows_of_variants]

    def _means(self, sets: Mapping[str, TestSetScores]) -> dict[str, float | None]:
        complete = {name: scores.accuracy for name, scores in sets.items() if scores.is_complete}
        return self.suite.means(complete)


def group_logits(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Return the largest logit of each group of classes.

    The rule of WiSE-FT, arXiv 2109.01903 (mlfoundations/wise-ft), for all test sets.

    Args:
        logits: (N, K), the logits of the K classes.
        groups: J groups of class indices.

    Returns:
        (N, J), the logits of the groups.
    """
    longest = max(map(len, groups))
    padded = []
    for group in groups:
        padding = [group[0]] * (longest - len(group))
        padded.append([*group, *padding])

    return logits[:, torch.tensor(padded, device=logits.device)].amax(dim=2)


def _score_test_set(test_set: TestSet, copy: TestSetCopy, rows: ImageRows) -> TestSetScores:
    figures = measure(rows, test_set.classes)
    correct = sum(figures.class_correct)
    return TestSetScores(
        images=len(rows.label),
        correct=correct,
        accuracy=figures.accuracy,
        interval=wilson_interval(correct, len(rows.label)),
        ece=figures.calibration.ece,
        is_complete=not copy.problems,
        mean_per_class=figures.mean_per_class if test_set.reports_mean_per_class else None,
    )


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval (JASA 22, 1927) of the share ``correct / count``."""
    from scipy import stats  # takes a second to import

    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def evaluate_on_suite(name: str, run: Run, options: LoadingOptions) -> SuiteEvaluation:
    """Evaluate a run on the suite called ``name``."""
    test = make_suite_test(name, run, options)
    (scores,) = test.measure(make_predictor(run, options.device))
    return SuiteEvaluation(describe_weights(run), scores)


def make_suite_test(
    name: str, run: Run, options: LoadingOptions, skipped: Collection[str] = ()
) -> SuiteTest:
    """Find the test sets of a suite, without the ``skipped`` ones, for a run.

    Raises CarftError if the suite is unknown, none of its test sets is found, or its classes differ
    from the run's.
    """
    suite = catalogue.get(name).without(skipped)
    require_classes(run, suite)
    copies, unread = _locate(suite, options.data_dir or run.args.get("data_dir"))
    return SuiteTest(suite, copies, unread, get_evaluation_plan(run), options)


def measure_variants(
    predict: Predictor,
    splits: Sequence[Split],
    test: SuiteTest | None,
    options: LoadingOptions,
    variants: int = 1,
) -> list[tuple[SplitAccuracies, SuiteScores | None]]:
    """Return the accuracies on splits and suite of each variant that ``predict`` returns."""
    rows_of_variants = predict_rows(splits, predict, options, variants)
    accuracies = [compute_accuracies(splits, rows) for rows in rows_of_variants]
    on_suite: list[SuiteScores | None] = [None] * variants
    if test:
        on_suite = [*test.measure(predict, variants)]
    return list(zip(accuracies, on_suite))


def _locate(suite: Suite, data_dir: str | None) -> tuple[dict[str, TestSetCopy], dict[str, str]]:
    """Find the test sets below ``data_dir``, or below the working folder.

    Returns:
        The copies, and the reasons why others cannot be read, both by name of the test set.

    Raises:
        CarftError: if there is no image of any test set.
        UnreadableError: if there is none because a folder cannot be read.
    """
    folder = Path(data_dir or ".")
    copies = {}
    unread = {}
    for test_set in suite.sets:
        try:
            copies[test_set.name] = test_set.find(folder)
        except CarftError as error:
            unread[test_set.name] = str(error)
    if any(copy.samples for copy in copies.values()):
        return copies, unread

    for problem in data_dir_problems(folder):  # once instead of for each test set
        raise CarftError(problem)
    problems = {name: list(copy.problems) for name, copy in copies.items()}
    problems |= {name: [sentence] for name, sentence in unread.items()}
    if unread:
        raise _make_unreadable_error(suite, problems)
    raise CarftError(
        f"no test set of the suite {suite.name} is in --data_dir {folder}: "
        f"{_format_problems(problems)}"
    )


def _make_unreadable_error(suite: Suite, problems: Mapping[str, Sequence[str]]) -> UnreadableError:
    return UnreadableError(
        f"no test set of the suite {suite.name} can be read: {_format_problems(problems)}"
    )


def _format_problems(problems: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {'; '.join(sentences)}" for name, sentences in problems.items())


def require_classes(run: Run, suite: Suite) -> None:
    """Raise CarftError unless run and suite have the same classes in the same order."""
    if tuple(run.classes) == suite.classes:
        return

    pairs = itertools.zip_longest(run.classes, suite.classes)
    run_class, suite_class = next(pair for pair in pairs if pair[0] != pair[1])
    raise CarftError(
        f"{run.path} has {len(run.classes):,} classes, expected the {len(suite.classes):,} of "
        f"the suite {suite.name} in the same order (found {run_class!r} instead of "
        f"{suite_class!r})"
    )


def get_evaluation_plan(run: Run) -> ImagePlan:
    """Return the transform of a suite's images for a run: the run's own, without augmentation."""
    resolution = run.algorithm.input.preprocessing.resolution
    return dataclasses.replace(run.image_plan.without_augmentation(), size=resolution)


def evaluate_clip(name: str, suite_name: str, options: LoadingOptions) -> SuiteEvaluation:
    """Evaluate a CLIP checkpoint, by a name for `backbone.load`, zero-shot on a suite."""
    suite = catalogue.get(suite_name)
    copies, unread = _locate(suite, options.data_dir)
    plan, predict = make_zero_shot_classifier(suite, backbone.load(name), options.device)
    test = SuiteTest(suite, copies, unread, plan, options)
    (scores,) = test.measure(predict)
    return SuiteEvaluation({"clip": name, "algorithm": "zero-shot CLIP"}, scores)


def make_zero_shot_classifier(
    suite: Suite, clip: backbone.Backbone, device: torch.device
) -> tuple[ImagePlan, Predictor]:
    """Return transform and predictor of a CLIP model for a suite's classes and prompts.

    The model is moved to ``device``.
    """
    suite_prompts = prompts.fill_templates(prompts.parse_contexts(suite.contexts, 1), suite.classes)
    text_features = backbone.encode_prompts(clip, suite_prompts)
    class_weights = objective.zero_shot_weights(text_features).classes.to(device)
    encoder = clip.model.visual.to(device)

    def predict(images: Tensor) -> list[Tensor]:
        features = F.normalize(encoder(images).float(), dim=-1)
        return [clip.logit_scale * features @ class_weights.T]

    preprocessing = clip.preprocessing
    plan = ImagePlan(
        size=preprocessing.resolution,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return plan, predict


def describe_weights(run: Run) -> dict[str, Any]:
    """Return the description of a run's weights for documents and records."""
    return {
        "run": str(run.path),
        "algorithm": run.args["algorithm"],
        "title": run.title,
        "weights": run.path.name,
        "step": get_step(run),
        "wise_ft_alpha": run.alpha,
    }


def append_record(weights_file: Path, evaluation: SuiteEvaluation) -> None:
    """Add a line to suites.jsonl in the folder of the weights, if it is a job's folder.

    An evaluation with unreadable images is not recorded, since an earlier record can be complete.
    """
    if (weights_file.parent / RECORDS).exists() and not evaluation.has_unread_sets:
        digest = weights.cached_sha256(weights_file)
        records.append(weights_file.parent, {**evaluation.as_dict(), "weights_digest": digest})


@dataclass(frozen=True)
class TestSetImages(Dataset[Any]):
    """A torch dataset of square images (S, S, 3), uint8, before normalisation, and labels."""

    __test__ = False  # not a pytest class

    samples: Sequence[tuple[Any, int]]  # paths or arrays (H, W, 3), with labels
    border: int  # see `TestSet`
    plan: ImagePlan  # makes an image square
    is_resized_by_pillow: bool = False  # see `TestSet`

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        sample, label = self.samples[position]
        if not isinstance(sample, str):
            return self._make_square(torch.as_tensor(sample)), label

        try:
            with image_files.refuse_truncated_files():
                return self._make_square(loading.decode(sample)), label
        except Exception as error:  # Pillow's decoders raise a dozen types
            raise image_files.reading_error(sample, error) from error

    def _make_square(self, pixels: Tensor) -> Tensor:
        """Remove the border of an image (H, W, 3), then crop and resize it."""
        height, width = pixels.shape[:2]
        if min(height, width) <= 2 * self.border:
            raise CarftError(
                f"the image has {width} x {height} pixels, too small to remove a border of "
                f"{self.border} pixels from each side"
            )

        inside = pixels[self.border : height - self.border, self.border : width - self.border]
        if self.is_resized_by_pillow:
            return stages.resize_by_pillow(self.plan, inside)
        return stages.crop(self.plan, inside)
