"""The process that `carft evaluate OUT` starts to evaluate one run, or several runs on a suite.

Usage: `python -m domainbed_carft.runs.sweep_job TASK`, with the task as JSON. The result is the
exit status and the last line of standard error. Figures are saved in the runs' folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.jobs import records
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import evaluations
from domainbed_carft.results.evaluations import (
    EvaluatedRows,
    EvaluatedSplit,
    EvaluationFacts,
    ImageRows,
    Temperature,
    ValidationSplit,
)
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    Predictor,
    choose_device,
    predict_rows,
    split_batches,
)
from domainbed_carft.runs.run import Run, require_finite
from domainbed_carft.runs.splits import RunData, Split
from domainbed_carft.runs.suites import (
    SuiteEvaluation,
    append_record,
    describe_weights,
    get_evaluation_plan,
    make_suite_test,
    require_classes,
)
from domainbed_carft.runs.zero_shot import get_zero_shot_columns
from domainbed_carft.suites import catalogue
from domainbed_carft.text import printable

# Imported here so that the fork server does it once for all processes. Without numba, or with an
# incompatible numpy, torch and Pillow are used instead.
with contextlib.suppress(Exception):
    importlib.import_module("domainbed_carft.images.compiled")

MODULE = "domainbed_carft.runs.sweep_job"

# Exit statuses; 0 means that the run was evaluated now.
FAILED = 1
CURRENT = 3  # the files in the folder are up to date

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
_PRECISION = 1e-15  # of the logarithm of the temperature


def main(argv: Sequence[str] | None = None) -> int:
    """Run the task in the argument, and return the exit status."""
    (text,) = argv or sys.argv[1:]
    task = json.loads(text)
    try:
        options = LoadingOptions(
            device=choose_device(task["device"]),
            batch_size=task["batch_size"],
            workers=task["workers"],
            data_dir=task["data_dir"],
        )
        if "suite" in task:
            files = [Path(file) for file in task["weights"]]
            evaluate_together(files, task["suite"], options, skipped=task["skipped"])
            return 0
        if evaluate_run(Path(task["folder"]), task["step"], options, task["original"]):
            return 0
        return CURRENT
    except (CarftError, OSError, RuntimeError) as error:  # RuntimeError: torch is out of memory
        print(printable(str(error).splitlines()[0]), file=sys.stderr)
        return FAILED


def evaluate_run(
    folder: Path, step: int, options: LoadingOptions, original: str | None = None
) -> bool:
    """Evaluate a run at a step and save its rows and figures in its folder.

    If the folder has rows of the same weights, images and prompts, only the figures are computed.

    Args:
        folder: folder of the run's job.
        step: the step whose weights are evaluated.
        options: how to load the images.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.

    Returns:
        True if the images had to be predicted.

    Raises:
        CarftError: if the original, the weights of the step or an image cannot be read.
    """
    recorded = _find_recorded_run(folder, step)
    earlier = None
    with contextlib.suppress(CarftError):  # the file is missing or damaged
        earlier = evaluations.load_rows(folder, step)

    run = saved.open_step(recorded, step)
    if run is None:
        # If the weights were deleted after an evaluation, its rows are still valid.
        if earlier is None or not earlier[1].matches(recorded.job):
            raise CarftError(f"weights of step {step} were not kept")
        _save_figures(folder, *earlier)
        return False

    task = prepare(run, step, options.data_dir)
    facts = describe_task(task)
    if earlier and dataclasses.replace(earlier[1], temperature=None, validation=[]) == facts:
        _save_figures(folder, *earlier)
        return False

    with torch.random.fork_rng(devices=[]):
        rows, facts = evaluate_images(task, facts, options, original)
    evaluations.save_rows(folder, rows, facts)
    _save_figures(folder, rows, facts)
    return True


def _find_recorded_run(folder: Path, step: int) -> RecordedRun:
    """Return the run whose records in the folder contain this step."""
    runs, _ = records.read([folder])
    run = next((candidate for candidate in runs if step in candidate.steps), None)
    if run is None:
        raise CarftError(f"{folder} has no record of step {step}")
    return run


def _save_figures(folder: Path, rows: EvaluatedRows, facts: EvaluationFacts) -> None:
    """Write the figures of the rows, unless the folder already has them."""
    figures = evaluations.measure_run(rows, facts)
    if evaluations.find_metrics(folder, facts.step) != figures:
        evaluations.save_metrics(folder, figures)


@dataclass(frozen=True)
class EvaluationTask:
    """A run at one step, with the images that its evaluation needs."""

    run: Run
    step: int
    data: RunData
    # Non-empty splits whose accuracy the tables report: the in-splits of the targets, or the
    # out-splits if the job has no target.
    reported: list[Split]
    # Non-empty out-splits of the training environments, to fit the temperature; [] if the job has
    # no target.
    validation: list[Split]


def prepare(run: Run, step: int, data_dir: str | None = None) -> EvaluationTask:
    """Return the task of a run, with test-transformed images.

    Raises CarftError as `splits.read_splits` does, and if the targets have no in-split.
    """
    data = splitting.read_data(run, data_dir, is_augmented=False)
    reported = [part for part in data.splits if part.name.endswith("_out") and len(part)]
    validation = []
    if run.args["test_envs"]:
        validation = [part for part in reported if not part.is_target]
        in_splits = [part for part in data.splits if part.name.endswith("_in") and len(part)]
        reported = [part for part in in_splits if part.is_target]
    if not reported:
        raise CarftError(f"{run.path} has no images in the splits that the tables report")
    return EvaluationTask(run, step, data, reported, validation)


def describe_task(task: EvaluationTask) -> EvaluationFacts:
    """Return the facts of a task, without temperature and validation splits."""
    run = task.run
    return EvaluationFacts(
        format=evaluations.FORMAT,
        dataset=run.args["dataset"],
        algorithm=run.args["algorithm"],
        test_envs=list(run.args["test_envs"]),
        trial_seed=run.args.get("trial_seed") or 0,
        hparams_seed=run.args.get("hparams_seed") or 0,
        step=task.step,
        weights=weights.sha256(run.path),
        data=_hash_data(task),
        prompts_digest=run.hparams["prompts_digest"],
        clip_digest=run.hparams["clip_digest"],
        classes=list(run.classes),
        contexts=list(run.contexts),
        images=sum(map(len, task.reported)),
        splits=[
            EvaluatedSplit(part.environment, part.number, part.name, len(part))
            for part in task.reported
        ],
        temperature=None,
    )


def _hash_data(task: EvaluationTask) -> str:
    """Return a SHA-256 of all images that are predicted, split by split."""
    digest = hashlib.sha256()
    for part in (*task.reported, *task.validation):
        environment = task.data.dataset[part.number]
        positions = splitting.get_environment_positions(part)
        images = splitting.hash_images(environment, positions)
        digest.update(f"{part.name} {part.environment} {images}\n".encode())
    return digest.hexdigest()


def evaluate_images(
    task: EvaluationTask,
    facts: EvaluationFacts,
    options: LoadingOptions,
    original: str | None = None,
) -> tuple[EvaluatedRows, EvaluationFacts]:
    """Predict the images of a task.

    Args:
        task: the run and its images.
        facts: the facts of the task.
        options: how to load the images.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.

    Returns:
        The rows of the reported splits, and the facts with temperature and validation splits.
    """
    algorithm = task.run.algorithm.to(options.device)
    temperature, validation = _validate(task, options)

    def predict_at_temperatures(images: Tensor) -> Iterator[Tensor]:
        logits = algorithm.predict(images)
        yield logits
        if temperature:
            yield logits.double() / temperature.value

    rows = predict_rows(
        task.reported, predict_at_temperatures, options, variants=2 if temperature else 1
    )
    zero_shot = [
        get_zero_shot_columns(task.run, task.data, part, options, original)
        for part in task.reported
    ]
    evaluated_rows = EvaluatedRows(
        raw=ImageRows.concatenate(rows[0]),
        scaled=ImageRows.concatenate(rows[1]) if temperature else None,
        zero_shot=np.concatenate([columns.predicted for columns in zero_shot]),
        alignment=np.concatenate([columns.alignment for columns in zero_shot]),
    )
    return evaluated_rows, dataclasses.replace(
        facts, temperature=temperature, validation=validation
    )


@torch.no_grad()
def _validate(
    task: EvaluationTask, options: LoadingOptions
) -> tuple[Temperature | None, list[ValidationSplit]]:
    """Fit the temperature on the validation splits, if there are any, and count correct images."""
    logits = []
    labels = []
    correct: Counter[int] = Counter()
    for batch in split_batches(task.validation, options.batch_size, options.workers):
        batch_logits = task.run.algorithm.predict(batch.images.to(options.device))
        require_finite(batch_logits.amax(dim=1))
        batch_labels = batch.labels.to(options.device)
        correct[batch.position] += int((batch_logits.argmax(dim=1) == batch_labels).sum())
        logits.append(batch_logits.float())
        labels.append(batch_labels)

    validation = [
        ValidationSplit(part.environment, part.number, part.name, len(part), correct[position])
        for position, part in enumerate(task.validation)
    ]
    temperature = fit_temperature(torch.cat(logits), torch.cat(labels)) if logits else None
    return temperature, validation


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """Return the temperature with minimal mean negative log-likelihood (Guo et al., ICML 2017).

    Args:
        logits: (N, K), of any floating-point type, N > 0.
        labels: (N,).

    Returns:
        A temperature from MIN_TEMPERATURE to MAX_TEMPERATURE. If all images are predicted
        correctly, the optimum is 0, so MIN_TEMPERATURE is returned.
    """
    exact_logits = logits.double()
    true_logits = exact_logits.gather(1, labels[:, None]).squeeze(1)

    def slope(log_temperature: float) -> float:
        """Return the derivative of the mean negative log-likelihood by the inverse temperature.

        The negative log-likelihood is convex in the inverse temperature, so the derivative has at
        most one root.
        """
        probabilities = (exact_logits / math.exp(log_temperature)).softmax(dim=1)
        mean = (probabilities * exact_logits).sum(dim=1)
        return float((mean - true_logits).mean())

    minimum = math.log(MIN_TEMPERATURE)
    maximum = math.log(MAX_TEMPERATURE)
    if slope(minimum) <= 0:
        return Temperature(MIN_TEMPERATURE, len(labels), is_at_limit=True)
    if slope(maximum) >= 0:
        return Temperature(MAX_TEMPERATURE, len(labels), is_at_limit=True)
    root = optimize.brentq(slope, minimum, maximum, xtol=_PRECISION)
    return Temperature(math.exp(root), len(labels), is_at_limit=False)


def evaluate_together(
    files: Sequence[Path], suite: str, options: LoadingOptions, skipped: Collection[str] = ()
) -> None:
    """Evaluate runs on a suite and add records to their suites.jsonl.

    Runs with the same transform share one pass over the images. If a test set cannot be read, the
    runs of that pass get no record.

    Args:
        files: weights files of the runs.
        suite: name of the suite.
        options: how to load the images.
        skipped: names of test sets to skip.

    Raises:
        CarftError: if a run cannot be opened, or a test set cannot be found or read.
    """
    runs_by_plan: dict[ImagePlan, list[Run]] = defaultdict(list)
    for file in files:
        run = saved.open_run(file)
        require_classes(run, catalogue.get(suite))
        runs_by_plan[get_evaluation_plan(run)].append(run)

    options = dataclasses.replace(options, workers=options.workers or 0)
    for runs in runs_by_plan.values():
        test = make_suite_test(suite, runs[0], options, skipped)
        all_scores = test.measure(_make_joint_predictor(runs, options), variants=len(runs))
        first = all_scores[0]
        if first.unread:
            reasons = [f"{name}: {'; '.join(first.problems[name])}" for name in first.unread]
            raise CarftError(f"{suite} cannot be read: {'; '.join(reasons)}")
        for run, scores in zip(runs, all_scores, strict=True):
            append_record(run.path, SuiteEvaluation(describe_weights(run), scores))


def _make_joint_predictor(runs: Sequence[Run], options: LoadingOptions) -> Predictor:
    """Return a predictor with one variant per run.

    Runs that do not train the encoder share the image features of the CLIP model that they started
    from.
    """
    algorithms = [run.algorithm.to(options.device) for run in runs]

    def predict(images: Tensor) -> Iterator[Tensor]:
        features_by_clip: dict[tuple[str, str], Tensor] = {}
        for algorithm in algorithms:
            if algorithm.trains_encoder:
                yield algorithm.predict(images)
                continue

            clip = (str(algorithm.hparams["clip_digest"]), str(algorithm.hparams["amp"]))
            if clip not in features_by_clip:
                features_by_clip[clip] = algorithm.features(images)
            yield algorithm.class_logits(features_by_clip[clip])

    return predict


if __name__ == "__main__":
    sys.exit(main())
