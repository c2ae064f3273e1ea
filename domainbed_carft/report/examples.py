"""Images of the environment left out that one algorithm gains or loses against another.

They are found by the rows that ``carft evaluate`` saved, without weights. Nothing is hand-picked:
the first images in the order of the split are shown.
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
from domainbed_carft.results.evaluations import ImageRows
from domainbed_carft.results.selection import Selected

IMAGE_SIDE = 144  # px of an image on the page, at most


class Answer(NamedTuple):
    """The class that an algorithm predicts for an image, and its probability."""

    algorithm: str
    predicted: str
    probability: float


class Example(NamedTuple):
    """An image as a data URI, its number in the split, its true class, and both answers."""

    uri: str
    number: int
    truth: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class TargetExamples:
    """The examples of an environment left out, or of several that have none.

    ``text``: how many images each algorithm gets right, or why there are no examples.
    ``examples``: a title, such as who is right -> its examples.
    """

    environment: str
    text: str
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)


def find_examples(
    environments: Sequence[str],
    selected: Sequence[Selected],
    pair: Sequence[str],
    count: int,
    data_dir: str | None,
) -> list[TargetExamples]:
    """The examples of each of the ``environments``, then those without any, by the reason.

    ``selected``: the selected runs on their dataset; ``pair``: the algorithms to compare;
    ``count``: examples of each direction, at most.
    """
    targets = []
    environments_without: dict[str, list[str]] = {}
    for target, label in enumerate(environments):
        runs = [candidate for candidate in selected if candidate.target == target]
        try:
            targets.append(_target_examples(label, _evaluated_pair(runs, pair), count, data_dir))
        except CarftError as error:
            environments_without.setdefault(str(error), []).append(label)
    return targets + [
        TargetExamples(", ".join(labels), reason) for reason, labels in environments_without.items()
    ]


def _evaluated_pair(selected: Sequence[Selected], pair: Sequence[str]) -> list[Selected]:
    """What was selected for ``pair`` in the first trial in which both have their rows."""
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
    label: str, pair: Sequence[Selected], count: int, data_dir: str | None
) -> TargetExamples:
    """The examples of one environment."""
    (first, classes), (second, other_classes) = map(_rows, pair)
    images = _images(pair[0], data_dir)
    labels = [image_label for _, image_label in images]
    for rows in (first, second):
        if classes != other_classes or rows.label.tolist() != labels:
            raise CarftError(
                f"the images of {label} are not those that carft evaluate predicted; restore the "
                "data, or pass its folder as --data_dir"
            )

    rows_of = {pair[0].row: first, pair[1].row: second}
    counts = []
    examples = {}
    for winner, loser in itertools.permutations(rows_of):
        gained = rows_of[winner].is_correct & ~rows_of[loser].is_correct
        indices = np.flatnonzero(gained).tolist()
        counts.append(f"only {winner} gets {len(indices)} right")
        title = f"{winner} right, {loser} wrong: {len(indices[:count])} of {len(indices)}"
        examples[title] = [
            Example(
                uri=_image_uri(images[index][0]),
                number=index,
                truth=classes[labels[index]],
                answers=[
                    Answer(name, classes[int(rows.predicted[index])], float(rows.top[index]))
                    for name, rows in rows_of.items()
                ],
            )
            for index in indices[:count]
        ]

    text = f"Trial {pair[0].trial}, {len(labels)} images: {', '.join(counts)}."
    return TargetExamples(label, text, examples)


def _rows(selected: Selected) -> tuple[ImageRows, list[str]]:
    """The rows of a run's target, and the names of the classes."""
    rows, facts = evaluations.load_rows(Path(selected.run.folder), int(selected.outcome.step))
    if not facts.is_of(selected.run.job):
        raise CarftError("the evaluation is of another job; run carft evaluate on the sweep")
    number = [split.number for split in facts.splits].index(selected.target)
    begin = sum(split.images for split in facts.splits[:number])
    return rows.raw.part(begin, begin + facts.splits[number].images), facts.classes


def _images(selected: Selected, data_dir: str | None) -> list[tuple[str, int]]:
    """The paths and labels of the target's in-split, divided as in training.

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
    # Upstream's: shuffled once for the out-split, and again for the uda-split.
    seed = seed_hash(args["trial_seed"], selected.target)
    for fraction in ("holdout_fraction", "uda_holdout_fraction"):
        np.random.RandomState(seed).shuffle(images)
        images = images[int(len(images) * args.get(fraction, 0)) :]
    return images


def _list_dataset(args: Mapping[str, Any], data_dir: str | None) -> dict[str, dict[str, list[str]]]:
    """Environment -> class -> paths of a job's dataset, or of that in ``data_dir``."""
    name = args["dataset"]
    if name not in benchmarks.BENCHMARKS:
        return list_environments(Path(data_dir or name)).paths()
    folder = benchmarks.get(name).folder
    if not folder:
        return list_environments(emoji.environment_folder(name)).paths()
    return list_environments(Path(data_dir or args.get("data_dir") or "", folder)).paths()


def _image_uri(path: str) -> str:
    """A small copy of an image, as a data URI."""
    image = image_files.read_image(image_files.open_image, path)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
