"""What is measured of predictions: a row for each image, and the figures that follow from rows.

Of a sweep's runs both are kept beside the records, in two files for each step that was selected;
selection methods that choose the same step share them. Tables need the figures alone, neither rows
nor weights. The files may be a stranger's: no path is in them, and nothing in them is run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from annotated_types import Gt, Len

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.files import arrays
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.job import IDENTITY, Job

FORMAT: Literal[1] = 1  # of rows and figures

ECE_BINS = 15  # of equal width, for the expected calibration error

Labels = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class ImageRows:
    """A row for each of N images, (N,) each.

    ``label``, ``predicted``: the true class and the most likely one. ``top``: the probability of
    the latter; ``log_true``: the logarithm of that of the former, in nats; ``sum_of_squares``: of
    the probabilities of all classes.
    """

    label: Labels
    predicted: Labels
    top: Floats
    log_true: Floats
    sum_of_squares: Floats

    @property
    def is_correct(self) -> npt.NDArray[np.bool_]:
        """(N,): whether the prediction is right."""
        return self.predicted == self.label

    @classmethod
    def joined(cls, parts: Sequence[ImageRows]) -> ImageRows:
        """The rows of all parts in turn; none without parts."""

        def column(name: str, dtype: type) -> Any:
            return np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])

        return cls(
            label=column("label", np.uint16),
            predicted=column("predicted", np.uint16),
            top=column("top", np.float64),
            log_true=column("log_true", np.float64),
            sum_of_squares=column("sum_of_squares", np.float64),
        )

    def part(self, begin: int, end: int) -> ImageRows:
        """The rows of the images from ``begin`` to before ``end``."""
        return ImageRows(
            label=self.label[begin:end],
            predicted=self.predicted[begin:end],
            top=self.top[begin:end],
            log_true=self.log_true[begin:end],
            sum_of_squares=self.sum_of_squares[begin:end],
        )


@dataclass(frozen=True)
class ReliabilityBins:
    """ECE_BINS bins of equal width by confidence, the probability of the predicted class.

    Of each bin the number of images, how many of them are predicted correctly, and the sum of
    their confidences. Bin m, from 0, holds confidences in (m / ECE_BINS, (m + 1) / ECE_BINS].
    """

    images: Annotated[list[int], Len(ECE_BINS, ECE_BINS)]
    correct: Annotated[list[int], Len(ECE_BINS, ECE_BINS)]
    confidence: Annotated[list[float], Len(ECE_BINS, ECE_BINS)]


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of a set of images fit the outcomes; all are 0 at best.

    ``ece``: expected calibration error, a share of 1 (Guo et al., ICML 2017, equation 3). ``nll``:
    mean negative log-likelihood, in nats. ``brier``: mean squared distance between the vector of
    probabilities and that of the true class, from 0 to 2 (Brier 1950).
    """

    ece: float
    nll: float
    brier: float
    reliability: ReliabilityBins


@dataclass(frozen=True)
class WorstClass:
    """The class with the lowest accuracy, a share of 1; of equal ones the first."""

    name: str
    label: int
    images: int
    accuracy: float


@dataclass(frozen=True)
class Figures:
    """The figures of predictions on a set of images; accuracies are shares of 1.

    ``mean_per_class``: over the classes that have images. ``class_images``, ``class_correct``:
    numbers of images, in label order.
    """

    accuracy: float
    mean_per_class: float
    worst_class: WorstClass
    calibration: Calibration
    class_images: list[int]
    class_correct: list[int]


def measure(rows: ImageRows, classes: Sequence[str]) -> Figures:
    """The figures of N > 0 images; ``classes``: the names in label order."""
    class_images = np.bincount(rows.label, minlength=len(classes))
    class_correct = np.bincount(rows.label[rows.is_correct], minlength=len(classes))
    present = np.flatnonzero(class_images)
    accuracies = class_correct[present] / class_images[present]
    worst = int(present[accuracies.argmin()])

    return Figures(
        accuracy=float(rows.is_correct.mean()),
        mean_per_class=float(accuracies.mean()),
        worst_class=WorstClass(
            name=classes[worst],
            label=worst,
            images=int(class_images[worst]),
            accuracy=float(accuracies.min()),
        ),
        calibration=measure_calibration(rows),
        class_images=class_images.tolist(),
        class_correct=class_correct.tolist(),
    )


def measure_calibration(rows: ImageRows) -> Calibration:
    """The calibration on N > 0 images."""
    bins = np.ceil(rows.top * ECE_BINS).astype(np.int64) - 1
    bins = np.clip(bins, 0, ECE_BINS - 1)
    reliability = ReliabilityBins(
        images=np.bincount(bins, minlength=ECE_BINS).tolist(),
        correct=np.bincount(bins[rows.is_correct], minlength=ECE_BINS).tolist(),
        confidence=np.bincount(bins, rows.top, minlength=ECE_BINS).tolist(),
    )

    # Of one image: the sum over classes of (p - [true class])^2.
    squared_distance = rows.sum_of_squares - 2 * np.exp(rows.log_true) + 1
    return Calibration(
        ece=expected_calibration_error(reliability),
        nll=float(-rows.log_true.mean()),
        brier=float(squared_distance.mean()),
        reliability=reliability,
    )


def expected_calibration_error(reliability: ReliabilityBins) -> float:
    """The sum over bins of their share of the images times |accuracy - mean confidence|."""
    # Each is |accuracy - mean confidence| times the number of images in the bin.
    gaps = np.abs(np.array(reliability.correct) - np.array(reliability.confidence))
    return float(gaps.sum() / sum(reliability.images))


def confusion_matrix(rows: ImageRows, num_classes: int) -> npt.NDArray[np.int64]:
    """(K, K): the number of images by true class (row) and predicted class (column)."""
    cells = rows.label.astype(np.int64) * num_classes + rows.predicted
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Flips:
    """Numbers of images, by whether zero-shot CLIP and the run predict them correctly.

    ``gained``: only the run does. ``lost``: only zero-shot CLIP does.
    """

    gained: int
    lost: int
    both_right: int
    both_wrong: int


@dataclass(frozen=True)
class EvaluatedSplit:
    """A split that was measured: its environment, the number of that, its name in the records."""

    environment: str
    number: int
    name: str
    images: Annotated[int, Gt(0)]


@dataclass(frozen=True)
class ValidationSplit:
    """The out-split of an environment trained on, and how many of its images are predicted right.

    Its images go through the test transform, unlike those that the records are of.
    """

    environment: str
    number: int
    name: str
    images: Annotated[int, Gt(0)]
    correct: int


@dataclass(frozen=True)
class Temperature:
    """What the logits are divided by: fitted on ``images`` of the training environments.

    ``is_at_limit``: whether the best value lies outside the range that is searched.
    """

    value: float
    images: int
    is_at_limit: bool


@dataclass(frozen=True)
class EvaluationFacts:
    """What was measured, and of what: the facts that tell whether a file is still true.

    ``weights`` and ``data`` are SHA-256 of the file of weights and of the list of images; the
    digests of prompts and CLIP are those in the records. ``splits``: in the order of the rows.
    ``temperature``: None where no training environment has an out-split of its own.
    ``validation``: the out-splits of the training environments; none where the job left nothing
    out.
    """

    format: Literal[1]
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
    classes: Annotated[list[str], Len(1)]
    contexts: list[str]
    images: Annotated[int, Gt(0)]
    splits: Annotated[list[EvaluatedSplit], Len(1)]
    temperature: Temperature | None
    validation: list[ValidationSplit] = dataclasses.field(default_factory=list)

    def matches(self, job: Job) -> bool:
        """Whether a job with these arguments was evaluated."""
        identity = {name: getattr(self, name) for name in IDENTITY}
        return job.key.test_envs == set(self.test_envs) and all(
            job.args[name] == value for name, value in identity.items()
        )


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows of an evaluated run on some splits, one split after the other.

    ``raw``, ``scaled``: at temperature 1, and at the fitted one, None without. ``zero_shot``: (N,),
    the class that the original CLIP predicts. ``alignment``: (N,), the cosine of its image feature
    with the zero-shot weight of the true class, as in arXiv 2412.02856.
    """

    raw: ImageRows
    scaled: ImageRows | None
    zero_shot: Labels
    alignment: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SplitMetrics(Figures):
    """The figures of an evaluated run on one split.

    ``calibration``: of the probabilities as they are; ``scaled``: of those at the fitted
    ``temperature``, None without.
    """

    split: EvaluatedSplit
    zero_shot_accuracy: float
    flips: Flips
    scaled: Calibration | None
    temperature: float | None

    @property
    def gained_share(self) -> float:
        """The share of the images that only the run predicts correctly."""
        return self.flips.gained / self.split.images

    @property
    def lost_share(self) -> float:
        """The share of the images that only zero-shot CLIP predicts correctly."""
        return self.flips.lost / self.split.images


@dataclass(frozen=True)
class RunMetrics:
    """The figures of a run at one step, in the order of its splits."""

    facts: EvaluationFacts
    splits: Annotated[list[SplitMetrics], Len(1)]

    def of_environment(self, number: int) -> SplitMetrics | None:
        """The figures of the environment with this number, if it was measured."""
        return next((part for part in self.splits if part.split.number == number), None)

    @property
    def in_domain(self) -> float | None:
        """The mean accuracy over the out-splits of the environments trained on, a share of 1.

        Like the in-domain accuracy of the tables, but without augmentation: all images go through
        the test transform. None if the validation splits were not measured.
        """
        accuracies = [split.correct / split.images for split in self.facts.validation]
        if not self.facts.test_envs:
            accuracies = [split.accuracy for split in self.splits]
        return fmean(accuracies) if accuracies else None


def measure_run(rows: EvaluatedRows, facts: EvaluationFacts) -> RunMetrics:
    """The figures of all splits."""
    figures = []
    begin = 0
    for split in facts.splits:
        end = begin + split.images
        part = EvaluatedRows(
            raw=rows.raw.part(begin, end),
            scaled=rows.scaled.part(begin, end) if rows.scaled else None,
            zero_shot=rows.zero_shot[begin:end],
            alignment=rows.alignment[begin:end],
        )
        figures.append(_measure_split(part, split, facts))
        begin = end
    return RunMetrics(facts, figures)


def _measure_split(
    rows: EvaluatedRows, split: EvaluatedSplit, facts: EvaluationFacts
) -> SplitMetrics:
    figures = measure(rows.raw, facts.classes)
    is_correct = rows.raw.is_correct
    is_zero_shot_correct = rows.zero_shot == rows.raw.label
    return SplitMetrics(
        accuracy=figures.accuracy,
        mean_per_class=figures.mean_per_class,
        worst_class=figures.worst_class,
        calibration=figures.calibration,
        class_images=figures.class_images,
        class_correct=figures.class_correct,
        split=split,
        zero_shot_accuracy=float(is_zero_shot_correct.mean()),
        flips=Flips(
            gained=int((is_correct & ~is_zero_shot_correct).sum()),
            lost=int((~is_correct & is_zero_shot_correct).sum()),
            both_right=int((is_correct & is_zero_shot_correct).sum()),
            both_wrong=int((~is_correct & ~is_zero_shot_correct).sum()),
        ),
        scaled=measure_calibration(rows.scaled) if rows.scaled else None,
        temperature=facts.temperature.value if facts.temperature else None,
    )


_LABEL = np.dtype("<u2")
_PROBABILITY = np.dtype("<f8")
# The columns of the file of rows, and those that only a run with a fitted temperature has.
_COLUMNS: dict[str, np.dtype[Any]] = {
    "label": _LABEL,
    "predicted": _LABEL,
    "zero_shot": _LABEL,
    "alignment": np.dtype("<f4"),
    "top": _PROBABILITY,
    "log_true": _PROBABILITY,
    "sum_of_squares": _PROBABILITY,
}
_SCALED_COLUMNS: dict[str, np.dtype[Any]] = {
    "scaled_top": _PROBABILITY,
    "scaled_log_true": _PROBABILITY,
    "scaled_sum_of_squares": _PROBABILITY,
}


def rows_path(folder: Path, step: int) -> Path:
    """The file of the rows in a job's folder."""
    return folder / f"evaluation_step{step}.npz"


def metrics_path(folder: Path, step: int) -> Path:
    """The file of the figures in a job's folder."""
    return folder / f"evaluation_step{step}.json"


def save_rows(folder: Path, rows: EvaluatedRows, facts: EvaluationFacts) -> None:
    """Write the file of rows, whole or not at all. Raises CarftError if it cannot be written."""
    columns: dict[str, npt.NDArray[Any]] = {
        "label": rows.raw.label,
        "predicted": rows.raw.predicted,
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


def load_rows(folder: Path, step: int) -> tuple[EvaluatedRows, EvaluationFacts]:
    """The rows and their facts; raises CarftError for a file that is missing or damaged."""
    path = rows_path(folder, step)
    facts = _validated(EvaluationFacts, arrays.load_facts(path), path)
    dtypes = {**_COLUMNS, **(_SCALED_COLUMNS if facts.temperature else {})}
    _, columns = arrays.load_arrays(path, dtypes, "images")
    largest = max(int(columns[name].max()) for name in ("label", "predicted", "zero_shot"))
    if largest >= len(facts.classes) or sum(s.images for s in facts.splits) != facts.images:
        raise _damaged(path, "rows")

    raw = ImageRows(
        label=columns["label"],
        predicted=columns["predicted"],
        top=columns["top"],
        log_true=columns["log_true"],
        sum_of_squares=columns["sum_of_squares"],
    )
    scaled = None
    if facts.temperature:
        scaled = dataclasses.replace(
            raw,
            top=columns["scaled_top"],
            log_true=columns["scaled_log_true"],
            sum_of_squares=columns["scaled_sum_of_squares"],
        )
    return EvaluatedRows(raw, scaled, columns["zero_shot"], columns["alignment"]), facts


def save_metrics(folder: Path, figures: RunMetrics) -> None:
    """Write the file of figures, whole or not at all. Raises CarftError if it cannot be written."""
    text = json.dumps(dataclasses.asdict(figures), indent=1, sort_keys=True)
    files.save_text(metrics_path(folder, figures.facts.step), f"{text}\n")


def find_metrics(folder: Path, step: float) -> RunMetrics | str:
    """The figures of the run in a job's folder at a step, or why there are none."""
    path = metrics_path(folder, int(step))
    try:
        return _validated(RunMetrics, json.loads(files.read_regular(path)), path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except CarftError as error:
        return str(error)
    except ValueError:  # no JSON
        return str(_damaged(path, "content"))

    names = (*WEIGHTS.values(), f"model_step{int(step)}.pkl")
    if not any((folder / name).exists() for name in names):
        return f"weights of step {step:g} were not kept"
    return "not evaluated; run carft evaluate on the sweep"


def _validated(kind: Callable[..., T], content: Any, path: Path) -> T:
    """The dataclass that a file's content is; CarftError, with ``path``, if it is none."""
    from pydantic import ValidationError

    try:
        value: T = _adapter(kind).validate_python(content)
    except ValidationError as error:
        first, *_ = error.errors()
        raise _damaged(path, ".".join(map(str, first["loc"])) or "content") from error
    return value


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # takes half a second to import

    return TypeAdapter(kind)


def _damaged(path: Path, part: str) -> CarftError:
    return CarftError(
        f"{path} is damaged, or was not written by this carft: it has no valid {part}; run carft "
        "evaluate on its sweep"
    )
