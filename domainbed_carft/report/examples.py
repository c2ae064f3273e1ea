"""Example images of the target that one algorithm predicts correctly and another one does not.

The predictions are read from the rows saved by ``carft evaluate``, so no weights are needed. The
examples are not hand-picked: they are the first such images in the order of the split.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domainbed_carft.data import benchmarks, emoji, image_files
from domainbed_carft.data.listing import list_environments
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import seed_hash
from domainbed_carft.results import evaluations
from domainbed_carft.results.evaluations import ImageRows, is_correct
from domainbed_carft.results.selection import SelectedRun

MAX_IMAGE_SIDE = 144  # px of an image on the page


class Answer(NamedTuple):
    """The class that an algorithm predicts for an image."""

    algorithm: str
    predicted: str
    probability: float  # of the predicted class


class Example(NamedTuple):
    """An image with its class and the predictions of both algorithms."""

    uri: str  # the image as a data URI
    number: int  # index in the split
    truth: str  # true class
    answers: Sequence[Answer]


@dataclass(frozen=True)
class TargetExamples:
    """The examples of a target, or the reason why several targets have no examples."""

    environment: str  # the target, or the targets separated by commas
    text: str  # numbers of images that only one algorithm predicts correctly, or the reason
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)  # title -> examples


def find_examples(
    environments: Sequence[str],
    selected: Sequence[SelectedRun],
    pair: Sequence[str],
    count: int,
    data_dir: str | None,
) -> list[TargetExamples]:
    """Find the examples of each target; targets without examples follow, grouped by the reason.

    Args:
        environments: labels of the dataset's environments.
        selected: selected runs on the dataset.
        pair: the two algorithms to compare.
        count: maximum number of examples for each winner.
        data_dir: folder of the data, or None for the folder recorded in the jobs.
    """
    targets = []
    labels_by_reason: dict[str, list[str]] = {}
    for target, label in enumerate(environments):
        runs = [candidate for candidate in selected if candidate.target == target]
        try:
            targets.append(
                _target_examples(label, _find_evaluated_pair(runs, pair), count, data_dir)
            )
        except CarftError as error:
            labels_by_reason.setdefault(str(error), []).append(label)
    return targets + [
        TargetExamples(", ".join(labels), reason) for reason, labels in labels_by_reason.items()
    ]


def _find_evaluated_pair(selected: Sequence[SelectedRun], pair: Sequence[str]) -> list[SelectedRun]:
    """Return the runs of both algorithms in the first trial whose predictions were saved."""
    evaluated = {
        (run.trial, run.row): run
        for run in selected
        if evaluations.rows_path(Path(run.run.folder), int(run.outcome.step)).exists()
    }
    for trial in sorted({run.trial for run in selected}):
        if all((trial, algorithm) in evaluated for algorithm in pair):
            return [evaluated[trial, algorithm] for algorithm in pair]
    raise CarftError(
        f"No trial has the predictions of both {' and '.join(pair)}; run carft evaluate on the "
        "sweep, then carft report again."
    )


def _target_examples(
    label: str, pair: Sequence[SelectedRun], count: int, data_dir: str | None
) -> TargetExamples:
    """Find the examples of one target."""
    (first_rows, classes), (second_rows, second_classes) = map(_load_rows, pair)
    images = _list_images(pair[0], data_dir)
    labels = [image_label for _, image_label in images]
    for rows in (first_rows, second_rows):
        if classes != second_classes or rows["label"].tolist() != labels:
            raise CarftError(
                f"the images of {label} have changed since carft evaluate predicted them; restore "
                "the data, or pass its folder as --data_dir"
            )

    rows_by_algorithm = {pair[0].row: first_rows, pair[1].row: second_rows}
    counts = []
    examples = {}
    for winner, loser in itertools.permutations(rows_by_algorithm):
        gained = is_correct(rows_by_algorithm[winner]) & ~is_correct(rows_by_algorithm[loser])
        indices = np.flatnonzero(gained).tolist()
        counts.append(f"{len(indices)} correct only with {winner}")
        title = f"{winner} right, {loser} wrong: {len(indices[:count])} of {len(indices)}"
        examples[title] = [
            Example(
                uri=_image_uri(images[index][0]),
                number=index,
                truth=classes[labels[index]],
                answers=[
                    Answer(name, classes[int(rows["predicted"][index])], float(rows["top"][index]))
                    for name, rows in rows_by_algorithm.items()
                ],
            )
            for index in indices[:count]
        ]

    text = f"Trial {pair[0].trial}, {len(labels)} images: {', '.join(counts)}."
    return TargetExamples(label, text, examples)


def _load_rows(selected: SelectedRun) -> tuple[ImageRows, list[str]]:
    """Load the saved predictions on a run's target, and the class names."""
    rows, facts = evaluations.load_rows(Path(selected.run.folder), int(selected.outcome.step))
    if not facts.matches(selected.run.job):
        raise CarftError("the saved evaluation is of another job; run carft evaluate on the sweep")
    number = [split.number for split in facts.splits].index(selected.target)
    begin = sum(split.images for split in facts.splits[:number])
    return rows[begin : begin + facts.splits[number].images], facts.classes


def _list_images(selected: SelectedRun, data_dir: str | None) -> list[tuple[str, int]]:
    """Return paths and labels of the target's in-split, in the order used in training.

    Raises CarftError if the dataset's folder cannot be listed.
    """
    args = selected.run.job.args
    environments = list(_list_dataset(args, data_dir).values())
    images = [
        (path, label)
        for classes in environments[selected.target : selected.target + 1]
        for label, paths in enumerate(classes.values())
        for path in paths
    ]
    # Like upstream: shuffle once to take out the out-split, and again to take out the uda-split.
    seed = seed_hash(args["trial_seed"], selected.target)
    for fraction in ("holdout_fraction", "uda_holdout_fraction"):
        np.random.RandomState(seed).shuffle(images)
        images = images[int(len(images) * args.get(fraction, 0)) :]
    return images


def _list_dataset(args: Mapping[str, Any], data_dir: str | None) -> dict[str, dict[str, list[str]]]:
    """Return environment -> class -> paths of a job's dataset, in ``data_dir`` if it is given."""
    name = args["dataset"]
    if name not in benchmarks.BENCHMARKS:
        return list_environments(Path(data_dir or name)).paths()
    folder = benchmarks.get(name).folder
    if not folder:
        return list_environments(emoji.environment_folder(name)).paths()
    return list_environments(Path(data_dir or args.get("data_dir") or "", folder)).paths()


def _image_uri(path: str) -> str:
    """Return a thumbnail as a data URI."""
    image = image_files.load_image(path)
    image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
