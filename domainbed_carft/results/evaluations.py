"""Predictions on test images, a row for each image, and the metrics computed from the rows.

For runs of a sweep both are saved next to the records, in two files for each selected step, so that
selection rules that choose the same step share them. Tables need only the metrics. The files can
be untrusted: they contain no path, and loading them runs no code.
"""

from __future__ import annotations

import contextlib
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
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.jobs.job_folder import WEIGHTS

FORMAT: Literal[1] = 1  # of the files of rows and of metrics

ECE_BINS = 15  # of equal width, for the expected calibration error

_CACHED_METRICS = 4096  # runs whose metrics stay in memory

T = TypeVar("T")

# Predictions on images, a row for each. Probabilities: of the predicted class; of the label, as its
# logarithm in nats; and the sum over all classes of the squared probability.
PROBABILITIES = ("top", "log_true", "sum_of_squares")
ROW = np.dtype([("label", "<u2"), ("predicted", "<u2"), *((name, "<f8") for name in PROBABILITIES)])
# The class that the original CLIP model predicts, and the cosine of its image feature and its
# zero-shot weight of the label, as in arXiv 2412.02856.
ZERO_SHOT_ROW = np.dtype([("zero_shot", "<u2"), ("alignment", "<f4")])
# A row of an evaluated run, also with the probabilities at the fitted temperature; 0 without one.
SCALED = "scaled_"
SCALED_PROBABILITIES = tuple(f"{SCALED}{name}" for name in PROBABILITIES)
EVALUATED_ROW = np.dtype(
    [*ROW.descr, *ZERO_SHOT_ROW.descr, *((name, "<f8") for name in SCALED_PROBABILITIES)]
)

# Rows (N,) with the fields of one of these types.
ImageRows = npt.NDArray[Any]


def is_correct(rows: ImageRows) -> npt.NDArray[np.bool_]:
    """Return True for each image that is predicted correctly, (N,)."""
    return rows["predicted"] == rows["label"]


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
    class_images = np.bincount(rows["label"], minlength=len(classes))
    class_correct = np.bincount(rows["label"][is_correct(rows)], minlength=len(classes))
    present = np.flatnonzero(class_images)
    accuracies = class_correct[present] / class_images[present]
    worst = int(present[accuracies.argmin()])

    return Metrics(
        accuracy=float(is_correct(rows).mean()),
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


def measure_calibration(rows: ImageRows, prefix: str = "") -> Calibration:
    """Compute the calibration on N > 0 images.

    Args:
        rows: the rows.
        prefix: SCALED for the probabilities at the fitted temperature.
    """
    # Copies, because numpy rounds exp of a field of the rows differently.
    top, log_true, sum_of_squares = (rows[f"{prefix}{name}"].copy() for name in PROBABILITIES)
    bins = np.ceil(top * ECE_BINS).astype(np.int64) - 1
    bins = np.clip(bins, 0, ECE_BINS - 1)
    reliability = ReliabilityBins(
        images=np.bincount(bins, minlength=ECE_BINS).tolist(),
        correct=np.bincount(bins[is_correct(rows)], minlength=ECE_BINS).tolist(),
        confidence=np.bincount(bins, top, minlength=ECE_BINS).tolist(),
    )

    # For each image the sum over classes of (p - [true class])^2.
    squared_distance = sum_of_squares - 2 * np.exp(log_true) + 1
    return Calibration(
        ece=expected_calibration_error(reliability),
        nll=float(-log_true.mean()),
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
    cells = rows["label"].astype(np.int64) * num_classes + rows["predicted"]
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
class ValidationSplit(EvaluatedSplit):
    """The out-split of a training environment, evaluated through the test transform.

    The records measure the same split on augmented images.

    Attributes:
        correct: number of correctly predicted images.
    """

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


def measure_run(rows: ImageRows, facts: EvaluationFacts) -> RunMetrics:
    """Compute the metrics of all splits from rows with the fields of EVALUATED_ROW."""
    temperature = facts.temperature
    splits = []
    ends = np.cumsum([split.images for split in facts.splits])
    for split, part in zip(facts.splits, np.split(rows, ends[:-1])):
        run_is_correct = is_correct(part)
        zero_shot_is_correct = part["zero_shot"] == part["label"]
        flips = Flips(
            gained=int((run_is_correct & ~zero_shot_is_correct).sum()),
            lost=int((~run_is_correct & zero_shot_is_correct).sum()),
            both_right=int((run_is_correct & zero_shot_is_correct).sum()),
            both_wrong=int((~run_is_correct & ~zero_shot_is_correct).sum()),
        )
        splits.append(
            SplitMetrics(
                **vars(measure(part, facts.classes)),
                split=split,
                zero_shot_accuracy=float(zero_shot_is_correct.mean()),
                flips=flips,
                scaled=measure_calibration(part, SCALED) if temperature else None,
                temperature=temperature.value if temperature else None,
            )
        )
    return RunMetrics(facts, splits)


def rows_path(folder: Path, step: int) -> Path:
    """Return the path of the rows in a job's folder."""
    return folder / f"evaluation_step{step}.npz"


def metrics_path(folder: Path, step: int) -> Path:
    """Return the path of the metrics in a job's folder."""
    return folder / f"evaluation_step{step}.json"


def save_rows(folder: Path, rows: ImageRows, facts: EvaluationFacts) -> None:
    """Write the file of rows atomically, or raise CarftError."""
    arrays.save_arrays(rows_path(folder, facts.step), {"rows": rows}, dataclasses.asdict(facts))


def load_rows(folder: Path, step: int) -> tuple[ImageRows, EvaluationFacts]:
    """Load the rows and their facts; raise CarftError if the file is missing or damaged.

    Returns:
        The rows of all splits, one split after the other, with the fields of EVALUATED_ROW, and the
        facts.
    """
    path = rows_path(folder, step)
    content, columns = arrays.load_arrays(path, {"rows": EVALUATED_ROW}, "images")
    facts = _validate(EvaluationFacts, content, path)
    rows = columns["rows"]
    largest_label = max(int(rows[name].max()) for name in ("label", "predicted", "zero_shot"))
    if largest_label >= len(facts.classes) or sum(s.images for s in facts.splits) != facts.images:
        raise _damaged(path, "rows")
    return rows, facts


def save_metrics(folder: Path, metrics: RunMetrics) -> None:
    """Write the file of metrics atomically unless it is up to date, or raise CarftError."""
    text = json.dumps(dataclasses.asdict(metrics), indent=1, sort_keys=True) + "\n"
    path = metrics_path(folder, metrics.facts.step)
    with contextlib.suppress(OSError):
        if files.read_regular(path) == text.encode():
            return
    files.save_text(path, text)


@functools.lru_cache(maxsize=_CACHED_METRICS)
def find_metrics(folder: Path, step: int, modified_ns: int) -> RunMetrics | str:
    """Return the metrics of a job's run at a step, or the reason why there are none.

    All columns of a table share one reading of the file, until ``modified_ns``, the time of its
    last change, differs.
    """
    path = metrics_path(folder, step)
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

    names = (*WEIGHTS.values(), f"model_step{step}.pkl")
    if not any((folder / name).exists() for name in names):
        return f"the weights of step {step} were not kept"
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
