"""Evaluate a run, or a CLIP checkpoint without a run, on the test sets of a suite."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.clips import backbone
from domainbed_carft.data.benchmarks import data_dir_problems
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.squares import Squares
from domainbed_carft.method import objective, prompts
from domainbed_carft.results.metrics import PredictionArray, measure_image_set
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    Predictor,
    predict_image_sets,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.scores import Scores
from domainbed_carft.runs.splits import ImageSet
from domainbed_carft.suites import catalogue
from domainbed_carft.suites.suite import Suite, TestSet, TestSetCopy


@dataclass(frozen=True)
class SuitePredictions:
    """Predictions of several variants of a run's weights on the test sets of a suite.

    Attributes:
        by_set: for each test set that could be read, the predictions of each variant.
        problems: sentences by name of the test set.
        unread: names of the test sets that could not be read.
    """

    by_set: Mapping[str, Sequence[PredictionArray]]
    problems: Mapping[str, list[str]]
    unread: Sequence[str]


@dataclass(frozen=True)
class SuiteTest:
    """The test sets of a suite, found on the disk and ready to be predicted."""

    suite: Suite
    copies: Mapping[str, TestSetCopy]  # by name of the test set
    unread: Sequence[str]  # names of the test sets that cannot be read
    plan: ImagePlan  # transform of the images
    options: LoadingOptions

    @functools.cached_property
    def image_sets(self) -> dict[str, ImageSet]:
        """The test sets that have images, by name."""
        all_sets = catalogue.get(self.suite.name).sets
        numbers = {test_set.name: number for number, test_set in enumerate(all_sets)}
        return {
            test_set.name: self._make_image_set(test_set, numbers[test_set.name])
            for test_set in self.suite.sets
            if self.copies[test_set.name].samples
        }

    def _make_image_set(self, test_set: TestSet, number: int) -> ImageSet:
        copy = self.copies[test_set.name]
        squares = Squares(copy.samples, self.plan, test_set.border, test_set.is_resized_by_pillow)
        return ImageSet(
            name=test_set.name,
            environment=self.suite.name,
            is_target=test_set.is_shifted,
            items=squares,
            number=number,
            squares=squares,
            classes=() if test_set.classes == self.suite.classes else test_set.classes,
            groups=test_set.groups,
            is_complete=not copy.problems,
        )

    def hash_images(self, name: str) -> str:
        """Return a SHA-256 of the images of a test set, their labels, and the groups of classes.

        The digest covers path, size and modification time of image files, and the values of arrays.
        Raises OSError if a file is missing.
        """
        copy = self.copies[name]
        root = str(copy.root or "")
        digest = hashlib.sha256(repr(self.image_sets[name].groups).encode())
        for image, label in copy.samples:
            if isinstance(image, str):
                file = os.stat(image)
                line = f"{image.removeprefix(root)} {file.st_size} {file.st_mtime_ns} {label}"
            else:
                line = f"{hashlib.sha256(np.asarray(image).tobytes()).hexdigest()} {label}"
            digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    def predict(self, predict: Predictor, variants: int = 1) -> SuitePredictions:
        """Predict the images of all test sets, in terms of each set's classes.

        Test sets with an unreadable folder or image have no predictions. Raises UnreadableError if
        no test set has predictions.

        Args:
            predict: returns the logits of a batch for each variant of the weights.
            variants: number of variants.
        """
        problems = get_problems(self.copies)
        unread = [*self.unread]
        by_set: dict[str, list[PredictionArray]] = {}
        for name, image_set in self.image_sets.items():
            predict_set = group_predictor(predict, image_set.groups)
            try:
                parts = predict_image_sets([image_set], predict_set, self.options, variants)
            except CarftError as error:  # the other sets can still be measured
                problems.setdefault(name, []).append(str(error))
                unread.append(name)
            else:
                by_set[name] = [part for (part,) in parts]

        if not by_set:
            raise _make_unreadable_error(self.suite, problems)
        return SuitePredictions(by_set, problems, unread)

    def score(self, predictions: SuitePredictions, variant: int, description: Scores) -> Scores:
        """Return the scores of a variant, given its description without scores."""
        sets = {
            name: measure_image_set(
                of_variants[variant],
                self.image_sets[name].facts,
                description.classes,
            )
            for name, of_variants in predictions.by_set.items()
        }
        complete = {
            name: part.accuracy for name, part in sets.items() if part.image_set.is_complete
        }
        return dataclasses.replace(
            description,
            suite=self.suite.name,
            transform="test",
            sets=sets,
            means=self.suite.means(complete),
            problems={name: list(sentences) for name, sentences in predictions.problems.items()},
            unread=list(predictions.unread),
        )

    def measure(self, predict: Predictor, descriptions: Sequence[Scores]) -> list[Scores]:
        """Return the scores of each variant of the weights that ``predict`` returns.

        Args:
            predict: returns the logits of a batch for each variant.
            descriptions: the descriptions of the variants, without scores.
        """
        predictions = self.predict(predict, len(descriptions))
        return [
            self.score(predictions, variant, description)
            for variant, description in enumerate(descriptions)
        ]


def group_predictor(predict: Predictor, groups: Sequence[Sequence[int]]) -> Predictor:
    """Return a predictor of the logits of groups of classes."""

    def predict_groups(images: Tensor) -> Iterator[Tensor]:
        return (group_logits(logits, groups) for logits in predict(images))

    return predict_groups


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


def _locate(suite: Suite, data_dir: str | None) -> tuple[dict[str, TestSetCopy], list[str]]:
    """Find the test sets below ``data_dir``, or below the working folder.

    Returns:
        The copies by name of the test set, and the names of those that cannot be read.

    Raises:
        CarftError: if there is no image of any test set.
        UnreadableError: if there is none because a folder cannot be read.
    """
    folder = Path(data_dir or ".")
    copies = {}
    unread = []
    for test_set in suite.sets:
        try:
            copies[test_set.name] = test_set.find(folder)
        except CarftError as error:
            copies[test_set.name] = TestSetCopy(None, (), [str(error)])
            unread.append(test_set.name)
    if any(copy.samples for copy in copies.values()):
        return copies, unread

    for problem in data_dir_problems(folder):  # once instead of for each test set
        raise CarftError(problem)
    if unread:
        raise _make_unreadable_error(suite, get_problems(copies))
    raise CarftError(
        f"no test set of the suite {suite.name} is in --data_dir {folder}: "
        f"{_format_problems(get_problems(copies))}"
    )


def get_problems(copies: Mapping[str, TestSetCopy]) -> dict[str, list[str]]:
    """Return the problems of the copies that have any, by name of the test set."""
    return {name: list(copy.problems) for name, copy in copies.items() if copy.problems}


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


def measure_clip(name: str, suite_name: str, options: LoadingOptions) -> Scores:
    """Measure a CLIP checkpoint, by a name for `backbone.load`, zero-shot on a suite."""
    suite = catalogue.get(suite_name)
    copies, unread = _locate(suite, options.data_dir)
    plan, predict = make_zero_shot_classifier(suite, backbone.load(name), options.device)
    description = Scores(
        run=name, algorithm="zero-shot CLIP", title=name, classes=list(suite.classes)
    )
    (scores,) = SuiteTest(suite, copies, unread, plan, options).measure(predict, [description])
    return scores


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
