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
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.measuring import LoadingOptions, SplitAccuracies
from domainbed_carft.runs.soup_measurement import SoupMeasurement
from domainbed_carft.runs.soup_members import Member, mean_weights, members_of, require_alike
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

    members = members_of(runs)
    measurement = SoupMeasurement.of(members, options, suite)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    members = [
        replace(member, validation=measurement.validation_accuracy([member])) for member in members
    ]
    best_first = sorted(members, key=lambda member: -member.validation)
    chosen = choose_greedily(best_first, measurement.validation_accuracy)
    soups = Soups(
        arguments=measurement.run.args,
        transform=splitting.transform_name(measurement.run),
        uniform=_evaluated("uniform", best_first, measurement),
        greedy=_evaluated("greedy", chosen, measurement),
    )
    if folder:
        _save(soups, measurement.content, folder)
    return soups


def _evaluated(kind: str, members: Sequence[Member], measurement: SoupMeasurement) -> Soup:
    """The mean of the members, with its accuracies."""
    accuracies, suite_scores = measurement.evaluate(mean_weights(members))
    return Soup(kind, members, accuracies, suite_scores)


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
