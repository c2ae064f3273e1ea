"""A run, or a CLIP without one, measured on the whole test sets of a suite."""

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
from domainbed_carft.data.benchmarks import missing_data_dir
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
    predict_rows,
    run_predictor,
    split_accuracies,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.splits import Split, step_of
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite, TestSet, TestSetCopy


@dataclass(frozen=True)
class TestSetScores:
    """One model on one test set; accuracy, interval and error are shares of 1.

    ``interval``: Wilson's of the accuracy, at 95%. ``is_complete``: whether the copy has all of the
    set's images. ``mean_per_class``: None unless others report it of this set.
    """

    __test__ = False  # no test of pytest's

    images: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    ece: float
    is_complete: bool
    mean_per_class: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The scores under the keys of JSON documents and of suites.jsonl."""
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
    """One model on a suite.

    ``sets``: by name, without those that are missing or cannot be read. ``means``: the mean of the
    shifted sets, and without one of them, by key; None unless each of its sets is complete.
    ``problems``: sentences by set. ``unread``: the sets that could not be read.
    """

    suite: str
    sets: Mapping[str, TestSetScores]
    means: Mapping[str, float | None]
    problems: Mapping[str, list[str]]
    unread: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The scores, for JSON; the means are keys beside the others."""
        return {
            "suite": self.suite,
            "sets": {name: scores.as_dict() for name, scores in self.sets.items()},
            **self.means,
            "problems": dict(self.problems),
            "unread": self.unread,
        }


@dataclass(frozen=True)
class SuiteEvaluation:
    """The scores of a model on a suite, and which model it is.

    ``model``: the facts that the document and the record begin with; of a run those of `run_facts`,
    of a CLIP without a run its name as ``clip``.
    """

    model: Mapping[str, Any]
    scores: SuiteScores

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set is there but could not be read."""
        return bool(self.scores.unread)

    def as_dict(self) -> dict[str, Any]:
        """Model and scores, for JSON."""
        return {**self.model, **self.scores.as_dict()}


@dataclass(frozen=True)
class SuiteTest:
    """The test sets of a suite, found on the disk and ready to be predicted.

    ``copies``: by set; ``unread``: by set, why it cannot be read. ``plan``: how the model's
    images are made.
    """

    suite: Suite
    copies: Mapping[str, TestSetCopy]
    unread: Mapping[str, str]
    plan: ImagePlan
    options: LoadingOptions

    def scores(self, predict: Predictor, variants: int = 1) -> list[SuiteScores]:
        """The scores of each of the ``variants`` that ``predict`` gives.

        A set with a folder or an image that cannot be read has none. Raises UnreadableError if
        there is no other.
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
            except CarftError as error:  # costs no other set its figures
                problems.setdefault(test_set.name, []).append(str(error))
                unread.append(test_set.name)
                continue
            for sets, rows in zip(sets_of_variants, rows_of_variants):
                sets[test_set.name] = _test_set_scores(test_set, copy, rows)

        if not sets_of_variants[0]:
            raise _unreadable_suite(self.suite, problems)
        return [
            SuiteScores(self.suite.name, sets, self._means(sets), problems, unread)
            for sets in sets_of_variants
        ]

    def _predict(
        self, test_set: TestSet, copy: TestSetCopy, predict: Predictor, variants: int
    ) -> list[ImageRows]:
        """The rows of one set, for each variant, by the set's own classes."""

        def predict_groups(squares: Tensor) -> Iterator[Tensor]:
            no_draws = loading.NO_AUGMENTATION.expand(len(squares), -1)
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
    """The largest logit of each of J groups of classes: (N, J) of ``logits`` (N, K).

    One rule for every test set: WiSE-FT's, arXiv 2109.01903 (mlfoundations/wise-ft).
    """
    longest = max(map(len, groups))
    padded = []
    for group in groups:
        padding = [group[0]] * (longest - len(group))
        padded.append([*group, *padding])

    return logits[:, torch.tensor(padded, device=logits.device)].amax(dim=2)


def _test_set_scores(test_set: TestSet, copy: TestSetCopy, rows: ImageRows) -> TestSetScores:
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
    """Wilson's 95% interval of a binomial share (JASA 22, 1927), ``correct`` of ``count`` > 0."""
    from scipy import stats  # takes a second to import

    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def evaluate_on_suite(name: str, run: Run, options: LoadingOptions) -> SuiteEvaluation:
    """A run on the suite called ``name``; raises as `suite_test` and `SuiteTest.scores`."""
    test = suite_test(name, run, options)
    (scores,) = test.scores(run_predictor(run, options.device))
    return SuiteEvaluation(run_facts(run), scores)


def suite_test(
    name: str, run: Run, options: LoadingOptions, skipped: Collection[str] = ()
) -> SuiteTest:
    """The suite called ``name`` without the ``skipped`` sets, for a run, by its test transform.

    Raises CarftError for an unknown suite, without one of its sets, and unless the run's classes
    are the suite's, in order.
    """
    suite = catalogue.get(name).without(skipped)
    require_classes(run, suite)
    copies, unread = _locate(suite, options.data_dir or run.args.get("data_dir"))
    return SuiteTest(suite, copies, unread, evaluation_plan(run), options)


def measure_variants(
    predict: Predictor,
    splits: Sequence[Split],
    test: SuiteTest | None,
    options: LoadingOptions,
    variants: int = 1,
) -> list[tuple[SplitAccuracies, SuiteScores | None]]:
    """The accuracies on splits and suite of each of the ``variants`` that ``predict`` gives."""
    rows_of_variants = predict_rows(splits, predict, options, variants)
    accuracies = [split_accuracies(splits, rows) for rows in rows_of_variants]
    on_suite: list[SuiteScores | None] = [None] * variants
    if test:
        on_suite = [*test.scores(predict, variants)]
    return list(zip(accuracies, on_suite))


def _locate(suite: Suite, data_dir: str | None) -> tuple[dict[str, TestSetCopy], dict[str, str]]:
    """The copies of the test sets below ``data_dir``, or below the working folder, by set.

    Beside them, why others cannot be read. Raises CarftError if there is no image of any set,
    UnreadableError if that is since a folder cannot be read.
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

    for problem in missing_data_dir(folder):  # said once, and not of each set
        raise CarftError(problem)
    problems = {name: list(copy.problems) for name, copy in copies.items()}
    problems |= {name: [sentence] for name, sentence in unread.items()}
    if unread:
        raise _unreadable_suite(suite, problems)
    raise CarftError(
        f"no test set of the suite {suite.name} is in --data_dir {folder}: {_by_set(problems)}"
    )


def _unreadable_suite(suite: Suite, problems: Mapping[str, Sequence[str]]) -> UnreadableError:
    """The error for a suite without any set that can be read; ``problems``: sentences by set."""
    return UnreadableError(
        f"no test set of the suite {suite.name} can be read: {_by_set(problems)}"
    )


def _by_set(problems: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {'; '.join(sentences)}" for name, sentences in problems.items())


def require_classes(run: Run, suite: Suite) -> None:
    """Raise CarftError unless the run's classes are the suite's, in order."""
    if tuple(run.classes) == suite.classes:
        return

    pairs = itertools.zip_longest(run.classes, suite.classes)
    run_class, suite_class = next(pair for pair in pairs if pair[0] != pair[1])
    raise CarftError(
        f"{run.path} has {len(run.classes):,} classes, expected the {len(suite.classes):,} of "
        f"the suite {suite.name} in their order (found {run_class!r} instead of "
        f"{suite_class!r})"
    )


def evaluation_plan(run: Run) -> ImagePlan:
    """How the images of a suite are made for a run: as its own are, without augmentation."""
    resolution = run.algorithm.input.preprocessing.resolution
    return dataclasses.replace(run.image_plan.without_augmentation(), size=resolution)


def evaluate_clip(name: str, suite_name: str, options: LoadingOptions) -> SuiteEvaluation:
    """The CLIP called ``name`` (as in `backbone.load`), zero-shot, on a suite.

    Raises CarftError for an unknown CLIP or suite, and without one of the suite's sets.
    """
    suite = catalogue.get(suite_name)
    copies, unread = _locate(suite, options.data_dir)
    plan, predict = zero_shot_classifier(suite, backbone.load(name), options.device)
    test = SuiteTest(suite, copies, unread, plan, options)
    (scores,) = test.scores(predict)
    return SuiteEvaluation({"clip": name, "algorithm": "zero-shot CLIP"}, scores)


def zero_shot_classifier(
    suite: Suite, clip: backbone.Backbone, device: torch.device
) -> tuple[ImagePlan, Predictor]:
    """How the CLIP's images are made, and what predicts a suite's classes by the suite's prompts.

    The CLIP is moved to ``device``.
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


def run_facts(run: Run) -> dict[str, Any]:
    """What a document and a record say of a run's weights."""
    return {
        "run": str(run.path),
        "algorithm": run.args["algorithm"],
        "title": run.title,
        "weights": run.path.name,
        "step": step_of(run),
        "wise_ft_alpha": run.alpha,
    }


def append_record(weights_file: Path, evaluation: SuiteEvaluation) -> None:
    """Add a line to suites.jsonl in the folder of the weights, if that is a job's.

    Adds none where an image could not be read: an earlier record may be complete.
    """
    is_job = (weights_file.parent / RECORDS).exists()
    if is_job and not evaluation.has_unread_sets:
        digest = weights.cached_sha256(weights_file)
        records.append(weights_file.parent, {**evaluation.as_dict(), "weights_digest": digest})


@dataclass(frozen=True)
class TestSetImages(Dataset[Any]):
    """Squares (S, S, 3), uint8, before they are normalised, and labels.

    ``samples``: paths or arrays (H, W, 3) with their labels. ``border`` and
    ``is_resized_by_pillow``: as of `TestSet`. ``plan``: how an image becomes a square.
    """

    __test__ = False  # no test of pytest's

    samples: Sequence[tuple[Any, int]]
    border: int
    plan: ImagePlan
    is_resized_by_pillow: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        sample, label = self.samples[position]
        if not isinstance(sample, str):
            return self._square(torch.as_tensor(sample)), label

        with image_files.refuse_truncated_files():
            return image_files.read_image(self._square_of_file, sample), label

    def _square_of_file(self, path: str) -> Tensor:
        return self._square(loading.decode(path))

    def _square(self, pixels: Tensor) -> Tensor:
        """An image (H, W, 3) without its border, cropped and resized by the plan."""
        height, width = pixels.shape[:2]
        if min(height, width) <= 2 * self.border:
            raise CarftError(
                f"of its {width} x {height} pixels nothing is left without the border of "
                f"{self.border} pixels on each side"
            )

        inside = pixels[self.border : height - self.border, self.border : width - self.border]
        if self.is_resized_by_pillow:
            return stages.resized_by_pillow(self.plan, inside)
        return stages.first_stage(self.plan, inside)[0]
