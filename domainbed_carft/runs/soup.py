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

from domainbed_carft import files
from domainbed_carft.arguments import TEXT, require_kind
from domainbed_carft.errors import CarftError
from domainbed_carft.images.squares import ImageMemory
from domainbed_carft.machine.devices import choose_device
from domainbed_carft.paths import AnyPath, as_list, as_text
from domainbed_carft.runs import BATCH_SIZE, saved
from domainbed_carft.runs.predictions import LoadingOptions, check_loading, make_predictor
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, check_output_folder, load_run, save_weights
from domainbed_carft.runs.scores import Scores, describe_run, measure_splits
from domainbed_carft.runs.soup_members import (
    Member,
    make_members,
    mean_weights,
    require_compatible,
    shared_content,
)
from domainbed_carft.runs.splits import ImageSet, read_data
from domainbed_carft.runs.suites import SuiteTest, make_suite_test

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


def soup(
    runs: AnyRun | Iterable[AnyRun],
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    output: AnyPath | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> dict[str, Scores]:
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
        The scores of the "uniform" and the "greedy" soup. Each ``soup`` lists its members, by
        decreasing validation accuracy.

    Raises:
        CarftError: if there are fewer than two runs, the runs do not share the initial CLIP, the
            prompts and the division of the data, a file exists in ``output``, or the data is
            missing or differs from the runs'.

    Examples:
        >>> soups = soup([job, second_job], workers=0)
        >>> members = soups["uniform"].soup["members"]
        >>> len(members)
        2
        >>> soups["greedy"].in_domain >= members[0]["validation"]
        True
    """
    require_kind(TEXT, is_optional=True, suite=suite)
    check_loading(batch_size, workers)
    loaded_runs, chosen_device = _load_runs(runs, device)
    require_compatible(loaded_runs)
    folder = check_output_folder(output, [SOUP_TABLE, *SOUP_FILES.values()])
    # All candidates are evaluated on the same images.
    options = LoadingOptions(chosen_device, batch_size, workers, as_text(data_dir), ImageMemory())
    measurement = _SoupMeasurement.prepare(make_members(loaded_runs), options, suite)

    members = [
        replace(member, validation=measurement.measure_validation([member]))
        for member in measurement.members
    ]
    best_first = sorted(members, key=lambda member: -member.validation)
    chosen = choose_greedily(best_first, measurement.measure_validation)
    uniform = measurement.measure("uniform", best_first)
    if len(chosen) == len(best_first):  # equal weights need no second evaluation
        description = {**(uniform.soup or {}), **_describe_kind("greedy")}
        file = SOUP_FILES["greedy"]
        greedy = replace(uniform, run=file, weights=file, soup=description)
    else:
        greedy = measurement.measure("greedy", chosen)
    soups = {"uniform": uniform, "greedy": greedy}

    if folder:
        document = {kind: asdict(scores) for kind, scores in soups.items()}
        files.save_text(folder / SOUP_TABLE, json.dumps(document, indent=1) + "\n")
        for scores, averaged in ((uniform, best_first), (greedy, chosen)):
            content = {
                **measurement.content,
                "soup": scores.soup,
                "model_dict": mean_weights(averaged),
            }
            save_weights(folder / str(scores.weights), content)
    return soups


def _describe_kind(kind: str) -> dict[str, str]:
    return {"kind": kind, "chosen_by": CHOSEN_BY[kind]}


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
    splits: Sequence[ImageSet]
    validation_splits: Sequence[ImageSet]  # out-splits of the training environments
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
        splits = read_data(run, options.data_dir).splits
        validation_splits = [
            split for split in splits if not split.is_target and split.name.endswith("_out")
        ]
        if not any(map(len, validation_splits)):
            raise CarftError(
                f"{run.path} has no validation images: expected an out-split of a training "
                "environment"
            )
        return cls(members, run, content, options, splits, validation_splits, test)

    def measure_validation(self, members: Sequence[Member]) -> float:
        """Return the mean accuracy on the validation splits, a share of 1, of the members' mean."""
        scores = self._measure_splits(members, self.validation_splits)
        assert scores.in_domain is not None  # `prepare` requires images
        return scores.in_domain

    def measure(self, kind: str, members: Sequence[Member]) -> Scores:
        """Return the scores of the members' mean on all splits, or on the suite."""
        # With a suite, skip the in-splits, which take far longer.
        scores = self._measure_splits(members, self.validation_splits if self.test else self.splits)
        description = {
            **_describe_kind(kind),
            "in_domain": scores.in_domain,
            "out_of_domain": scores.out_of_domain,
            "members": [member.describe(1 / len(members)) for member in members],
        }
        if self.test:
            predict = make_predictor(self.run, self.options.device)
            (scores,) = self.test.measure(predict, [describe_run(self.run)])
        return replace(
            scores,
            run=SOUP_FILES[kind],
            weights=SOUP_FILES[kind],
            title=replace(self.run, soup=description).title,
            soup=description,
        )

    def _measure_splits(self, members: Sequence[Member], splits: Sequence[ImageSet]) -> Scores:
        self.run.algorithm.load_state_dict(mean_weights(members))
        predict = make_predictor(self.run, self.options.device)
        (scores,) = measure_splits(splits, predict, self.options, [describe_run(self.run)])
        return scores
