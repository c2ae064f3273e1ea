"""A run evaluated picture by picture: on its targets, calibrated on its training environments."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.jobs.job import Job
from domainbed_carft.results import picture_rows
from domainbed_carft.results.calibration import PredictedProbabilities
from domainbed_carft.results.picture_rows import (
    EvaluatedSplit,
    EvaluationFacts,
    PictureRows,
    Temperature,
)
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.measuring import LoadingOptions, split_batches
from domainbed_carft.runs.picture_digest import digest_of_pictures
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.splits import RunData, Split
from domainbed_carft.runs.temperature import fit_temperature, probability_columns
from domainbed_carft.runs.zero_shot import zero_shot_columns


@dataclass(frozen=True)
class EvaluationTask:
    """A run at one step, on the pictures that its evaluation needs, all as the model takes them.

    ``reported``: the splits whose accuracy the tables report: the in-splits of the targets, or
    without any the out-splits. ``validation``: the out-splits of the training environments, that
    the temperature is fitted on; none without a target.
    """

    run: TrainedRun
    step: int
    data: RunData
    reported: list[Split]
    validation: list[Split]


def prepare(run: TrainedRun, step: int, data_dir: str | None = None) -> EvaluationTask:
    """The task of a run, its pictures through the test transform.

    Raises CarftError as `splits.splits`, and for a run whose targets have no in-split.
    """
    data = splitting.read_data(run, data_dir, is_augmented=False)
    has_targets = bool(run.args["test_envs"])
    out_splits = [part for part in data.splits if part.name.endswith("_out")]
    reported = out_splits
    validation = []
    if has_targets:
        reported = [part for part in data.splits if part.is_target and part.name.endswith("_in")]
        validation = [part for part in out_splits if not part.is_target]

    if not sum(map(len, reported)):
        raise CarftError(f"{run.path} has no pictures whose accuracy the tables report")
    return EvaluationTask(run, step, data, reported, validation)


def facts_of(task: EvaluationTask) -> EvaluationFacts:
    """What the task will measure, without its temperature."""
    run = task.run
    reported = [
        EvaluatedSplit(part.environment, part.number, part.name, len(part))
        for part in task.reported
    ]
    return EvaluationFacts(
        format=picture_rows.FORMAT,
        dataset=run.args["dataset"],
        algorithm=run.args["algorithm"],
        test_envs=list(run.args["test_envs"]),
        trial_seed=run.args.get("trial_seed") or 0,
        hparams_seed=run.args.get("hparams_seed") or 0,
        step=task.step,
        weights=weights.sha256(run.path),
        data=_data_digest(task),
        prompts_digest=run.hparams["prompts_digest"],
        clip_digest=run.hparams["clip_digest"],
        classes=list(run.classes),
        contexts=list(run.contexts),
        pictures=sum(split.pictures for split in reported),
        splits=reported,
        temperature=None,
    )


def _data_digest(task: EvaluationTask) -> str:
    """A SHA-256 of all pictures that are predicted, split by split."""
    digest = hashlib.sha256()
    for part in (*task.reported, *task.validation):
        environment = task.data.dataset[part.number]
        positions = splitting.positions_in_environment(part)
        pictures = digest_of_pictures(environment, positions)
        digest.update(f"{part.name} {part.environment} {pictures}\n".encode())
    return digest.hexdigest()


def is_current(folder: Path, facts: EvaluationFacts) -> bool:
    """Whether the rows in the folder are intact, and of the same weights, data and prompts."""
    with contextlib.suppress(CarftError):
        _, earlier = picture_rows.load_rows(folder, facts.step)
        return dataclasses.replace(earlier, temperature=None) == facts
    return False


def is_of_job(folder: Path, step: int, job: Job) -> bool:
    """Whether the rows in the folder are intact, and of this job."""
    with contextlib.suppress(CarftError):
        _, earlier = picture_rows.load_rows(folder, step)
        return earlier.is_of(job)
    return False


def evaluate_pictures(
    task: EvaluationTask,
    facts: EvaluationFacts,
    options: LoadingOptions,
    original: str | None = None,
) -> tuple[PictureRows, EvaluationFacts]:
    """The rows of the reported splits, and the facts with the temperature.

    ``original``: the CLIP that the run started from, as in `saved.original_clip`. Raises CarftError
    where it or a picture cannot be read.
    """
    task.run.algorithm.to(options.device)
    temperature = _fit(task, options)
    predictions = _predict(task, options, temperature)

    zero_shot = [
        zero_shot_columns(task.run, task.data, part, options, original) for part in task.reported
    ]
    rows = PictureRows(
        label=predictions.labels.numpy().astype(np.uint16),
        predicted=predictions.predicted.numpy().astype(np.uint16),
        zero_shot=np.concatenate([columns.predicted for columns in zero_shot]),
        alignment=np.concatenate([columns.alignment for columns in zero_shot]),
        raw=predictions.raw,
        scaled=predictions.scaled,
    )
    return rows, dataclasses.replace(facts, temperature=temperature)


@torch.no_grad()
def _fit(task: EvaluationTask, options: LoadingOptions) -> Temperature | None:
    """The temperature on the validation splits; None without any picture there."""
    logits = []
    labels = []
    for batch in split_batches(task.validation, options.batch_size, options.workers):
        logits.append(task.run.algorithm.predict(batch.pictures.to(options.device)).float())
        labels.append(batch.labels.to(options.device))
    return fit_temperature(torch.cat(logits), torch.cat(labels)) if logits else None


@dataclass(frozen=True)
class _Predictions:
    """The predictions of N pictures; ``labels`` and ``predicted`` are tensors (N,) on the CPU."""

    labels: Tensor
    predicted: Tensor
    raw: PredictedProbabilities
    scaled: PredictedProbabilities | None


@torch.no_grad()
def _predict(
    task: EvaluationTask, options: LoadingOptions, temperature: Temperature | None
) -> _Predictions:
    labels = []
    predicted = []
    raw_columns = []
    scaled_columns = []
    for batch in split_batches(task.reported, options.batch_size, options.workers):
        logits = task.run.algorithm.predict(batch.pictures.to(options.device))
        batch_labels = batch.labels.to(options.device)
        labels.append(batch.labels)
        predicted.append(logits.argmax(dim=1).cpu())
        raw_columns.append(probability_columns(logits, batch_labels, 1.0))
        if temperature:
            scaled_columns.append(probability_columns(logits, batch_labels, temperature.value))

    return _Predictions(
        labels=torch.cat(labels),
        predicted=torch.cat(predicted),
        raw=_joined(raw_columns),
        scaled=_joined(scaled_columns) if temperature else None,
    )


def _joined(batches: Sequence[Sequence[Tensor]]) -> PredictedProbabilities:
    top, log_true, sum_of_squares = (torch.cat(column).numpy() for column in zip(*batches))
    return PredictedProbabilities(top, log_true, sum_of_squares)
