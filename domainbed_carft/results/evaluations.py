"""Predictions on test images, a row for each image, and the metrics computed from the rows.

For runs of a sweep both are saved next to the records, in two files for each selected step, so that
selection methods that choose the same step share them. Tables need only the metrics. The files can
be untrusted: they contain no path, and loading them runs no code.
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

FORMAT: Literal[1] = 1  # of the files of rows and of metrics

ECE_BINS = 15  # of equal width, for the expected calibration error

Labels = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class ImageRows:
    """A row for each of N images.

    Attributes:
        label: the true class, (N,).
        predicted: the most likely class, (N,).
        top: probability of the most likely class, (N,).
        log_true: log-probability of the true class in nats, (N,).
        sum_of_squares: sum over all classes of the squared probability, (N,).
    """

    label: Labels
    predicted: Labels
    top: Floats
    log_true: Floats
    sum_of_squares: Floats

    @property
    def is_correct(self) -> npt.NDArray[np.bool_]:
        """True for each image that is predicted correctly, (N,)."""
        return self.predicted == self.label

    @classmethod
    def concatenate(cls, parts: Sequence[ImageRows]) -> ImageRows:
        """Concatenate the rows of several parts; no rows without parts."""

        def column(name: str, dtype: type) -> Any:
            return np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])

        return cls(
            label=column("label", np.uint16),
            predicted=column("predicted", np.uint16),
            top=column("top", np.float64),
            log_true=column("log_true", np.float64),
            sum_of_squares=column("sum_of_squares", np.float64),
        )

    def slice(self, begin: int, end: int) -> ImageRows:
        """Return the rows of the images from ``begin`` up to ``end``, exclusive."""
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

    Bin m, from 0, holds confidences in (m / ECE_BINS, (m + 1) / ECE_BINS].

    Attributes:
        images: number of images in each bin.
        correct: number of correctly predicted images in each bin.
        confidence: sum of the confidences in each bin.
    """

    images: Annotated[list[int], Len(ECE_BINS, ECE_BINS)]
    correct: Annotated[list[int], Len(ECE_BINS, ECE_BINS)]
    confidence: Annotated[list[float], Len(ECE_BINS, ECE_BINS)]


@dataclass(frozen=True)
class Calibration:
    """Distances between the predicted probabilities and the true classes; each is 0 at best.

    Attributes:
        ece: expected calibration error in [0, 1] (Guo et al., ICML 2017, equation 3).
        nll: mean negative log-likelihood in nats.
        brier: mean squared distance between the vector of probabilities and the one-hot true class,
            in
            [0, 2] (Brier 1950).
        reliability: the bins from which ``ece`` is computed.
    """

    ece: float
    nll: float
    brier: float
    reliability: ReliabilityBins


@dataclass(frozen=True)
class WorstClass:
    """The class with the lowest accuracy, in [0, 1]; the first one of several."""

    name: str
    label: int
    images: int
    accuracy: float


@dataclass(frozen=True)
class Metrics:
    """Metrics of the predictions on a set of images; accuracies in [0, 1].

    Attributes:
        accuracy: share of correctly predicted images.
        mean_per_class: mean accuracy over the classes that have images.
        worst_class: the class with the lowest accuracy.
        calibration: of the predicted probabilities.
        class_images: number of images of each class, in label order.
        class_correct: number of correctly predicted images of each class, in label order.
    """

    accuracy: float
    mean_per_class: float
    worst_class: WorstClass
    calibration: Calibration
    class_images: list[int]
    class_correct: list[int]


def measure(rows: ImageRows, classes: Sequence[str]) -> Metrics:
    """Compute the metrics of N > 0 images; ``classes`` has the names in label order."""
    class_images = np.bincount(rows.label, minlength=len(classes))
    class_correct = np.bincount(rows.label[rows.is_correct], minlength=len(classes))
    present = np.flatnonzero(class_images)
    accuracies = class_correct[present] / class_images[present]
    worst = int(present[accuracies.argmin()])

    return Metrics(
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
    """Compute the calibration on N > 0 images."""
    bins = np.ceil(rows.top * ECE_BINS).astype(np.int64) - 1
    bins = np.clip(bins, 0, ECE_BINS - 1)
    reliability = ReliabilityBins(
        images=np.bincount(bins, minlength=ECE_BINS).tolist(),
        correct=np.bincount(bins[rows.is_correct], minlength=ECE_BINS).tolist(),
        confidence=np.bincount(bins, rows.top, minlength=ECE_BINS).tolist(),
    )

    # For each image the sum over classes of (p - [true class])^2.
    squared_distance = rows.sum_of_squares - 2 * np.exp(rows.log_true) + 1
    return Calibration(
        ece=expected_calibration_error(reliability),
        nll=float(-rows.log_true.mean()),
        brier=float(squared_distance.mean()),
        reliability=reliability,
    )


def expected_calibration_error(reliability: ReliabilityBins) -> float:
    """Sum over bins of the bin's share of the images times |accuracy - mean confidence|."""
    # Each is |accuracy - mean confidence| times the number of images in the bin.
    gaps = np.abs(np.array(reliability.correct) - np.array(reliability.confidence))
    return float(gaps.sum() / sum(reliability.images))


def confusion_matrix(rows: ImageRows, num_classes: int) -> npt.NDArray[np.int64]:
    """Number of images by true class (row) and predicted class (column), (K, K)."""
    cells = rows.label.astype(np.int64) * num_classes + rows.predicted
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Flips:
    """Numbers of images by whether zero-shot CLIP and the run predict them correctly.

    Attributes:
        gained: only the run is right.
        lost: only zero-shot CLIP is right.
        both_right: both are right.
        both_wrong: neither is right.
    """

    gained: int
    lost: int
    both_right: int
    both_wrong: int


@dataclass(frozen=True)
class EvaluatedSplit:
    """A split on which a run was evaluated.

    Attributes:
        environment: name of the environment.
        number: number of the environment.
        name: name of the split in the records.
        images: number of images.
    """

    environment: str
    number: int
    name: str
    images: Annotated[int, Gt(0)]


@dataclass(frozen=True)
class ValidationSplit:
    """The out-split of a training environment, evaluated through the test transform.

    The records measure the same split on augmented images.

    Attributes:
        environment: name of the environment.
        number: number of the environment.
        name: name of the split in the records.
        images: number of images.
        correct: number of correctly predicted images.
    """

    environment: str
    number: int
    name: str
    images: Annotated[int, Gt(0)]
    correct: int


@dataclass(frozen=True)
class Temperature:
    """The fitted divisor of the logits.

    Attributes:
        value: the temperature.
        images: number of images of the training environments on which it was fitted.
        is_at_limit: True if the best value lies outside the searched range.
    """

    value: float
    images: int
    is_at_limit: bool


@dataclass(frozen=True)
class EvaluationFacts:
    """Settings and digests of an evaluation, by which a later one checks if the file is current.

    Attributes:
        format: version of the file format.
        dataset, algorithm, test_envs, trial_seed, hparams_seed: arguments of the job.
        step: step of the evaluated checkpoint.
        weights: SHA-256 of the weights' file.
        data: SHA-256 of the list of images.
        prompts_digest, clip_digest: digests of prompts and CLIP model, as in the records.
        classes: names of the classes in label order.
        contexts: context prompts of the run.
        images: number of images over all splits.
        splits: the evaluated splits, in the order of the rows.
        temperature: None if no training environment has an out-split of its own.
        validation: out-splits of the training environments; empty if the job held nothing out.
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
        """Return True if the facts describe an evaluation of this job."""
        identity = {name: getattr(self, name) for name in IDENTITY}
        return job.key.test_envs == set(self.test_envs) and all(
            job.args[name] == value for name, value in identity.items()
        )


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows of an evaluated run on N images, one split after the other.

    Attributes:
        raw: rows at temperature 1.
        scaled: rows at the fitted temperature, or None without one.
        zero_shot: class predicted by the original CLIP model, (N,).
        alignment: cosine of the original CLIP's image feature and the zero-shot weight of the true
            class, (N,), as in arXiv 2412.02856.
    """

    raw: ImageRows
    scaled: ImageRows | None
    zero_shot: Labels
    alignment: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SplitMetrics(Metrics):
    """Metrics of an evaluated run on one split.

    Attributes:
        split: the evaluated split.
        zero_shot_accuracy: accuracy of zero-shot CLIP in [0, 1].
        flips: images gained and lost against zero-shot CLIP.
        scaled: calibration at the fitted temperature, or None without one.
        temperature: the fitted temperature, or None.
    """

    split: EvaluatedSplit
    zero_shot_accuracy: float
    flips: Flips
    scaled: Calibration | None
    temperature: float | None

    @property
    def gained_share(self) -> float:
        """Share of the images that only the run predicts correctly."""
        return self.flips.gained / self.split.images

    @property
    def lost_share(self) -> float:
        """Share of the images that only zero-shot CLIP predicts correctly."""
        return self.flips.lost / self.split.images


@dataclass(frozen=True)
class RunMetrics:
    """Metrics of a run at one step, in the order of its splits."""

    facts: EvaluationFacts
    splits: Annotated[list[SplitMetrics], Len(1)]

    def get_environment(self, number: int) -> SplitMetrics | None:
        """Return the metrics on an environment, or None if it was not evaluated."""
        return next((part for part in self.splits if part.split.number == number), None)

    @property
    def in_domain(self) -> float | None:
        """Mean accuracy over the out-splits of the training environments, in [0, 1].

        The images are not augmented, unlike those of the tables' in-domain accuracy. None if the
        validation splits were not evaluated.
        """
        accuracies = [split.correct / split.images for split in self.facts.validation]
        if not self.facts.test_envs:
            accuracies = [split.accuracy for split in self.splits]
        return fmean(accuracies) if accuracies else None


def measure_run(rows: EvaluatedRows, facts: EvaluationFacts) -> RunMetrics:
    """Compute the metrics of all splits."""
    metrics = []
    begin = 0
    for split in facts.splits:
        end = begin + split.images
        part = EvaluatedRows(
            raw=rows.raw.slice(begin, end),
            scaled=rows.scaled.slice(begin, end) if rows.scaled else None,
            zero_shot=rows.zero_shot[begin:end],
            alignment=rows.alignment[begin:end],
        )
        metrics.append(_measure_split(part, split, facts))
        begin = end
    return RunMetrics(facts, metrics)


def _measure_split(
    rows: EvaluatedRows, split: EvaluatedSplit, facts: EvaluationFacts
) -> SplitMetrics:
    metrics = measure(rows.raw, facts.classes)
    is_correct = rows.raw.is_correct
    is_zero_shot_correct = rows.zero_shot == rows.raw.label
    return SplitMetrics(
        accuracy=metrics.accuracy,
        mean_per_class=metrics.mean_per_class,
        worst_class=metrics.worst_class,
        calibration=metrics.calibration,
        class_images=metrics.class_images,
        class_correct=metrics.class_correct,
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
# Columns of the file of rows
_COLUMNS: dict[str, np.dtype[Any]] = {
    "label": _LABEL,
    "predicted": _LABEL,
    "zero_shot": _LABEL,
    "alignment": np.dtype("<f4"),
    "top": _PROBABILITY,
    "log_true": _PROBABILITY,
    "sum_of_squares": _PROBABILITY,
}
# Further columns of runs with a fitted temperature
_SCALED_COLUMNS: dict[str, np.dtype[Any]] = {
    "scaled_top": _PROBABILITY,
    "scaled_log_true": _PROBABILITY,
    "scaled_sum_of_squares": _PROBABILITY,
}


def rows_path(folder: Path, step: int) -> Path:
    """Return the path of the rows in a job's folder."""
    return folder / f"evaluation_step{step}.npz"


def metrics_path(folder: Path, step: int) -> Path:
    """Return the path of the metrics in a job's folder."""
    return folder / f"evaluation_step{step}.json"


def save_rows(folder: Path, rows: EvaluatedRows, facts: EvaluationFacts) -> None:
    """Write the file of rows atomically, or raise CarftError."""
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
    """Load the rows and their facts; raise CarftError if the file is missing or damaged."""
    path = rows_path(folder, step)
    facts = _validate(EvaluationFacts, arrays.load_facts(path), path)
    dtypes = {**_COLUMNS, **(_SCALED_COLUMNS if facts.temperature else {})}
    _, columns = arrays.load_arrays(path, dtypes, "images")
    largest_label = max(int(columns[name].max()) for name in ("label", "predicted", "zero_shot"))
    if largest_label >= len(facts.classes) or sum(s.images for s in facts.splits) != facts.images:
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


def save_metrics(folder: Path, metrics: RunMetrics) -> None:
    """Write the file of metrics atomically, or raise CarftError."""
    text = json.dumps(dataclasses.asdict(metrics), indent=1, sort_keys=True)
    files.save_text(metrics_path(folder, metrics.facts.step), f"{text}\n")


def find_metrics(folder: Path, step: float) -> RunMetrics | str:
    """Return the metrics of a job's run at a step, or the reason why there are none."""
    path = metrics_path(folder, int(step))
    try:
        return _validate(RunMetrics, json.loads(files.read_regular(path)), path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except CarftError as error:
        return str(error)
    except ValueError:  # invalid JSON
        return str(_damaged(path, "content"))

    names = (*WEIGHTS.values(), f"model_step{int(step)}.pkl")
    if not any((folder / name).exists() for name in names):
        return f"the weights of step {step:g} were not kept"
    return "not evaluated; run carft evaluate on the sweep"


def _validate(kind: Callable[..., T], content: Any, path: Path) -> T:
    """Convert a file's content into a dataclass, or raise CarftError with ``path``."""
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
        f"{path} is damaged, or was not written by this version of carft: no valid {part}; run "
        "carft evaluate on the sweep again"
    )
