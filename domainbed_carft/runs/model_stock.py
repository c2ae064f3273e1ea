"""Model Stock: a point between the original CLIP and the mean of a few runs, tensor by tensor.

Jang et al., "Model Stock: All we need is just a few fine-tuned models", arXiv 2403.19522, sections
3 and 4. Fine-tuned weights lie about a centre; the point nearest to it on the plane of the runs and
the original follows from the angle between the runs alone, so no picture chooses anything.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.interpolation import original_weights
from domainbed_carft.runs.measuring import LoadingOptions, SplitAccuracies
from domainbed_carft.runs.soup_measurement import SoupMeasurement
from domainbed_carft.runs.soup_members import Member, mean_weights, members_of, require_alike
from domainbed_carft.runs.suite_scores import SuiteScores
from domainbed_carft.runs.wise_ft import require_new

TABLE = "model_stock.json"
FILE = "model_stock.pkl"
KIND = "model-stock"
CHOSEN_BY = (
    "all of the runs that were given; each tensor at its ratio between the original CLIP and their "
    "mean, by the angle between the runs"
)


@dataclass(frozen=True)
class ModelStock:
    """Model Stock of some runs, and its accuracies as shares of 1.

    ``arguments``: those that the runs share, by name. ``transform``: as of
    `splits.transform_name`. ``ratios``: tensor that training has moved -> its share of the runs'
    mean, from 0 (the original CLIP) to 1. ``suite``: the scores on a suite, if one was asked for;
    then ``accuracies`` has the out-splits of the training environments alone.
    """

    arguments: Mapping[str, Any]
    transform: str
    members: Sequence[Member]
    ratios: Mapping[str, float]
    accuracies: SplitAccuracies
    suite: SuiteScores | None = None

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set of the suite is there but could not be read."""
        return bool(self.suite and self.suite.unread)

    def as_dict(self) -> dict[str, Any]:
        """What model_stock.json has."""
        document = {
            "dataset": self.arguments.get("dataset"),
            "test_envs": self.arguments.get("test_envs"),
            "trial_seed": self.arguments.get("trial_seed"),
            "transform": self.transform,
            "soup": KIND,
            "chosen_by": CHOSEN_BY,
            "runs": [
                {
                    "run": str(member.run.path),
                    "sha256": member.sha256,
                    "algorithm": member.run.args["algorithm"],
                }
                for member in self.members
            ],
            "ratios": dict(self.ratios),
            **self.accuracies.as_dict(),
        }
        if self.suite:
            document.update(self.suite.as_dict())
        return document

    def description(self) -> dict[str, Any]:
        """What the weights file says of itself; a member's ``weight`` is its share of the mean."""
        weight = 1 / len(self.members)
        return {
            "kind": KIND,
            "chosen_by": CHOSEN_BY,
            "in_domain": self.accuracies.in_domain,
            "out_of_domain": self.accuracies.out_of_domain,
            "members": [member.description(weight) for member in self.members],
        }


def model_stock(
    runs: Sequence[saved.TrainedRun],
    options: LoadingOptions,
    *,
    original: str | None = None,
    suite: str | None = None,
    folder: Path | None = None,
) -> ModelStock:
    """Combine two or more runs and their original CLIP by Model Stock, and evaluate the result.

    ``original``: the CLIP that the runs started from, as in `saved.original_clip`. ``suite``:
    evaluate on its test sets, too; then of the splits only the out-splits of training environments
    are read. ``folder``: where to write the results (TABLE) and the weights (FILE); None writes
    nothing.

    Raises CarftError, naming run and difference, unless the runs have a common start; if one of the
    files is there already; and as `saved.original_clip`, `splits.splits` and `suite_test`.
    """
    require_alike(runs)
    if folder:
        require_new(folder, [TABLE, FILE])

    members = members_of(runs)
    measurement = SoupMeasurement.of(members, options, suite)
    start = original_weights(measurement.run, original)
    weights, ratios = stock_weights([member.state for member in members], start)
    result_weights = {**mean_weights(members), **weights}

    accuracies, suite_scores = measurement.evaluate(result_weights)
    result = ModelStock(
        arguments=measurement.run.args,
        transform=splitting.transform_name(measurement.run),
        members=members,
        ratios=ratios,
        accuracies=accuracies,
        suite=suite_scores,
    )
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        files.save_text(folder / TABLE, json.dumps(result.as_dict(), indent=1) + "\n")
        content = {
            **measurement.content,
            "soup": result.description(),
            "model_dict": result_weights,
        }
        files.save(folder / FILE, functools.partial(torch.save, content))
    return result


def stock_weights(
    states: Sequence[Mapping[str, Tensor]], original: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors of ``original`` moved towards the mean of ``states``, and the ratios.

    A tensor becomes (1 - t) original + t mean, in float64, with t as `stock_ratio` gives it. A
    tensor that no run has moved stays as it is to the bit, and has no ratio.
    """
    weights = {}
    ratios = {}
    for name, start in original.items():
        displacements = [(state[name].double() - start.double()).flatten() for state in states]
        if not start.is_floating_point() or not any(map(torch.any, displacements)):
            weights[name] = start
            continue

        ratio = stock_ratio(displacements)
        mean = torch.stack(displacements).mean(dim=0).view_as(start)
        ratios[name] = ratio
        weights[name] = (start.double() + ratio * mean).to(start.dtype)
    return weights, ratios


def stock_ratio(displacements: Sequence[Tensor]) -> float:
    """N c / (1 + (N - 1) c) of N displacements, c their mean cosine over all pairs.

    A negative c counts as 0, as does the cosine with a run that has not moved the tensor.
    """
    cosines = [
        float(torch.nn.functional.cosine_similarity(first, second, dim=0))
        for first, second in itertools.combinations(displacements, 2)
    ]
    mean_cosine = max(0.0, sum(cosines) / len(cosines))
    count = len(displacements)
    return count * mean_cosine / (1 + (count - 1) * mean_cosine)
