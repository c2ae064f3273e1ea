"""Soups: means of the weights of several runs, measured and written.

The formula is in `merge_weights`. The greedy soup takes runs from the best on and keeps one if
the mean with it is strictly better, by the mean accuracy on the out-splits of the training
environments alone. Nothing depends on the order in which the runs of a soup are given: all are
judged on the same images, through the test transform, and added in the order of their files'
digests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.paths import AnyPath, as_list, as_text
from domainbed_carft.runs import BATCH_SIZE, saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    SplitAccuracies,
    check_loading,
    choose_device,
    make_predictor,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, check_output_folder, load_run, save_weights
from domainbed_carft.runs.soup_members import (
    Member,
    make_members,
    mean_weights,
    require_alike,
    shared_content,
)
from domainbed_carft.runs.splits import Split
from domainbed_carft.runs.suites import SuiteScores, SuiteTest, make_suite_test, measure_variants

SOUP_TABLE = "soup.json"
SOUP_FILES = {"uniform": "model_soup_uniform.pkl", "greedy": "model_soup_greedy.pkl"}
# Of a soup while its accuracies are measured.
_UNMEASURED: Mapping[str, Any] = {
    "kind": "uniform",
    "members": [],
    "chosen_by": "",
    "in_domain": None,
    "out_of_domain": None,
}

# Kind of a soup -> how its runs and their shares were chosen.
CHOSEN_BY = {
    "uniform": "all of the runs that were given",
    "greedy": "from the best run on, each that strictly improves the mean accuracy on the "
    "out-splits of the training environments, through the test transform",
}


@dataclass(frozen=True)
class Soup:
    """Weights made of several runs' weights, and their accuracies as shares of 1.

    ``kind``: "uniform" or "greedy". ``members``: best in validation first. With a
    ``suite`` the ``accuracies`` are of the out-splits of the training environments alone.
    """

    kind: str
    members: Sequence[Member]
    accuracies: SplitAccuracies
    suite: SuiteScores | None

    def as_dict(self) -> dict[str, Any]:
        """The soup, for JSON."""
        return {
            "soup": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "runs": [str(member.run.path) for member in self.members],
            **asdict(self.accuracies),
            **(self.suite.as_dict() if self.suite else {}),
        }

    def description(self) -> dict[str, Any]:
        """What the weights file says of itself; a member's ``weight`` is its share of the mean."""
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
            **{name: self.arguments.get(name) for name in ("dataset", "test_envs", "trial_seed")},
            "transform": self.transform,
            "runs": [
                {**member.as_dict(), "validation": member.validation}
                for member in self.uniform.members
            ],
            "soups": [self.uniform.as_dict(), self.greedy.as_dict()],
        }


def soup(
    runs: AnyRun | Iterable[AnyRun],
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    output: AnyPath | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Soups:
    """The means of several runs' weights: of all (uniform), and of those that help (greedy).

    ``output``: a folder for the results and the weights; by default nothing is written. With a
    ``suite``, of the splits only the out-splits of the training environments are read. The others
    as in `evaluate`.

    Raises CarftError unless there are two runs or more that share the initial CLIP, the prompts,
    and the division of the data; if a file is in ``output`` already; and as `evaluate`.

    >>> soups = soup([job, second_job], workers=0)
    >>> [len(soups.uniform.members), soups.greedy.kind]
    [2, 'greedy']
    >>> soups.greedy.accuracies.in_domain >= soups.uniform.members[0].validation
    True
    """
    check_loading(suite, batch_size, workers)
    loaded, chosen_device = _loaded(runs, device)
    require_alike(loaded)
    folder = check_output_folder(output, [SOUP_TABLE, *SOUP_FILES.values()])
    options = LoadingOptions(chosen_device, batch_size, workers, as_text(data_dir))
    measurement = _SoupMeasurement.of(make_members(loaded), options, suite)

    members = [
        replace(member, validation=measurement.validation_accuracy([member]))
        for member in measurement.members
    ]
    best_first = sorted(members, key=lambda member: -member.validation)
    chosen = choose_greedily(best_first, measurement.validation_accuracy)
    uniform = Soup("uniform", best_first, *measurement.evaluate(mean_weights(best_first)))
    if len(chosen) == len(best_first):  # then they are the same weights
        greedy = replace(uniform, kind="greedy")
    else:
        greedy = Soup("greedy", chosen, *measurement.evaluate(mean_weights(chosen)))
    run = measurement.run
    soups = Soups(run.args, splitting.transform_name(run), uniform, greedy)

    if folder:
        files.save_text(folder / SOUP_TABLE, json.dumps(soups.as_dict(), indent=1) + "\n")
        for one_soup in (uniform, greedy):
            weights = mean_weights(one_soup.members)
            content = measurement.make_content(one_soup, weights)
            save_weights(folder / SOUP_FILES[one_soup.kind], content)
    return soups


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


def _loaded(runs: AnyRun | Iterable[AnyRun], device: str | None) -> tuple[list[Run], torch.device]:
    """The runs, those that are paths loaded on the CPU, and where to measure.

    That is ``device``, else where the first run is that was loaded before, else the GPU if there is
    one.
    """
    given = as_list(runs)
    loaded = [run if isinstance(run, Run) else load_run(run, device="cpu") for run in given]
    is_loaded = bool(given) and isinstance(given[0], Run)
    return loaded, loaded[0].device if is_loaded and device is None else choose_device(device)


@dataclass(frozen=True)
class _SoupMeasurement:
    """Measures weights that were made of several runs by one ``run``, whose weights are exchanged.

    ``content``: what the files of such weights have in common. ``validation_splits``: those of
    ``splits`` that choose. ``test``: the suite, if there is one.
    """

    members: Sequence[Member]
    run: Run
    content: Mapping[str, Any]
    options: LoadingOptions
    splits: Sequence[Split]
    validation_splits: Sequence[Split]
    test: SuiteTest | None

    @classmethod
    def of(
        cls, members: Sequence[Member], options: LoadingOptions, suite: str | None
    ) -> _SoupMeasurement:
        """Find the images; raises CarftError if there are none to choose by."""
        content = shared_content(members, options.data_dir)
        described = {**content, "soup": _UNMEASURED, "model_dict": mean_weights(members)}
        run = saved.build_run(described, members[0].run.path)

        test = make_suite_test(suite, run, options) if suite else None
        splits = splitting.read_splits(run, options.data_dir)
        validation_splits = [
            split for split in splits if not split.is_target and split.name.endswith("_out")
        ]
        if not any(map(len, validation_splits)):
            raise CarftError(f"{run.path} has no out-split of a training environment to choose by")
        return cls(members, run, content, options, splits, validation_splits, test)

    def validation_accuracy(self, members: Sequence[Member]) -> float:
        """The mean accuracy of the members' mean on the validation splits, as a share of 1."""
        self.run.algorithm.load_state_dict(mean_weights(members))
        predict = make_predictor(self.run, self.options.device)
        ((accuracies, _),) = measure_variants(predict, self.validation_splits, None, self.options)
        assert accuracies.in_domain is not None  # they have images
        return accuracies.in_domain

    def evaluate(self, weights: Mapping[str, Tensor]) -> tuple[SplitAccuracies, SuiteScores | None]:
        """The accuracies of a state dict on all splits, or on a suite and the validation splits."""
        self.run.algorithm.load_state_dict(weights)
        predict = make_predictor(self.run, self.options.device)
        # The in-splits take far longer than the suite.
        splits = self.validation_splits if self.test else self.splits
        (measured,) = measure_variants(predict, splits, self.test, self.options)
        return measured

    def make_content(self, one_soup: Soup, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The weights file of a soup: a file like model.pkl."""
        return {**self.content, "soup": one_soup.description(), "model_dict": weights}
