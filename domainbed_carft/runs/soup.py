"""Soups: the mean of the weights of several runs, of all of them or of those that help.

After Wortsman et al., "Model soups" (arXiv 2203.05482; mlfoundations/model-soups, main.py): the
greedy soup takes runs from the best on and keeps one if the mean with it is strictly better, by the
mean accuracy on the out-splits of the training environments alone.

Nothing depends on the order in which the runs are given: all are judged on the same pictures,
through the test transform, and added in the order of their files' digests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.measuring import (
    LoadingOptions,
    SplitAccuracies,
    count_predictions,
    run_predictor,
    split_accuracies,
)
from domainbed_carft.runs.saved_checks import UNKNOWN_SOUP
from domainbed_carft.runs.soup_members import (
    Member,
    mean_weights,
    members_of,
    require_alike,
    shared_content,
)
from domainbed_carft.runs.splits import Split
from domainbed_carft.runs.suite_evaluation import SuiteTest, suite_test
from domainbed_carft.runs.suite_scores import SuiteScores
from domainbed_carft.runs.wise_ft import require_new

TABLE = "soup.json"
FILES = {"uniform": "model_soup_uniform.pkl", "greedy": "model_soup_greedy.pkl"}
CHOSEN_BY = {
    "uniform": "all of the runs that were given",
    "greedy": "from the best run on, each that strictly improves the mean accuracy on the "
    "out-splits of the training environments, through the test transform",
}


@dataclass(frozen=True)
class Soup:
    """The mean of some runs, and its accuracies as shares of 1.

    ``kind``: "uniform" or "greedy". ``members``: best in validation first. ``suite``: the scores on
    a suite, if one was asked for; then ``accuracies`` has the out-splits alone.
    """

    kind: str
    members: Sequence[Member]
    accuracies: SplitAccuracies
    suite: SuiteScores | None = None

    def as_dict(self) -> dict[str, Any]:
        """The soup, for JSON."""
        document = {
            "soup": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "runs": [str(member.run.path) for member in self.members],
            **self.accuracies.as_dict(),
        }
        if self.suite:
            document.update(self.suite.as_dict())
        return document

    def description(self) -> dict[str, Any]:
        """What the soup's file says of it: how it was chosen, its accuracies, and its members."""
        weight = 1 / len(self.members)
        return {
            "kind": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "in_domain": self.accuracies.in_domain,
            "out_of_domain": self.accuracies.out_of_domain,
            "members": [member.description(weight) for member in self.members],
        }


@dataclass(frozen=True)
class Soups:
    """The uniform and the greedy soup of the same runs.

    ``arguments``: those that the runs share, by name. ``transform``: as of `splits.transform_name`.
    """

    arguments: Mapping[str, Any]
    transform: str
    uniform: Soup
    greedy: Soup

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set of the suite is there but could not be read."""
        return any(soup.suite and soup.suite.unread for soup in (self.uniform, self.greedy))

    def as_dict(self) -> dict[str, Any]:
        """What soup.json has."""
        return {
            "dataset": self.arguments.get("dataset"),
            "test_envs": self.arguments.get("test_envs"),
            "trial_seed": self.arguments.get("trial_seed"),
            "transform": self.transform,
            "runs": [
                {
                    "run": str(member.run.path),
                    "sha256": member.sha256,
                    "algorithm": member.run.args["algorithm"],
                    "validation": member.validation,
                }
                for member in self.uniform.members
            ],
            "soups": [self.uniform.as_dict(), self.greedy.as_dict()],
        }


def soup(
    runs: Sequence[saved.TrainedRun],
    options: LoadingOptions,
    *,
    suite: str | None = None,
    folder: Path | None = None,
) -> Soups:
    """Choose runs by validation, and evaluate the uniform and the greedy soup.

    ``suite``: evaluate on its test sets, too; then of the splits only the out-splits of training
    environments are read. ``folder``: where to write the results (TABLE) and the weights (FILES);
    None writes nothing.

    Raises CarftError, naming run and difference, unless the mean of the runs makes sense; if one of
    the files is there already; and as `splits.splits` and `suite_test`.
    """
    require_alike(runs)
    if folder:
        require_new(folder, [TABLE, *FILES.values()])

    # One run measures all means: its settings are those of a soup, its weights are exchanged.
    members = members_of(runs)
    content = shared_content(members, options.data_dir)
    first_soup = {**content, "soup": UNKNOWN_SOUP, "model_dict": mean_weights(members)}
    measuring_run = saved.run_of(first_soup, members[0].run.path)
    measurement = _Measurement.of(measuring_run, options, suite)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    members = [
        replace(member, validation=measurement.validation_accuracy([member])) for member in members
    ]
    best_first = sorted(members, key=lambda member: -member.validation)
    chosen = choose_greedily(best_first, measurement.validation_accuracy)
    soups = Soups(
        arguments=measuring_run.args,
        transform=splitting.transform_name(measuring_run),
        uniform=measurement.evaluate("uniform", best_first),
        greedy=measurement.evaluate("greedy", chosen),
    )
    if folder:
        _save(soups, content, folder)
    return soups


@dataclass(frozen=True)
class _Measurement:
    """Measures means of runs by one ``run``, whose weights are exchanged.

    ``validation_splits``: those of ``splits`` that choose. ``test``: the suite, if there is one.
    """

    run: saved.TrainedRun
    options: LoadingOptions
    splits: Sequence[Split]
    validation_splits: Sequence[Split]
    test: SuiteTest | None

    @classmethod
    def of(cls, run: saved.TrainedRun, options: LoadingOptions, suite: str | None) -> _Measurement:
        """Find the pictures; raises CarftError if there are none to choose by."""
        test = suite_test(suite, run, options) if suite else None
        splits = splitting.splits(run, options.data_dir)
        return cls(run, options, splits, _validation_splits(splits, run.path), test)

    def validation_accuracy(self, members: Sequence[Member]) -> float:
        """The mean accuracy of the members' mean on the validation splits."""
        accuracy = self._accuracies(members, self.validation_splits).in_domain
        assert accuracy is not None  # they have pictures
        return accuracy

    def evaluate(self, kind: str, members: Sequence[Member]) -> Soup:
        """The members' mean on the suite, or on all splits without one."""
        if not self.test:
            return Soup(kind, members, self._accuracies(members, self.splits))

        # The in-splits take far longer than the suite.
        accuracies = self._accuracies(members, self.validation_splits)
        (suite_scores,) = self.test.scores(run_predictor(self.run, self.options.device))
        return Soup(kind, members, accuracies, suite_scores)

    def _accuracies(self, members: Sequence[Member], splits: Sequence[Split]) -> SplitAccuracies:
        self.run.algorithm.load_state_dict(mean_weights(members))
        (counts,) = count_predictions(
            splits,
            run_predictor(self.run, self.options.device),
            self.options,
            num_classes=len(self.run.classes),
        )
        return split_accuracies(splits, counts)


def _validation_splits(splits: Sequence[Split], path: Path) -> list[Split]:
    """The out-splits of the training environments; CarftError if there is none."""
    validation_splits = [
        split for split in splits if not split.is_target and split.name.endswith("_out")
    ]
    if not any(map(len, validation_splits)):
        raise CarftError(f"{path} has no out-split of a training environment to choose by")
    return validation_splits


def choose_greedily(
    best_first: Sequence[Member], validation_accuracy: Callable[[Sequence[Member]], float]
) -> list[Member]:
    """The best run, and each after it with which the accuracy of the mean strictly rises."""
    chosen = [best_first[0]]
    best_accuracy = chosen[0].validation

    for member in best_first[1:]:
        accuracy = validation_accuracy([*chosen, member])
        if accuracy > best_accuracy:
            chosen.append(member)
            best_accuracy = accuracy
    return chosen


def _save(soups: Soups, shared: Mapping[str, Any], folder: Path) -> None:
    """Write the table, then both weights files; ``shared``: what these have in common."""
    files.save_text(folder / TABLE, json.dumps(soups.as_dict(), indent=1) + "\n")

    for one_soup in (soups.uniform, soups.greedy):
        weights = mean_weights(one_soup.members)
        content = {**shared, "soup": one_soup.description(), "model_dict": weights}
        files.save(folder / FILES[one_soup.kind], functools.partial(torch.save, content))
