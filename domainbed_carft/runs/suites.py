"""Evaluate a run, or a CLIP checkpoint without a run, on the test sets of a suite."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.clips import backbone
from domainbed_carft.data.benchmarks import data_dir_problems
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.files import weights
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.squares import Squares
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.method import objective, prompts
from domainbed_carft.runs.predictions import LoadingOptions, Predictor, make_predictor, predict_rows
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.scores import Scores, SetScores, describe_run, score_set
from domainbed_carft.runs.splits import Split
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.suite import Suite, TestSet, TestSetCopy


@dataclass(frozen=True)
class SuiteTest:
    """The test sets of a suite, found on the disk and ready to be predicted."""

    suite: Suite
    copies: Mapping[str, TestSetCopy]  # by name of the test set
    unread: Sequence[str]  # names of the test sets that cannot be read
    plan: ImagePlan  # transform of the images
    options: LoadingOptions

    def measure(self, predict: Predictor, descriptions: Sequence[Scores]) -> list[Scores]:
        """Return the scores of each variant of the weights that ``predict`` returns.

        Test sets with an unreadable folder or image have no scores. Raises UnreadableError if no
        test set has scores.

        Args:
            predict: returns the logits of a batch for each variant.
            descriptions: the descriptions of the variants, without scores.
        """
        problems = get_problems(self.copies)
        unread = [*self.unread]
        sets_of_variants: list[dict[str, SetScores]] = [{} for _ in descriptions]
        for test_set in self.suite.sets:
            copy = self.copies[test_set.name]
            if not copy.samples:
                continue
            try:
                scores_of_variants = self._measure_set(test_set, copy, predict, len(descriptions))
            except CarftError as error:  # the other sets can still be measured
                problems.setdefault(test_set.name, []).append(str(error))
                unread.append(test_set.name)
                continue
            for sets, scores in zip(sets_of_variants, scores_of_variants):
                sets[test_set.name] = scores

        if not sets_of_variants[0]:
            raise _make_unreadable_error(self.suite, problems)
        return [
            dataclasses.replace(
                description,
                suite=self.suite.name,
                transform="test",
                sets=sets,
                means=self.suite.means(
                    {name: scores.accuracy for name, scores in sets.items() if scores.is_complete}
                ),
                problems=problems,
                unread=unread,
            )
            for description, sets in zip(descriptions, sets_of_variants)
        ]

    def _measure_set(
        self, test_set: TestSet, copy: TestSetCopy, predict: Predictor, variants: int
    ) -> list[SetScores]:
        """Return the scores on one test set for each variant, in terms of the set's classes."""

        def predict_groups(images: Tensor) -> Iterator[Tensor]:
            return (group_logits(logits, test_set.groups) for logits in predict(images))

        squares = Squares(copy.samples, self.plan, test_set.border, test_set.is_resized_by_pillow)
        split = Split(
            name=test_set.name,
            environment=self.suite.name,
            is_target=test_set.is_shifted,
            items=squares,
            squares=squares,
        )
        measured = []
        for (rows,) in predict_rows([split], predict_groups, self.options, variants):
            scores = score_set(
                split, rows, test_set.classes, by_class=test_set.reports_mean_per_class
            )
            interval = wilson_interval(scores.correct, scores.images)
            measured.append(
                dataclasses.replace(scores, is_complete=not copy.problems, interval=interval)
            )
        return measured


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


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval (JASA 22, 1927) of the share ``correct / count``."""
    from scipy import stats  # takes a second to import

    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def measure_on_suite(
    name: str, run: Run, options: LoadingOptions, skipped: Collection[str] = ()
) -> Scores:
    """Measure a run on the suite called ``name``; raises as `make_suite_test` does."""
    test = make_suite_test(name, run, options, skipped)
    (scores,) = test.measure(make_predictor(run, options.device), [describe_run(run)])
    return scores


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


def append_record(weights_file: Path, scores: Scores) -> None:
    """Add a line to suites.jsonl in the folder of the weights, if it is a job's folder.

    Scores with unreadable images are not recorded, since an earlier record can be complete.
    """
    if not (weights_file.parent / RECORDS).exists() or scores.unread:
        return
    sets = {
        name: {
            "n": part.images,
            "right": part.correct,
            "accuracy": part.accuracy,
            "interval": part.interval,
            "ece": part.ece,
            "complete": part.is_complete,
            **({} if part.mean_per_class is None else {"mean_per_class": part.mean_per_class}),
        }
        for name, part in scores.sets.items()
    }
    record = {
        "suite": scores.suite,
        "weights": weights_file.name,
        "weights_digest": weights.cached_sha256(weights_file),
        "step": scores.step,
        "wise_ft_alpha": scores.wise_ft_alpha,
        "algorithm": scores.algorithm,
        "sets": sets,
        **scores.means,
    }
    records.append(weights_file.parent, record)
