"""Predictions on test images, and the metrics computed from them.

For runs of a sweep both are saved next to the records, in two files for each selected step, so that
selection rules that choose the same step share them. A suite of test sets has two files of the
same format, and so has each alpha of WiSE-FT. Tables need only the metrics. The files can be
untrusted: they contain no path, and loading them runs no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le, Len, Predicate

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.files import arrays
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.jobs.job_folder import WEIGHTS

FORMAT: Literal[1] = 1  # of the files of predictions and of metrics

ECE_BINS = 15  # of equal width, for the expected calibration error

_CACHED_METRICS = 4096  # runs whose metrics stay in memory

T = TypeVar("T")
Share = Annotated[float, Ge(0), Le(1), Predicate(math.isfinite)]

# The prediction of an image. Probabilities: of the predicted class; of the label, as its
# logarithm in nats; and the sum over all classes of the squared probability.
PROBABILITIES = ("top", "log_true", "sum_of_squares")
PREDICTION = np.dtype(
    [("label", "<u2"), ("predicted", "<u2"), *((name, "<f8") for name in PROBABILITIES)]
)
# The class that the original CLIP model predicts, and the cosine of its image feature and its
# zero-shot weight of the label, as in arXiv 2412.02856.
ZERO_SHOT_PREDICTION = np.dtype([("zero_shot", "<u2"), ("alignment", "<f4")])
# All that is saved of an image: also the probabilities at the fitted temperature; 0 without one.
SCALED = "scaled_"
SCALED_PROBABILITIES = tuple(f"{SCALED}{name}" for name in PROBABILITIES)
RECORDED_PREDICTION = np.dtype(
    [
        *PREDICTION.descr,
        *ZERO_SHOT_PREDICTION.descr,
        *((name, "<f8") for name in SCALED_PROBABILITIES),
    ]
)

# Predictions (N,) with the fields of one of these types.
PredictionArray = npt.NDArray[Any]


def join_predictions(
    raw: Sequence[PredictionArray],
    zero_shot: Sequence[PredictionArray] = (),
    scaled: Sequence[PredictionArray] = (),
) -> PredictionArray:
    """Return the predictions of an evaluated run, one set of images after the other.

    Args:
        raw: predictions of each set of images, with the fields of PREDICTION.
        zero_shot: predictions of each set with the fields of ZERO_SHOT_PREDICTION, if there are
            any.
        scaled: predictions of each set at the fitted temperature, if there is one.
    """
    predictions = np.zeros(sum(map(len, raw)), RECORDED_PREDICTION)
    predictions[["label", "predicted", *PROBABILITIES]] = np.concatenate(raw)
    if zero_shot:
        predictions[["zero_shot", "alignment"]] = np.concatenate(zero_shot)
    if scaled:
        predictions[[*SCALED_PROBABILITIES]] = np.concatenate(scaled)[[*PROBABILITIES]]
    return predictions


def is_correct(predictions: PredictionArray) -> npt.NDArray[np.bool_]:
    """Return True for each image that is predicted correctly, (N,)."""
    return predictions["predicted"] == predictions["label"]


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

    All but ``ece`` are None if only the expected calibration error was recorded.
    """

    ece: float
    nll: float | None
    brier: float | None
    reliability: ReliabilityBins | None


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

    The metrics by class are None if only the accuracy was recorded.
    """

    accuracy: Share
    mean_per_class: Share | None
    worst_class: WorstClass | None
    calibration: Calibration
    class_images: list[int] | None
    class_correct: list[int] | None

    @property
    def class_accuracies(self) -> list[float | None]:
        """The accuracy (recall) of each class, or None if the class has no image."""
        return [
            correct / images if images else None
            for correct, images in zip(self.class_correct or (), self.class_images or ())
        ]


def measure(predictions: PredictionArray, classes: Sequence[str]) -> Metrics:
    """Compute the metrics of N > 0 images; ``classes`` has the names in label order."""
    class_images = np.bincount(predictions["label"], minlength=len(classes))
    class_correct = np.bincount(
        predictions["label"][is_correct(predictions)], minlength=len(classes)
    )
    present = np.flatnonzero(class_images)
    accuracies = class_correct[present] / class_images[present]
    worst = int(present[accuracies.argmin()])

    return Metrics(
        accuracy=float(is_correct(predictions).mean()),
        mean_per_class=float(accuracies.mean()),
        worst_class=WorstClass(
            name=classes[worst],
            label=worst,
            images=int(class_images[worst]),
            accuracy=float(accuracies.min()),
        ),
        calibration=measure_calibration(predictions),
        class_images=class_images.tolist(),
        class_correct=class_correct.tolist(),
    )


def measure_calibration(predictions: PredictionArray, prefix: str = "") -> Calibration:
    """Compute the calibration on N > 0 images.

    Args:
        predictions: the predictions.
        prefix: SCALED for the probabilities at the fitted temperature.
    """
    # Copies, because numpy rounds exp of a field of the predictions differently.
    top, log_true, sum_of_squares = (
        predictions[f"{prefix}{name}"].copy() for name in PROBABILITIES
    )
    bins = np.ceil(top * ECE_BINS).astype(np.int64) - 1
    bins = np.clip(bins, 0, ECE_BINS - 1)
    reliability = ReliabilityBins(
        images=np.bincount(bins, minlength=ECE_BINS).tolist(),
        correct=np.bincount(bins[is_correct(predictions)], minlength=ECE_BINS).tolist(),
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


def confusion_matrix(predictions: PredictionArray, num_classes: int) -> npt.NDArray[np.int64]:
    """Number of images by true class (row) and predicted class (column), (K, K)."""
    cells = predictions["label"].astype(np.int64) * num_classes + predictions["predicted"]
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
class ImageSetFacts:
    """The facts of a set of images on which a run was evaluated: a split, or a suite's test set.

    Attributes:
        environment: name of the environment; of a test set, the name of its suite.
        number: number of the environment, or of the test set in its suite.
        name: name of the split in the records, or of the test set.
        images: number of images.
        is_target: True if the environment was held out in training, or the test set is shifted.
        is_complete: True if no image of the test set is missing.
        classes: names of the test set's classes in label order, if they differ from the run's.
        digest: SHA-256 of the list of the test set's images; empty for a split.
    """

    environment: str
    number: int
    name: str
    images: Annotated[int, Gt(0)]
    is_target: bool = True
    is_complete: bool = True
    classes: list[str] = dataclasses.field(default_factory=list)
    digest: str = ""


@dataclass(frozen=True)
class ValidationAccuracy:
    """The accuracy on the out-split of a training environment, through the test transform.

    The records measure the same split on augmented images.

    Attributes:
        image_set: the split.
        correct: number of correctly predicted images.
    """

    image_set: ImageSetFacts
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


class EvaluationKey(NamedTuple):
    """The weights and images of an evaluation, which name its files in the folder of the job.

    Attributes:
        step: step of the evaluated checkpoint.
        suite: name of the suite of test sets; empty for the environments of the job's dataset.
        alpha: alpha of WiSE-FT; None for the weights of the checkpoint.
    """

    step: int
    suite: str = ""
    alpha: float | None = None

    @property
    def stem(self) -> str:
        """Name of the files without the ending, such as "evaluation_step300_imagenet_alpha0.5"."""
        alpha = "" if self.alpha is None else f"alpha{self.alpha!r}"
        return "_".join(filter(None, [f"evaluation_step{self.step}", self.suite, alpha]))


_SUITE_FILE = re.compile(
    r"evaluation_step(\d+)_(.+?)(?:_alpha(\d+(?:\.\d+)?(?:e[+-]?\d+)?))?\.json"
)


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
        images: number of images over all sets.
        image_sets: the evaluated splits or test sets, in the order of the predictions.
        temperature: None if no training environment has an out-split of its own, or if it was not
            fitted before the evaluation on a suite.
        validation: out-splits of the training environments; empty if the job held nothing out.
        suite: name of the suite of test sets; empty for the environments of the dataset.
        wise_ft_alpha: alpha of WiSE-FT; None for the weights of the checkpoint.
        unmeasured: reason why metrics of the file are None; empty if all were measured.
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
    image_sets: Annotated[list[ImageSetFacts], Len(1)]
    temperature: Temperature | None
    validation: list[ValidationAccuracy] = dataclasses.field(default_factory=list)
    suite: str = ""
    wise_ft_alpha: float | None = None
    unmeasured: str = ""

    @property
    def key(self) -> EvaluationKey:
        """The part of the facts that names the files."""
        return EvaluationKey(self.step, self.suite, self.wise_ft_alpha)

    def covers(self, expected: EvaluationFacts) -> bool:
        """Return True if the file has the ``expected`` test sets of the same weights and images.

        The temperature counts only if one is expected.
        """
        image_sets = {image_set.name: image_set for image_set in self.image_sets}
        as_expected = dataclasses.replace(
            expected,
            data=self.data,
            images=self.images,
            image_sets=self.image_sets,
            temperature=expected.temperature or self.temperature,
            unmeasured=self.unmeasured,
        )
        return self == as_expected and all(
            image_sets.get(image_set.name) == image_set for image_set in expected.image_sets
        )

    def matches(self, job: Job) -> bool:
        """Return True if the facts describe an evaluation of this job."""
        identity = {name: getattr(self, name) for name in IDENTITY}
        return job.key.test_envs == set(self.test_envs) and all(
            job.args[name] == value for name, value in identity.items()
        )


@dataclass(frozen=True)
class ImageSetMetrics(Metrics):
    """Metrics of an evaluated run on one split or test set.

    Attributes:
        image_set: the split or test set.
        zero_shot_accuracy: accuracy of zero-shot CLIP in [0, 1], or None if it was not measured.
        flips: images gained and lost against zero-shot CLIP, or None if they were not counted.
        scaled: calibration at the fitted temperature, or None without one.
        temperature: the fitted temperature, or None.
    """

    image_set: ImageSetFacts
    zero_shot_accuracy: float | None
    flips: Flips | None
    scaled: Calibration | None
    temperature: float | None

    @property
    def correct(self) -> int:
        """Number of correctly predicted images."""
        return round(self.accuracy * self.image_set.images)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% confidence interval of the accuracy."""
        return wilson_interval(self.correct, self.image_set.images)

    @property
    def gained_share(self) -> float | None:
        """Share of the images that only the run predicts correctly."""
        return self.flips.gained / self.image_set.images if self.flips else None

    @property
    def lost_share(self) -> float | None:
        """Share of the images that only zero-shot CLIP predicts correctly."""
        return self.flips.lost / self.image_set.images if self.flips else None

    @property
    def net_gained_share(self) -> float | None:
        """Share of the images gained minus share of the images lost."""
        if self.gained_share is None or self.lost_share is None:
            return None
        return self.gained_share - self.lost_share


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval (JASA 22, 1927) of the share ``correct / count``."""
    from scipy import stats  # takes a second to import

    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class RunMetrics:
    """Metrics of a run at one step, in the order of its sets of images."""

    facts: EvaluationFacts
    image_sets: Annotated[list[ImageSetMetrics], Len(1)]

    def get_environment(self, number: int) -> ImageSetMetrics | None:
        """Return the metrics on an environment, or None if it was not evaluated."""
        return next((part for part in self.image_sets if part.image_set.number == number), None)

    def get_image_set(self, name: str) -> ImageSetMetrics | None:
        """Return the metrics on a split or test set, or None if it was not evaluated."""
        return next((part for part in self.image_sets if part.image_set.name == name), None)

    @property
    def in_domain(self) -> float | None:
        """Mean accuracy over the out-splits of the training environments, in [0, 1].

        The images are not augmented, unlike those of the tables' in-domain accuracy. None if the
        validation splits were not evaluated.
        """
        accuracies = [part.correct / part.image_set.images for part in self.facts.validation]
        if not self.facts.test_envs:
            accuracies = [part.accuracy for part in self.image_sets]
        return fmean(accuracies) if accuracies else None


def measure_run(predictions: PredictionArray, facts: EvaluationFacts) -> RunMetrics:
    """Compute the metrics of all sets of images from RECORDED_PREDICTION of each image."""
    ends = np.cumsum([image_set.images for image_set in facts.image_sets])
    image_sets = [
        measure_image_set(
            part,
            image_set,
            facts.classes,
            temperature=facts.temperature,
            has_zero_shot=not facts.unmeasured,
        )
        for image_set, part in zip(facts.image_sets, np.split(predictions, ends[:-1]))
    ]
    return RunMetrics(facts, image_sets)


def measure_image_set(
    predictions: PredictionArray,
    image_set: ImageSetFacts,
    classes: Sequence[str],
    *,
    temperature: Temperature | None = None,
    has_zero_shot: bool = False,
) -> ImageSetMetrics:
    """Compute the metrics of a split or test set.

    Args:
        predictions: the predictions of its images.
        image_set: the split or test set.
        classes: the names of the run's classes in label order.
        temperature: the fitted temperature, if the predictions have the fields
            SCALED_PROBABILITIES.
        has_zero_shot: True if the predictions have the fields of ZERO_SHOT_PREDICTION.
    """
    zero_shot_accuracy = flips = None
    if has_zero_shot:
        run_is_correct = is_correct(predictions)
        zero_shot_is_correct = predictions["zero_shot"] == predictions["label"]
        zero_shot_accuracy = float(zero_shot_is_correct.mean())
        flips = Flips(
            gained=int((run_is_correct & ~zero_shot_is_correct).sum()),
            lost=int((~run_is_correct & zero_shot_is_correct).sum()),
            both_right=int((run_is_correct & zero_shot_is_correct).sum()),
            both_wrong=int((~run_is_correct & ~zero_shot_is_correct).sum()),
        )
    return ImageSetMetrics(
        **vars(measure(predictions, image_set.classes or classes)),
        image_set=image_set,
        zero_shot_accuracy=zero_shot_accuracy,
        flips=flips,
        scaled=measure_calibration(predictions, SCALED) if temperature else None,
        temperature=temperature.value if temperature else None,
    )


def predictions_path(folder: Path, key: EvaluationKey) -> Path:
    """Return the path of the predictions in a job's folder."""
    return folder / f"{key.stem}.npz"


def metrics_path(folder: Path, key: EvaluationKey) -> Path:
    """Return the path of the metrics in a job's folder."""
    return folder / f"{key.stem}.json"


def list_suite_evaluations(folder: Path) -> list[EvaluationKey]:
    """Return the evaluations on suites that have metrics in a job's folder, in order."""
    with contextlib.suppress(OSError):
        matches = filter(None, map(_SUITE_FILE.fullmatch, sorted(os.listdir(folder))))
        return [
            EvaluationKey(int(step), suite, float(alpha) if alpha else None)
            for step, suite, alpha in (match.groups() for match in matches)
        ]
    return []


def save_predictions(folder: Path, predictions: PredictionArray, facts: EvaluationFacts) -> None:
    """Write the file of predictions atomically, or raise CarftError."""
    arrays.save_arrays(
        predictions_path(folder, facts.key), {"predictions": predictions}, dataclasses.asdict(facts)
    )


def load_predictions(folder: Path, key: EvaluationKey) -> tuple[PredictionArray, EvaluationFacts]:
    """Load the predictions and their facts; raise CarftError if the file is missing or damaged.

    Returns:
        The predictions of all sets of images, one set after the other, with the fields of
        RECORDED_PREDICTION, and the facts.
    """
    path = predictions_path(folder, key)
    content, columns = arrays.load_arrays(path, {"predictions": RECORDED_PREDICTION}, "images")
    facts = _validate(EvaluationFacts, content, path)
    predictions = columns["predictions"]
    if sum(image_set.images for image_set in facts.image_sets) != facts.images:
        raise _damaged(path, "predictions")
    ends = np.cumsum([image_set.images for image_set in facts.image_sets])
    for image_set, part in zip(facts.image_sets, np.split(predictions, ends[:-1])):
        largest_label = max(int(part[name].max()) for name in ("label", "predicted", "zero_shot"))
        if largest_label >= len(image_set.classes or facts.classes):
            raise _damaged(path, "predictions")
    return predictions, facts


def save_metrics(folder: Path, metrics: RunMetrics) -> None:
    """Write the file of metrics atomically unless it is up to date, or raise CarftError."""
    text = json.dumps(dataclasses.asdict(metrics), indent=1, sort_keys=True) + "\n"
    path = metrics_path(folder, metrics.facts.key)
    with contextlib.suppress(OSError):
        if files.read_regular(path) == text.encode():
            return
    files.save_text(path, text)


def load_metrics(folder: Path, key: EvaluationKey) -> RunMetrics:
    """Return the metrics of a job's run; raise CarftError with the reason if there are none.

    All columns of a table share one reading of the file, until it changes.
    """
    path = metrics_path(folder, key)
    with contextlib.suppress(FileNotFoundError):
        try:
            status = os.stat(path)
            return _read_metrics(path, (status.st_mtime_ns, status.st_size))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CarftError(f"{path} cannot be read: {error.strerror}") from error

    names = (*WEIGHTS.values(), f"model_step{key.step}.pkl")
    if not any((folder / name).exists() for name in names):
        raise CarftError(f"the weights of step {key.step} were not kept")
    command = f"carft evaluate --suite {key.suite}" if key.suite else "carft evaluate"
    raise CarftError(f"not evaluated; run {command} on the sweep")


@functools.lru_cache(maxsize=_CACHED_METRICS)
def _read_metrics(path: Path, state: tuple[int, int]) -> RunMetrics:
    """Read a file of metrics in a ``state``: the time of its last change, and its size."""
    content = files.read_regular(path)
    try:
        document = json.loads(content)
    except ValueError as error:
        raise _damaged(path, "content") from error
    return _validate(RunMetrics, document, path)


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
