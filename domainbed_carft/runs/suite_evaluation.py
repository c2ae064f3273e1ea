"""A run, or a CLIP without one, measured on the whole test sets of a suite."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.pictures import loading, stages
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.runs import splits
from domainbed_carft.runs.confusion import ConfusionCounts
from domainbed_carft.runs.measuring import (
    LoadingOptions,
    Predictor,
    count_predictions,
    run_predictor,
)
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.suite_pictures import (
    LocatedSet,
    TestSetPictures,
    locate_sets,
    unreadable_suite,
)
from domainbed_carft.runs.suite_scores import (
    SuiteEvaluation,
    SuiteScores,
    TestSetScores,
    wilson_interval,
)
from domainbed_carft.runs.zero_shot_head import ZeroShotHead
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite


@dataclass(frozen=True)
class SuiteTest:
    """The test sets of a suite, found on the disk and ready to be predicted.

    ``plan``: how the model's pictures are made.
    """

    suite: Suite
    located_sets: list[LocatedSet]
    plan: PicturePlan
    options: LoadingOptions

    def scores(self, predict: Predictor, variants: int = 1) -> list[SuiteScores]:
        """The scores of each of the ``variants`` that ``predict`` gives.

        A set with a folder or a picture that cannot be read has none. Raises UnreadableError if
        there is no other.
        """
        problems = {test_set.name: list(copy.problems) for test_set, copy in self.located_sets}
        sets_of_variants: list[dict[str, TestSetScores]] = [{} for _ in range(variants)]
        unread = []

        for located in self.located_sets:
            name = located.test_set.name
            if located.copy.is_unreadable:
                unread.append(name)
                continue
            try:
                counts = self._count(located, predict, variants)
            except CarftError as error:  # costs no other set its figures
                problems[name].append(str(error))
                unread.append(name)
                continue
            for sets, count in zip(sets_of_variants, counts):
                if count.count:
                    sets[name] = _test_set_scores(located, count)

        problems = {name: sentences for name, sentences in problems.items() if sentences}
        if not sets_of_variants[0]:
            raise unreadable_suite(self.suite, problems)
        return [
            SuiteScores(self.suite.name, sets, self._means(sets), problems, unread)
            for sets in sets_of_variants
        ]

    def _count(
        self, located: LocatedSet, predict: Predictor, variants: int
    ) -> list[ConfusionCounts]:
        """The predictions on one set, for each variant."""
        test_set = located.test_set

        def predict_squares(squares: Tensor) -> Any:
            no_draws = loading.NO_AUGMENTATION.expand(len(squares), -1)
            return predict(stages.second_stage(self.plan, squares, no_draws))

        split = splits.Split(
            name=test_set.name,
            environment=self.suite.name,
            is_target=test_set.is_shifted,
            items=TestSetPictures(
                located.copy.samples, test_set.border, self.plan, test_set.is_resized_by_pillow
            ),
        )
        counts = count_predictions(
            [split],
            predict_squares,
            self.options,
            variants=variants,
            num_classes=len(test_set.classes),
            groups=test_set.groups,
        )
        return [split_counts[0] for split_counts in counts]

    def _means(self, sets: Mapping[str, TestSetScores]) -> dict[str, float | None]:
        complete = {name: scores.accuracy for name, scores in sets.items() if scores.is_complete}
        return self.suite.means(complete)


def _test_set_scores(located: LocatedSet, counts: ConfusionCounts) -> TestSetScores:
    accuracy = counts.accuracy
    ece = counts.ece
    assert accuracy is not None and ece is not None  # there are pictures

    reports_mean = located.test_set.reports_mean_per_class
    return TestSetScores(
        pictures=counts.count,
        correct=counts.correct,
        accuracy=accuracy,
        interval=wilson_interval(counts.correct, counts.count),
        ece=ece,
        is_complete=not located.copy.problems,
        mean_per_class=counts.mean_per_class if reports_mean else None,
    )


def evaluate_on_suite(name: str, run: TrainedRun, options: LoadingOptions) -> SuiteEvaluation:
    """A run on the suite called ``name``; raises as `suite_test` and `SuiteTest.scores`."""
    test = suite_test(name, run, options)
    (scores,) = test.scores(run_predictor(run, options.device))
    return SuiteEvaluation(run_facts(run), scores)


def suite_test(name: str, run: TrainedRun, options: LoadingOptions) -> SuiteTest:
    """The suite called ``name`` for a run, whose own test transform is used.

    Raises CarftError for an unknown suite, without one of its sets, and unless the run's classes
    are the suite's, in order.
    """
    suite = catalogue.get(name)
    require_classes(run, suite)
    located_sets = locate_sets(suite, options.data_dir or run.args.get("data_dir"))
    return SuiteTest(suite, located_sets, evaluation_plan(run), options)


def require_classes(run: TrainedRun, suite: Suite) -> None:
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


def evaluation_plan(run: TrainedRun) -> PicturePlan:
    """How the pictures of a suite are made for a run: as its own are, without augmentation."""
    resolution = run.algorithm.input.preprocessing.resolution
    return dataclasses.replace(run.picture_plan.without_augmentation(), size=resolution)


def evaluate_clip(name: str, suite_name: str, options: LoadingOptions) -> SuiteEvaluation:
    """The CLIP called ``name`` (as in `backbone.load`), zero-shot, on a suite.

    Raises CarftError for an unknown CLIP or suite, and without one of the suite's sets.
    """
    suite = catalogue.get(suite_name)
    located_sets = locate_sets(suite, options.data_dir)
    head = ZeroShotHead.of_suite(suite, backbone.load(name), options.device)
    test = SuiteTest(suite, located_sets, head.plan, options)
    (scores,) = test.scores(head.predictor([head.encoder]))
    return SuiteEvaluation({"clip": name, "algorithm": "zero-shot CLIP"}, scores)


def run_facts(run: TrainedRun) -> dict[str, Any]:
    """What a document and a record say of a run's weights."""
    return {
        "run": str(run.path),
        "algorithm": run.args["algorithm"],
        "title": run.title,
        "weights": run.path.name,
        "step": splits.step_of(run),
        "wise_ft_alpha": run.alpha,
    }


def append_record(weights_file: Path, evaluation: SuiteEvaluation) -> None:
    """Add a line to suites.jsonl in the folder of the weights, if that is a job's.

    Adds none where a picture could not be read: an earlier record may be complete.
    """
    is_job = (weights_file.parent / RECORDS).exists()
    if is_job and not evaluation.has_unread_sets:
        records.append(weights_file.parent, evaluation.as_dict())
