"""Evaluate one selected run of a sweep, and save its predictions and metrics in its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.images.squares import get_memory
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.machine.devices import choose_device
from domainbed_carft.results import metrics
from domainbed_carft.results.metrics import (
    EvaluationFacts,
    EvaluationKey,
    PredictionArray,
    Temperature,
    ValidationAccuracy,
    is_correct,
    join_predictions,
)
from domainbed_carft.runs import BATCH_SIZE, saved
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    Predictor,
    make_predictor,
    predict_image_sets,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.scores import describe_evaluation
from domainbed_carft.runs.splits import (
    ImageSet,
    JobData,
    get_environment_positions,
    hash_images,
    read_data,
)
from domainbed_carft.runs.temperature import fit_temperature, make_logit_predictions
from domainbed_carft.runs.zero_shot import predict_zero_shot


@dataclass(frozen=True)
class SweepOptions:
    """Options for evaluating the runs of a sweep.

    Attributes:
        device: such as "cpu" or "cuda:1"; None for the GPU if there is one.
        batch_size: images per batch.
        workers: number of processes that load images; None for one per core if there are many
            images.
        data_dir: folder of the data; None for the recorded one.
        original: the CLIP checkpoint that the runs started from; required unless it is a published
            one.
    """

    device: str | None = None
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None
    original: str | None = None

    def for_loading(self, images: str) -> LoadingOptions:
        """Return the options of this process for loading ``images``, the name of a dataset."""
        return LoadingOptions(
            device=choose_device(self.device),
            batch_size=self.batch_size,
            workers=self.workers,
            data_dir=self.data_dir,
            memory=get_memory(images),
        )


def measure_recorded_run(recorded: RecordedRun, step: int, options: SweepOptions) -> bool:
    """Evaluate a run at a step, and save its predictions and metrics in its folder.

    If the folder has predictions of the same weights, images and prompts, only the metrics are
    computed.

    Returns:
        True if the images had to be predicted.

    Raises:
        CarftError: if the original, the weights of the step or an image cannot be read.
    """
    folder = Path(recorded.folder)
    earlier = None
    with contextlib.suppress(CarftError):  # the file is missing or damaged
        earlier = metrics.load_predictions(folder, EvaluationKey(step))

    run = saved.open_step(recorded, step)
    task = prepare(run, step, options.data_dir) if run else None
    if task:
        is_current = earlier is not None and task.facts == dataclasses.replace(
            earlier[1], temperature=None, validation=[]
        )
    else:  # if the weights were deleted after an evaluation, its predictions are still valid
        is_current = earlier is not None and earlier[1].matches(recorded.job)
    if earlier and is_current:
        predictions, facts = earlier
    elif task:
        loading = options.for_loading(recorded.dataset)
        with torch.random.fork_rng(devices=[]):
            predictions, facts = predict_task(task, loading, options.original)
        metrics.save_predictions(folder, predictions, facts)
    else:
        raise CarftError(f"weights of step {step} were not kept")

    metrics.save_metrics(folder, metrics.measure_run(predictions, facts))
    return not is_current


@dataclass(frozen=True)
class EvaluationTask:
    """A run at one step, with the images that its evaluation needs.

    Attributes:
        run: the run.
        data: its data, with test-transformed images.
        reported: non-empty splits whose accuracy the tables report: the in-splits of the targets,
            or the out-splits if the job has no target.
        validation: non-empty out-splits of the training environments, to fit the temperature; [] if
            the job has no target.
        facts: the facts of the evaluation, without temperature and validation splits.
    """

    run: Run
    data: JobData
    reported: list[ImageSet]
    validation: list[ImageSet]
    facts: EvaluationFacts


def prepare(run: Run, step: int, data_dir: str | None = None) -> EvaluationTask:
    """Return the task of a run.

    Raises CarftError as `splits.read_data` does, and if the targets have no in-split.
    """
    data = read_data(run, data_dir, is_augmented=False)
    reported = [part for part in data.splits if part.name.endswith("_out") and len(part)]
    validation = []
    if run.args["test_envs"]:
        validation = [part for part in reported if not part.is_target]
        in_splits = [part for part in data.splits if part.name.endswith("_in") and len(part)]
        reported = [part for part in in_splits if part.is_target]
    if not reported:
        raise CarftError(f"{run.path} has no images in the splits that the tables report")

    digest = _hash_data(data, [*reported, *validation])
    facts = describe_evaluation(run, step, [image_set.facts for image_set in reported], digest)
    return EvaluationTask(run, data, reported, validation, facts)


def _hash_data(data: JobData, parts: Sequence[ImageSet]) -> str:
    """Return a SHA-256 of all images of the splits, split by split."""
    digest = hashlib.sha256()
    for part in parts:
        environment = data.dataset[part.number]
        positions = get_environment_positions(part)
        images = hash_images(environment, positions)
        digest.update(f"{part.name} {part.environment} {images}\n".encode())
    return digest.hexdigest()


def predict_task(
    task: EvaluationTask, options: LoadingOptions, original: str | None
) -> tuple[PredictionArray, EvaluationFacts]:
    """Predict the images of a task.

    Args:
        task: the run and its images.
        options: how to load the images.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.

    Returns:
        The predictions of the reported splits, and the facts with temperature and validation
        splits.
    """
    predict = make_predictor(task.run, options.device)
    temperature, validation = _fit_temperature(task, predict, options)

    def predict_at_temperatures(images: Tensor) -> Iterator[Tensor]:
        (logits,) = predict(images)
        yield logits
        if temperature:
            yield logits.double() / temperature.value

    raw, *scaled = predict_image_sets(
        task.reported, predict_at_temperatures, options, variants=2 if temperature else 1
    )
    zero_shot = [
        predict_zero_shot(task.run, task.data, split, options, original) for split in task.reported
    ]
    predictions = join_predictions(raw, zero_shot, *scaled)
    return predictions, dataclasses.replace(
        task.facts, temperature=temperature, validation=validation
    )


def _fit_temperature(
    task: EvaluationTask, predict: Predictor, options: LoadingOptions
) -> tuple[Temperature | None, list[ValidationAccuracy]]:
    """Fit the temperature on the validation splits, if there are any, and count correct images."""
    if not task.validation:
        return None, []
    (parts,) = predict_image_sets(
        task.validation, predict, options, make_predictions=make_logit_predictions
    )
    predictions = np.concatenate(parts)
    temperature = fit_temperature(
        torch.from_numpy(predictions["logits"].copy()).to(options.device),
        torch.from_numpy(predictions["label"].astype(np.int64)).to(options.device),
    )
    validation = [
        ValidationAccuracy(split.facts, correct=int(is_correct(part).sum()))
        for split, part in zip(task.validation, parts)
    ]
    return temperature, validation
