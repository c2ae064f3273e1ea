"""`carft evaluate`: a saved run measured on every split of its data set, as text or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from domainbed_carft import files
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as data
from domainbed_carft.text import shown, table

BINS = 15

# What a run is measured on besides: facts for the document, and a text.
Besides = Callable[[saved.TrainedRun, torch.device], tuple[dict[str, Any], str]]


def run(arguments: argparse.Namespace, besides: Besides) -> tuple[Path, dict[str, Any]]:
    """Evaluate and print, or write to ``--output``; the weights' file, and what is besides."""
    file = saved.weights_file(arguments.path, arguments.which)
    files.require_output(arguments.output, (file,))
    device = data.choose_device(arguments.device)
    opened = saved.open_run(file)
    splits = data.splits(opened, arguments.data_dir)
    tallies = [Tally(len(opened.classes)) for _ in splits]
    algorithm = opened.algorithm.to(device)
    with torch.no_grad():
        for number, x, y in data.batches(splits, arguments.batch_size, arguments.workers):
            tallies[number].add(algorithm.predict(x.to(device)), y)
    facts, more = besides(opened, device)
    document = {**describe(opened, splits, tallies), **facts}
    text = json.dumps(document, indent=1) + "\n" if arguments.json else as_text(document) + more
    with files.stream(arguments.output) as out:
        out.write(text)
    return file, facts


class Tally:
    """The predictions on one split of ``num_classes`` classes, counted batch by batch."""

    def __init__(self, num_classes: int) -> None:
        # Rows are true classes, columns predicted ones.
        self.confusion: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self._hits = np.zeros(BINS, np.int64)
        self._confidences = np.zeros(BINS)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch of class logits (N, K) and labels (N,)."""
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
    def accuracy(self) -> float | None:
        """The share of pictures whose predicted class is the true one; None without pictures."""
        return int(self.confusion.trace()) / self.count if self.count else None

    def by_class(self) -> list[dict[str, Any]]:
        """For each class its number of ``pictures`` and their ``accuracy``, the class's recall."""
        sizes = self.confusion.sum(axis=1).tolist()
        rights = self.confusion.diagonal().tolist()
        return [
            {"pictures": size, "accuracy": right / size if size else None}
            for size, right in zip(sizes, rights)
        ]

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


def describe(
    opened: saved.TrainedRun, splits: Sequence[data.Split], tallies: Sequence[Tally]
) -> dict[str, Any]:
    """All results, for JSON; accuracies and errors are shares of 1."""
    return {
        "run": str(opened.path),
        "algorithm": opened.args["algorithm"],
        "dataset": opened.args["dataset"],
        "step": opened.step,
        "wise_ft_alpha": opened.alpha,
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
                "by_class": found.by_class(),
                "confusion": found.confusion.tolist(),
            }
            for split, found in zip(splits, tallies)
        ],
    }


def as_text(document: Mapping[str, Any]) -> str:
    """Tables for people, without terminal escapes."""
    step = "the last step" if document["step"] is None else f"step {document['step']}"
    alpha = document["wise_ft_alpha"]
    mixed = "" if alpha is None else f", WiSE-FT alpha {alpha:g}"
    splits, classes = document["splits"], document["classes"]
    of_splits = [
        [
            split["name"],
            split["environment"] + " (test)" * split["is_target"],
            str(split["pictures"]),
            *(percent(split[share]) for share in ("accuracy", "ece")),
        ]
        for split in splits
    ]
    of_classes = [
        [name, *(percent(split["by_class"][label]["accuracy"]) for split in splits)]
        for label, name in enumerate(classes)
    ]
    return "\n".join(
        [
            shown(f"{document['algorithm']} on {document['dataset']}, weights of {step}{mixed}"),
            shown(document["run"]),
            "",
            table(["split", "environment", "pictures", "accuracy (%)", "ECE (%)"], of_splits),
            "",
            f"ECE: expected calibration error over {BINS} equal-width bins of the top "
            "probability (Guo et al. 2017).",
            "",
            "Accuracy (%) by class (confusion matrices: --json)",
            table(["class", *(split["name"] for split in splits)], of_classes),
            "",
        ]
    )


def percent(share: float | None) -> str:
    """A share of 1 as a number of percent; a dash for none."""
    return "-" if share is None else f"{100 * share:.1f}"
