"""The figures of an evaluated run: accuracy, calibration, flips and alignment of each split.

They are in a JSON file beside the rows of the pictures, so that tables need neither these nor the
weights.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft import files
from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.files import parsing
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.results import alignment, alignment_scores, picture_rows
from domainbed_carft.results.alignment import AlignmentFigures, measure_alignment
from domainbed_carft.results.calibration import ECE_BINS, Calibration, measure_calibration
from domainbed_carft.results.picture_rows import (
    EvaluatedSplit,
    EvaluationFacts,
    PictureRows,
    summary_path,
)

_MOST_PICTURES = 1 << 53  # that a float counts


@dataclass(frozen=True)
class Flips:
    """Numbers of pictures, by whether zero-shot CLIP and the run predict them correctly.

    ``gained``: only the run does. ``lost``: only zero-shot CLIP does.
    """

    gained: int
    lost: int
    both_right: int
    both_wrong: int


@dataclass(frozen=True)
class WorstClass:
    """The class with the lowest accuracy, a share of 1; of equal ones the first."""

    name: str
    label: int
    pictures: int
    accuracy: float


@dataclass(frozen=True)
class SplitFigures:
    """The figures of a run on one split; accuracies are shares of 1.

    ``calibration``: of the probabilities as they are; ``scaled``: of those at the fitted
    ``temperature``, None without. ``class_pictures``, ``class_correct``: numbers, in label order.
    """

    split: EvaluatedSplit
    accuracy: float
    mean_per_class: float
    worst_class: WorstClass
    zero_shot_accuracy: float
    flips: Flips
    calibration: Calibration
    scaled: Calibration | None
    temperature: float | None
    alignment: AlignmentFigures
    class_pictures: list[int]
    class_correct: list[int]

    @property
    def gained(self) -> float:
        """The share of the pictures that only the run predicts correctly."""
        return self.flips.gained / self.split.pictures

    @property
    def lost(self) -> float:
        """The share of the pictures that only zero-shot CLIP predicts correctly."""
        return self.flips.lost / self.split.pictures


@dataclass(frozen=True)
class RunFigures:
    """The figures of a run at one step, in the order of its splits, of which there is one."""

    facts: EvaluationFacts
    splits: list[SplitFigures]

    @property
    def threshold(self) -> float:
        """The alignment score that divides pictures in and out of pre-training."""
        return self.splits[0].alignment.threshold

    def of_environment(self, number: int) -> SplitFigures | None:
        """The figures of the environment with this number, if it was measured."""
        return next((part for part in self.splits if part.split.number == number), None)


def measure_run(
    rows: PictureRows, facts: EvaluationFacts, threshold: float = alignment_scores.THRESHOLD
) -> RunFigures:
    """The figures of all splits; ``threshold``: the alignment that divides in and out."""
    figures = []
    begin = 0
    for split in facts.splits:
        part = rows.part(begin, begin + split.pictures)
        begin += split.pictures
        if split.pictures:
            figures.append(_measure_split(part, split, facts, threshold))
    return RunFigures(facts, figures)


def _measure_split(
    rows: PictureRows, split: EvaluatedSplit, facts: EvaluationFacts, threshold: float
) -> SplitFigures:
    classes = facts.classes
    is_correct = rows.predicted == rows.label
    is_zero_shot_correct = rows.zero_shot == rows.label
    class_pictures = np.bincount(rows.label, minlength=len(classes))
    class_correct = np.bincount(rows.label[is_correct], minlength=len(classes))

    present = np.flatnonzero(class_pictures)
    accuracies = class_correct[present] / class_pictures[present]
    worst = int(present[accuracies.argmin()])
    return SplitFigures(
        split=split,
        accuracy=float(is_correct.mean()),
        mean_per_class=float(accuracies.mean()),
        worst_class=WorstClass(
            name=classes[worst],
            label=worst,
            pictures=int(class_pictures[worst]),
            accuracy=float(accuracies.min()),
        ),
        zero_shot_accuracy=float(is_zero_shot_correct.mean()),
        flips=Flips(
            gained=int((is_correct & ~is_zero_shot_correct).sum()),
            lost=int((~is_correct & is_zero_shot_correct).sum()),
            both_right=int((is_correct & is_zero_shot_correct).sum()),
            both_wrong=int((~is_correct & ~is_zero_shot_correct).sum()),
        ),
        calibration=measure_calibration(rows.raw, is_correct),
        scaled=measure_calibration(rows.scaled, is_correct) if rows.scaled else None,
        temperature=facts.temperature.value if facts.temperature else None,
        alignment=measure_alignment(rows.alignment, is_correct, threshold),
        class_pictures=class_pictures.tolist(),
        class_correct=class_correct.tolist(),
    )


def save_figures(folder: Path, figures: RunFigures) -> None:
    """Write the summary, whole or not at all. Raises CarftError if it cannot be written."""
    text = json.dumps(dataclasses.asdict(figures), indent=1, sort_keys=True)
    files.save_text(summary_path(folder, figures.facts.step), f"{text}\n")


def load_figures(folder: Path, step: int) -> RunFigures:
    """The figures in a summary; raises CarftError for one that is missing or damaged."""
    from pydantic import ValidationError

    path = summary_path(folder, step)
    try:
        content = parsing.parse_json(files.read_small(path))
        figures: RunFigures = _adapter().validate_python(content)
        json.dumps(dataclasses.asdict(figures), allow_nan=False)
        has_bins = bool(figures.splits) and all(map(_has_bins, figures.splits))
    except OSError as error:
        raise CarftError(f"{path} cannot be read: {error.strerror}") from error
    except (ValidationError, ValueError) as error:
        raise CarftError(
            f"{path} is damaged, or was not written by this carft; run carft evaluate on its sweep"
        ) from error

    if not has_bins:
        raise CarftError(f"{path} has other bins than this carft; run carft evaluate on its sweep")
    if not all(map(_has_counts, figures.splits)):
        raise CarftError(
            f"{path} has numbers of pictures that do not fit each other; run carft evaluate on its "
            "sweep"
        )
    picture_rows.parse_facts(dataclasses.asdict(figures.facts), path)
    return figures


def _has_bins(figures: SplitFigures) -> bool:
    """Whether a split's figures have the bins that this carft makes."""
    calibrations = [figures.calibration, *([figures.scaled] if figures.scaled else [])]
    reliability_columns = [
        column for measured in calibrations for column in dataclasses.astuple(measured.reliability)
    ]
    alignment_columns = [figures.alignment.bin_pictures, figures.alignment.bin_correct]
    return all(len(column) == ECE_BINS for column in reliability_columns) and all(
        len(column) == len(alignment.BIN_EDGES) + 1 for column in alignment_columns
    )


def _has_counts(figures: SplitFigures) -> bool:
    """Whether the pictures of the flips and of all bins are those of the split, at least one."""
    calibrations = [figures.calibration, *([figures.scaled] if figures.scaled else [])]
    pictures_and_correct = [
        *((part.reliability.pictures, part.reliability.correct) for part in calibrations),
        (figures.alignment.bin_pictures, figures.alignment.bin_correct),
    ]
    flips = list(dataclasses.astuple(figures.flips))
    totals = [sum(flips), *(sum(pictures) for pictures, _ in pictures_and_correct)]
    are_possible = [
        0 <= n_correct <= n_pictures
        for pictures, correct in pictures_and_correct
        for n_pictures, n_correct in zip(pictures, correct)
    ]
    is_counted = 0 < figures.split.pictures < _MOST_PICTURES and min(flips) >= 0
    return is_counted and all(are_possible) and {*totals} == {figures.split.pictures}


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(RunFigures)


def find_figures(folder: Path, step: float) -> RunFigures | Problem:
    """The figures of the run in a job's folder at a step, or why there are none."""
    path = summary_path(folder, int(step))
    if path.exists():
        try:
            return load_figures(folder, int(step))
        except CarftError as error:
            return error.problems[0]

    if not _may_have_weights(folder, int(step)):
        return Problem(message=f"weights of step {step:g} were not kept")
    return Problem(message="not evaluated", remedy="run carft evaluate on the sweep")


def _may_have_weights(folder: Path, step: int) -> bool:
    """Whether a file in the folder may have the weights of the step."""
    names = (*WEIGHTS.values(), f"model_step{step}.pkl")
    return any((folder / name).exists() for name in names)
