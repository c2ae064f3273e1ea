"""Soups: evaluate and save the mean of the weights of several runs.

The greedy soup tries the runs from best to worst and keeps a run if the mean accuracy on the
out-splits of the training environments strictly improves. The result does not depend on the order
in which the runs are passed, because all runs are evaluated on the same images, through the test
transform, and summed in the order of their files' digests.
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
    require_compatible,
    shared_content,
)
from domainbed_carft.runs.splits import Split
from domainbed_carft.runs.suites import SuiteScores, SuiteTest, make_suite_test, measure_variants

SOUP_TABLE = "soup.json"
SOUP_FILES = {"uniform": "model_soup_uniform.pkl", "greedy": "model_soup_greedy.pkl"}
# Description of a soup before it is evaluated.
_UNMEASURED: Mapping[str, Any] = {
    "kind": "uniform",
    "members": [],
    "chosen_by": "",
    "in_domain": None,
    "out_of_domain": None,
}

# How the members of each kind of soup are chosen.
CHOSEN_BY = {
    "uniform": "all given runs",
    "greedy": "from best to worst, each run that strictly improves the mean accuracy on the "
    "out-splits of the training environments, through the test transform",
}


@dataclass(frozen=True)
class Soup:
    """The mean of the weights of several runs, with its accuracies.

    Attributes:
        kind: "uniform" or "greedy".
        members: the runs, by decreasing validation accuracy.
        accuracies: accuracies on the splits as shares of 1; if there is a suite, only on the
            out-splits of the training environments.
        suite: scores on the suite, or None.
    """

    kind: str
    members: Sequence[Member]
    accuracies: SplitAccuracies
    suite: SuiteScores | None

    def as_dict(self) -> dict[str, Any]:
        """Return the soup for JSON."""
        return {
            "soup": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "runs": [str(member.run.path) for member in self.members],
            **asdict(self.accuracies),
            **(self.suite.as_dict() if self.suite else {}),
        }

    def describe(self) -> dict[str, Any]:
        """Return the description in the weights file."""
        weight = 1 / len(self.members)
        return {
            "kind": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "in_domain": self.accuracies.in_domain,
            "out_of_domain": self.accuracies.out_of_domain,
            "members": [member.describe(weight) for member in self.members],
        }


@dataclass(frozen=True)
class Soups:
    """The uniform and the greedy soup of the same runs.

    Attributes:
        arguments: training arguments that all runs share, by name.
        transform: transform of images of training environments, "as in training" or "test".
        uniform: mean of all runs.
        greedy: mean of the runs that improve the validation accuracy.
    """

    arguments: Mapping[str, Any]
    transform: str
    uniform: Soup
    greedy: Soup

    @property
    def has_unread_sets(self) -> bool:
        """True if a test set of the suite was found but could not be read."""
        return any(soup.suite and soup.suite.unread for soup in (self.uniform, self.greedy))

    def as_dict(self) -> dict[str, Any]:
        """Return the content of soup.json."""
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
    """Average the weights of several runs: all of them (uniform), and the best ones (greedy).

    Model soups, Wortsman et al., arXiv 2203.05482.

    Args:
        runs: at least two runs; each is a `Run`, a job's folder, or a weights file.
        suite: name of a suite of test sets to evaluate on; of the splits, only the out-splits of
            the training environments are then read.
        data_dir: the folder that contains the dataset's folder or, for your own data, the data
            folder itself. Default: the recorded one.
        device: such as "cpu" or "cuda:1". Default: the device of the first run if it is a `Run`,
            otherwise the GPU if there is one.
        output: a folder for soup.json and the weights. Default: nothing is written.
        batch_size: images per batch.
        workers: number of processes that load images. Default: one per core if there are many
            images.

    Returns:
        Both soups, with their members and accuracies.

    Raises:
        CarftError: if there are fewer than two runs, the runs do not share the initial CLIP, the
            prompts and the division of the data, a file exists in ``output``, or the data is
            missing or differs from the runs'.

    Examples:
        >>> soups = soup([job, second_job], workers=0)
        >>> [len(soups.uniform.members), soups.greedy.kind]
        [2, 'greedy']
        >>> soups.greedy.accuracies.in_domain >= soups.uniform.members[0].validation
        True
    """
    check_loading(suite, batch_size, workers)
    loaded_runs, chosen_device = _load_runs(runs, device)
    require_compatible(loaded_runs)
    folder = check_output_folder(output, [SOUP_TABLE, *SOUP_FILES.values()])
    options = LoadingOptions(chosen_device, batch_size, workers, as_text(data_dir))
    measurement = _SoupMeasurement.prepare(make_members(loaded_runs), options, suite)

    members = [
        replace(member, validation=measurement.validation_accuracy([member]))
        for member in measurement.members
    ]
    best_first = sorted(members, key=lambda member: -member.validation)
    chosen = choose_greedily(best_first, measurement.validation_accuracy)
    uniform = Soup("uniform", best_first, *measurement.evaluate(mean_weights(best_first)))
    if len(chosen) == len(best_first):  # equal weights need no second evaluation
        greedy = replace(uniform, kind="greedy")
    else:
        greedy = Soup("greedy", chosen, *measurement.evaluate(mean_weights(chosen)))
    run = measurement.run
    soups = Soups(run.args, splitting.get_transform_name(run), uniform, greedy)

    if folder:
        files.save_text(folder / SOUP_TABLE, json.dumps(soups.as_dict(), indent=1) + "\n")
        for measured_soup in (uniform, greedy):
            weights = mean_weights(measured_soup.members)
            content = measurement.make_content(measured_soup, weights)
            save_weights(folder / SOUP_FILES[measured_soup.kind], content)
    return soups


def choose_greedily(
    best_first: Sequence[Member], validation_accuracy: Callable[[Sequence[Member]], float]
) -> list[Member]:
    """Return the best run and each following run that strictly improves the mean's accuracy."""
    chosen = [best_first[0]]
    best_accuracy = chosen[0].validation

    for member in best_first[1:]:
        accuracy = validation_accuracy([*chosen, member])
        if accuracy > best_accuracy:
            chosen.append(member)
            best_accuracy = accuracy
    return chosen


def _load_runs(
    runs: AnyRun | Iterable[AnyRun], device: str | None
) -> tuple[list[Run], torch.device]:
    """Load the runs that are paths on the CPU; return all runs and the device to evaluate on."""
    inputs = as_list(runs)
    loaded_runs = [run if isinstance(run, Run) else load_run(run, device="cpu") for run in inputs]
    if device is None and inputs and isinstance(inputs[0], Run):
        return loaded_runs, loaded_runs[0].device
    return loaded_runs, choose_device(device)


@dataclass(frozen=True)
class _SoupMeasurement:
    """Evaluates different means of the members' weights with one model."""

    members: Sequence[Member]
    run: Run  # its weights are replaced by each mean
    content: Mapping[str, Any]  # of the weights files, without description and weights
    options: LoadingOptions
    splits: Sequence[Split]
    validation_splits: Sequence[Split]  # out-splits of the training environments
    test: SuiteTest | None  # the suite, if there is one

    @classmethod
    def prepare(
        cls, members: Sequence[Member], options: LoadingOptions, suite: str | None
    ) -> _SoupMeasurement:
        """Find the images; raises CarftError if there are no images for validation."""
        content = shared_content(members, options.data_dir)
        described = {**content, "soup": _UNMEASURED, "model_dict": mean_weights(members)}
        run = saved.build_run(described, members[0].run.path)

        test = make_suite_test(suite, run, options) if suite else None
        splits = splitting.read_splits(run, options.data_dir)
        validation_splits = [
            split for split in splits if not split.is_target and split.name.endswith("_out")
        ]
        if not any(map(len, validation_splits)):
            raise CarftError(
                f"{run.path} has no validation images: expected an out-split of a training "
                "environment"
            )
        return cls(members, run, content, options, splits, validation_splits, test)

    def validation_accuracy(self, members: Sequence[Member]) -> float:
        """Return the mean accuracy on the validation splits, a share of 1, of the members' mean."""
        self.run.algorithm.load_state_dict(mean_weights(members))
        predict = make_predictor(self.run, self.options.device)
        ((accuracies, _),) = measure_variants(predict, self.validation_splits, None, self.options)
        assert accuracies.in_domain is not None  # `prepare` requires images
        return accuracies.in_domain

    def evaluate(self, weights: Mapping[str, Tensor]) -> tuple[SplitAccuracies, SuiteScores | None]:
        """Evaluate a state dict on all splits, or on a suite and the validation splits."""
        self.run.algorithm.load_state_dict(weights)
        predict = make_predictor(self.run, self.options.device)
        # With a suite, skip the in-splits, which take far longer.
        splits = self.validation_splits if self.test else self.splits
        (measured,) = measure_variants(predict, splits, self.test, self.options)
        return measured

    def make_content(self, measured_soup: Soup, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the content of a soup's weights file, in the format of model.pkl."""
        return {**self.content, "soup": measured_soup.describe(), "model_dict": weights}
