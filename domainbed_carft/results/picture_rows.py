"""What `carft evaluate OUT` measured of a run, picture by picture, in a file beside its records.

The file belongs to one run and one step: selection methods that choose the same step share it. It
may be a stranger's, so nothing in it is used before it is checked, and there is no path in it.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from domainbed_carft.errors import CarftError
from domainbed_carft.files import arrays
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.results.calibration import PredictedProbabilities

FORMAT = 1  # of rows and facts; another one is measured again

_LABEL = np.dtype("<u2")
_PROBABILITY = np.dtype("<f8")
_SCORE = np.dtype("<f4")

# The columns of the file, and those that only a run with a fitted temperature has.
_COLUMNS: dict[str, np.dtype[Any]] = {
    "label": _LABEL,
    "predicted": _LABEL,
    "zero_shot": _LABEL,
    "alignment": _SCORE,
    "top": _PROBABILITY,
    "log_true": _PROBABILITY,
    "sum_of_squares": _PROBABILITY,
}
_SCALED_COLUMNS: dict[str, np.dtype[Any]] = {
    "scaled_top": _PROBABILITY,
    "scaled_log_true": _PROBABILITY,
    "scaled_sum_of_squares": _PROBABILITY,
}

MOST_CLASSES = 1 << 16
_ROUNDING = 1e-6  # by which a cosine or a probability may exceed its bound


@dataclass(frozen=True)
class EvaluatedSplit:
    """A split that was measured: its environment, the number of that, its name in the records."""

    environment: str
    number: int
    name: str
    pictures: int


@dataclass(frozen=True)
class Temperature:
    """What the logits are divided by: fitted on ``pictures`` of the training environments.

    ``is_at_limit``: whether the best value lies outside the range that is searched.
    """

    value: float
    pictures: int
    is_at_limit: bool


@dataclass(frozen=True)
class EvaluationFacts:
    """What was measured, and of what: the facts that tell whether a file is still true.

    ``weights`` and ``data`` are SHA-256 of the file of weights and of the list of pictures; the
    digests of prompts and CLIP are those in the records. ``splits``: in the order of the rows.
    ``temperature``: None where no training environment has an out-split of its own.
    """

    format: int
    dataset: str
    algorithm: str
    test_envs: list[int]
    trial_seed: int
    hparams_seed: int
    step: int
    weights: str
    data: str
    prompts_digest: str
    clip_digest: str
    classes: list[str]
    contexts: list[str]
    pictures: int
    splits: list[EvaluatedSplit]
    temperature: Temperature | None

    def is_of(self, job: Job) -> bool:
        """Whether a job with these arguments was evaluated."""
        identity = {name: getattr(self, name) for name in IDENTITY}
        return job.key.test_envs == set(self.test_envs) and all(
            job.args[name] == value for name, value in identity.items()
        )


@dataclass(frozen=True)
class PictureRows:
    """A row for each picture of some splits, (N,) each, in the order of the splits.

    ``label``, ``predicted``, ``zero_shot``: the true class, and those that the run and the original
    CLIP predict. ``alignment``: see `alignment`. ``raw``, ``scaled``: probabilities at temperature
    1, and at the fitted one, None without.
    """

    label: npt.NDArray[np.uint16]
    predicted: npt.NDArray[np.uint16]
    zero_shot: npt.NDArray[np.uint16]
    alignment: npt.NDArray[np.float32]
    raw: PredictedProbabilities
    scaled: PredictedProbabilities | None

    def part(self, begin: int, end: int) -> PictureRows:
        """The rows of the pictures from ``begin`` to before ``end``."""
        rows = slice(begin, end)
        return PictureRows(
            label=self.label[rows],
            predicted=self.predicted[rows],
            zero_shot=self.zero_shot[rows],
            alignment=self.alignment[rows],
            raw=_part(self.raw, rows),
            scaled=_part(self.scaled, rows) if self.scaled else None,
        )


def _part(probabilities: PredictedProbabilities, rows: slice) -> PredictedProbabilities:
    return PredictedProbabilities(
        probabilities.top[rows], probabilities.log_true[rows], probabilities.sum_of_squares[rows]
    )


def rows_path(folder: Path, step: int) -> Path:
    """The file of the rows in a job's folder."""
    return folder / f"evaluation_step{step}.npz"


def summary_path(folder: Path, step: int) -> Path:
    """The file of the figures in a job's folder."""
    return folder / f"evaluation_step{step}.json"


def save_rows(folder: Path, rows: PictureRows, facts: EvaluationFacts) -> None:
    """Write the file, whole or not at all. Raises CarftError if it cannot be written."""
    columns: dict[str, npt.NDArray[Any]] = {
        "label": rows.label,
        "predicted": rows.predicted,
        "zero_shot": rows.zero_shot,
        "alignment": rows.alignment,
        "top": rows.raw.top,
        "log_true": rows.raw.log_true,
        "sum_of_squares": rows.raw.sum_of_squares,
    }
    if rows.scaled:
        columns["scaled_top"] = rows.scaled.top
        columns["scaled_log_true"] = rows.scaled.log_true
        columns["scaled_sum_of_squares"] = rows.scaled.sum_of_squares

    dtypes = {**_COLUMNS, **_SCALED_COLUMNS}
    typed = {name: column.astype(dtypes[name]) for name, column in columns.items()}
    arrays.save_arrays(rows_path(folder, facts.step), typed, dataclasses.asdict(facts))


def load_facts(folder: Path, step: int) -> EvaluationFacts:
    """The facts of the file; raises CarftError for one that is missing or damaged."""
    path = rows_path(folder, step)
    return parse_facts(arrays.load_facts(path), path)


def load_rows(folder: Path, step: int) -> tuple[PictureRows, EvaluationFacts]:
    """The rows and their facts; raises CarftError for a file that is missing or damaged."""
    path = rows_path(folder, step)
    facts = load_facts(folder, step)
    dtypes = dict(_COLUMNS)
    if facts.temperature:
        dtypes |= _SCALED_COLUMNS

    _, columns = arrays.load_arrays(path, dtypes, "pictures")
    scaled = None
    if facts.temperature:
        scaled = PredictedProbabilities(
            columns["scaled_top"], columns["scaled_log_true"], columns["scaled_sum_of_squares"]
        )
    rows = PictureRows(
        label=columns["label"],
        predicted=columns["predicted"],
        zero_shot=columns["zero_shot"],
        alignment=columns["alignment"],
        raw=PredictedProbabilities(columns["top"], columns["log_true"], columns["sum_of_squares"]),
        scaled=scaled,
    )
    _require_possible(rows, len(facts.classes), path)
    return rows, facts


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter  # takes half a second to import

    return TypeAdapter(EvaluationFacts)


def parse_facts(content: Any, path: Path) -> EvaluationFacts:
    """The facts that a file has; CarftError, with ``path``, unless they fit each other."""
    from pydantic import ValidationError

    try:
        facts: EvaluationFacts = _adapter().validate_python(content)
    except ValidationError as error:
        places = [".".join(map(str, details["loc"])) for details in error.errors()]
        raise CarftError(
            f"{path} is damaged, or was not written by this carft: it has no valid {places[0]}; "
            "run carft evaluate on its sweep"
        ) from error

    has_rows = facts.pictures == sum(split.pictures for split in facts.splits) > 0
    has_classes = 0 < len(facts.classes) <= MOST_CLASSES
    if facts.format != FORMAT or not has_rows or not has_classes:
        raise CarftError(
            f"{path} has format {facts.format}, {facts.pictures} pictures and "
            f"{len(facts.classes)} classes, expected format {FORMAT} and as many pictures as its "
            "splits have together; run carft evaluate on its sweep"
        )
    return facts


def _require_possible(rows: PictureRows, num_classes: int, path: Path) -> None:
    """Raise CarftError for classes, probabilities or scores that no prediction can have."""
    sets = [rows.raw] if rows.scaled is None else [rows.raw, rows.scaled]
    classes = (rows.label, rows.predicted, rows.zero_shot)
    are_possible = [
        *(bool((column < num_classes).all()) for column in classes),
        _is_within(rows.alignment, -1.0, 1.0),
        *(_is_within(probabilities.top, 0.0, 1.0) for probabilities in sets),
        *(_is_within(probabilities.sum_of_squares, 0.0, 1.0) for probabilities in sets),
        *(_is_within(probabilities.log_true, -1e300, 0.0) for probabilities in sets),
    ]
    if not all(are_possible):
        raise CarftError(
            f"{path} has classes, probabilities or scores that no prediction can have; delete it, "
            "and run carft evaluate on its sweep"
        )


def _is_within(column: npt.NDArray[np.floating], lowest: float, highest: float) -> bool:
    """Whether all values are in [lowest, highest] but for rounding; nan is not."""
    return bool(((column >= lowest - _ROUNDING) & (column <= highest + _ROUNDING)).all())
