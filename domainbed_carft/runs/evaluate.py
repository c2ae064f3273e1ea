"""`carft evaluate`: a saved run on every split of its data set, for people or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from domainbed_carft import text as printable
from domainbed_carft.runs import output, passes, saved
from domainbed_carft.runs import splits as data
from domainbed_carft.runs.metrics import BINS, Tally
from domainbed_carft.text import table

# A confusion matrix of more classes is no longer read; its largest cells are.
MOST_COLUMNS = 30
LARGEST_CELLS = 20


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and print, or write to ``--output``."""
    output.require_file(arguments.output, (arguments.path, arguments.class_names))
    device = passes.choose_device(arguments.device)
    opened = saved.open_run(arguments.path, arguments.which, arguments.class_names)
    splits = data.splits(opened, arguments.data_dir)
    tallies = tally(opened, splits, device, arguments.batch_size, arguments.workers)
    document = describe(opened, splits, tallies)
    text = json.dumps(document, indent=1) + "\n" if arguments.json else as_text(document)
    output.write(text, arguments.output)


def tally(
    opened: saved.Run,
    splits: Sequence[data.Split],
    device: torch.device,
    batch_size: int,
    workers: int | None,
) -> list[Tally]:
    """Evaluate a run on each split; counts of each."""
    tallies = [Tally(len(opened.classes)) for _ in splits]
    algorithm = opened.algorithm.to(device)
    with torch.no_grad(), passes.memory_told(batch_size):
        for number, x, y in passes.batches(splits, batch_size, workers):
            count(algorithm.predict(x.to(device)), y, tallies[number])
    return tallies


def count(logits: torch.Tensor, labels: torch.Tensor, into: Tally) -> None:
    """Count a batch of class logits (N, K) and labels (N,)."""
    confidences = logits.double().softmax(dim=1).amax(dim=1)
    into.add(logits.argmax(dim=1).cpu().numpy(), confidences.cpu().numpy(), labels.numpy())


def describe(
    opened: saved.Run, splits: Sequence[data.Split], tallies: Sequence[Tally]
) -> dict[str, Any]:
    """All that was found, as JSON has it; accuracies and errors are shares of 1."""
    return {
        "run": str(opened.path),
        "algorithm": opened.args["algorithm"],
        "dataset": opened.args["dataset"],
        "step": opened.step,
        "wise_ft_alpha": opened.alpha,
        "targets": sorted({s.environment for s in splits if s.is_target}),
        "classes": opened.classes,
        "ece_bins": BINS,
        "notes": notes(opened),
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


def notes(opened: saved.Run) -> list[str]:
    """What a reader has to know to compare the accuracies with the run's records."""
    if not opened.hparams.get("data_augmentation", True):
        return []
    augmented = "Pictures of training environments are augmented, as DomainBed evaluates them"
    if data.same_pictures(opened):
        return [f"{augmented}: the very ones that the run's record of this step is of."]
    return [
        f"{augmented}, and drawn anew: the DomainBed that trained, or this one, does not say how "
        "it drew. Accuracies on them are near those of the run's records; those of test "
        "environments are equal."
    ]


def as_text(document: Mapping[str, Any]) -> str:
    """Tables for people."""
    lines = "\n".join(_lines(document)).split("\n")
    return "".join(printable.shown(line) + "\n" for line in lines)


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    step = "the last step" if document["step"] is None else f"step {document['step']}"
    alpha = document["wise_ft_alpha"]
    mixed = "" if alpha is None else f", WiSE-FT alpha {alpha:g}"
    yield f"{document['algorithm']} on {document['dataset']}, weights of {step}{mixed}"
    yield printable.shown(document["run"])
    yield ""
    splits = document["splits"]
    rows = [["split", "environment", "pictures", "accuracy (%)", "ECE (%)"]]
    for split in splits:
        environment = printable.shown(split["environment"]) + " (test)" * split["is_target"]
        figures = [_percent(split["accuracy"]), _percent(split["ece"])]
        rows.append([split["name"], environment, str(split["pictures"]), *figures])
    yield table(rows[0], rows[1:])
    yield ""
    yield (
        f"ECE: expected calibration error over {BINS} bins of equal width of the top probability "
        "(Guo et al. 2017)."
    )
    yield from document["notes"]
    yield ""
    yield "Accuracy (%) by class"
    head, *by_class = _by_class(document["classes"], splits)
    yield table(head, by_class)
    for split in _reported(splits):
        yield ""
        yield from _confusion(document["classes"], split)


def _by_class(classes: Sequence[str], splits: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["class", *(split["name"] for split in splits)]]
    for label, name in enumerate(classes):
        found = [_percent(split["by_class"][label]["accuracy"]) for split in splits]
        rows.append([name, *found])
    return rows


def _reported(splits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The splits whose accuracy DomainBed's tables report; without a target, all out-splits."""
    reported = [s for s in splits if s["is_target"] and s["name"].endswith("_in")]
    return reported or [s for s in splits if s["name"].endswith("_out")]


def _confusion(classes: Sequence[str], split: Mapping[str, Any]) -> Iterator[str]:
    title = f"Confusion matrix of {split['name']} ({split['environment']})"
    cells = split["confusion"]
    if len(classes) <= MOST_COLUMNS:
        yield f"{title}: a row a true class, a column a predicted one"
        rows = [[name, *map(str, row)] for name, row in zip(classes, cells)]
        yield table(["", *classes], rows)
        return
    wrong = [
        (count, classes[true], classes[predicted])
        for true, row in enumerate(cells)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    largest = sorted(wrong, key=lambda cell: -cell[0])[:LARGEST_CELLS]
    yield f"{title}: its {len(largest)} largest errors (all of it: --json)"
    rows = [[str(number), true, predicted] for number, true, predicted in largest]
    yield table(["pictures", "true", "predicted"], rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
