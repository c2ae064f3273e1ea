"""Saved weights measured on splits: accuracy, calibration and confusion, as text or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from domainbed_carft.data import benchmarks
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as data
from domainbed_carft.text import shown, table

BINS = 15

# Logits (N, K) of pictures (N, 3, R, R), once for each variant of the weights.
Predict = Callable[[Tensor], Iterable[Tensor]]


def predicting(run: saved.TrainedRun, device: torch.device) -> Predict:
    """What a run predicts with the weights that it has at the time."""
    algorithm = run.algorithm.to(device)
    return lambda x: [algorithm.predict(x)]


class Tally:
    """The predictions on one split of ``num_classes`` classes, counted batch by batch.

    ``groups``: for each class those of the model's that count as it, unless they are the same.
    """

    def __init__(self, num_classes: int, groups: Sequence[Sequence[int]] = ()) -> None:
        # Rows are true classes, columns predicted ones.
        self.confusion: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self._groups = groups
        self._hits = np.zeros(BINS, np.int64)
        self._confidences = np.zeros(BINS)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of the model's logits (N, K) and labels (N,)."""
        if self._groups:
            logits = scores(logits, self._groups)
        confidences = logits.double().softmax(dim=1).amax(dim=1).cpu().numpy()
        predicted, true = logits.argmax(dim=1).cpu().numpy(), labels.numpy()
        np.add.at(self.confusion, (true, predicted), 1)
        # Bin m holds (m / BINS, (m + 1) / BINS].
        bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
        np.add.at(self._hits, bins, predicted == true)
        np.add.at(self._confidences, bins, confidences)

    @property
    def count(self) -> int:
        """How many pictures there were."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """Of how many the predicted class is the true one."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float | None:
        """The share of these; None without pictures."""
        return self.right / self.count if self.count else None

    @property
    def by_class(self) -> list[dict[str, Any]]:
        """For each class its number of ``pictures`` and their ``accuracy``, the class's recall."""
        both = zip(self.confusion.sum(axis=1).tolist(), self.confusion.diagonal().tolist())
        return [{"pictures": n, "accuracy": right / n if n else None} for n, right in both]

    @property
    def mean_per_class(self) -> float:
        """The mean of the accuracies of the classes that have pictures."""
        sizes = self.confusion.sum(axis=1)
        return float((self.confusion.diagonal()[sizes > 0] / sizes[sizes > 0]).mean())

    @property
    def ece(self) -> float | None:
        """The expected calibration error over BINS bins of equal width; None without pictures.

        The sum over bins of the bin's share of the pictures times |accuracy - mean confidence|,
        where a picture's confidence is the probability of the predicted class: Guo et al., "On
        Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        gaps = np.abs(self._hits - self._confidences)  # each is |accuracy - confidence| times size
        return float(gaps.sum()) / self.count if self.count else None


def scores(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """(N, J): of each of J groups of classes the largest logit; ``logits``: (N, K).

    The one rule for every test set: WiSE-FT's, arXiv 2109.01903 (mlfoundations/wise-ft).
    """
    longest = max(map(len, groups))
    padded = [[*group, *[group[0]] * (longest - len(group))] for group in groups]
    return logits[:, torch.tensor(padded, device=logits.device)].amax(dim=2)


@torch.no_grad()
def tallied(
    splits: Sequence[data.Split], predict: Predict, how: argparse.Namespace, variants: int,
    num_classes: int, groups: Sequence[Sequence[int]] = (),
) -> list[list[Tally]]:  # fmt: skip
    """The predictions on each split, for each of the ``variants`` that ``predict`` gives.

    ``how``: device, batch_size, workers. Raises CarftError where a picture cannot be read.
    """
    found = [[Tally(num_classes, groups) for _ in splits] for _ in range(variants)]
    for number, x, y in data.batches(splits, how.batch_size, how.workers):
        for tallies, logits in zip(found, predict(x.to(how.device))):
            tallies[number].add(logits, y)
    return found


def measured(opened: saved.TrainedRun, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures on the splits of the run, for JSON; accuracies and errors are shares of 1."""
    splits = data.splits(opened, arguments.data_dir)
    predict = predicting(opened, arguments.device)
    (tallies,) = tallied(splits, predict, arguments, 1, len(opened.classes))
    return {
        "run": str(opened.path),
        "algorithm": opened.args["algorithm"],
        "title": opened.title,
        "soup": opened.soup,
        "dataset": opened.args["dataset"],
        "weights": opened.path.name,
        "step": data.step_of(opened, arguments.data_dir),
        "wise_ft_alpha": opened.alpha,
        "transform": data.transform_name(opened),
        "targets": sorted({s.environment for s in splits if s.is_target}),
        "classes": opened.classes,
        "ece_bins": BINS,
        "splits": [
            {
                "name": split.name,
                "environment": split.environment,
                "is_target": split.is_target,
                "pictures": found.count,
                "accuracy": found.accuracy,
                "ece": found.ece,
                "by_class": [
                    {"class": name, **row} for name, row in zip(opened.classes, found.by_class)
                ],
                "confusion": found.confusion.tolist(),
            }
            for split, found in zip(splits, tallies)
        ],
    }


def as_text(document: Mapping[str, Any]) -> str:
    """Tables for people, without terminal escapes."""
    step = "the last step" if document["step"] is None else f"step {document['step']}"
    weights = "" if document["soup"] else f", weights of {step}"
    alpha, splits = document["wise_ft_alpha"], document["splits"]
    mixed = "" if alpha is None else f", WiSE-FT alpha {alpha:g}"
    note = f"\n{data.PICTURES_OF_A_SOUP}" if document["soup"] else ""
    of_splits = []
    for one in splits:
        environment = one["environment"] + " (test)" * one["is_target"]
        shares = percent(one["accuracy"]), percent(one["ece"])
        of_splits.append([one["name"], environment, str(one["pictures"]), *shares])
    of_classes = [
        [name, *(percent(one["by_class"][label]["accuracy"]) for one in splits)]
        for label, name in enumerate(document["classes"])
    ]
    dataset = benchmarks.dataset_title(document["dataset"])
    return f"""\
{shown(f"{document['title']} on {dataset}{weights}{mixed}")}
{shown(document["run"])}{note}

{table(["split", "environment", "pictures", "accuracy (%)", "ECE (%)"], of_splits)}

ECE: expected calibration error over {BINS} equal-width bins of the top probability \
(Guo et al. 2017).

Accuracy (%) by class (confusion matrices: --json)
{table(["class", *(one["name"] for one in splits)], of_classes)}
"""


def percent(share: float | None) -> str:
    """A share of 1 as a number of percent; a dash for none."""
    return "-" if share is None else f"{100 * share:.1f}"
