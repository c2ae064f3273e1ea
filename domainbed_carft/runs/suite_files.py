"""Evaluate a run on a suite, and save the evaluation in the folder of its job.

Each alpha of WiSE-FT has two files of its own, with the format of evaluations on the environments
of the job's dataset. No image of the training dataset is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import metrics
from domainbed_carft.results.metrics import (
    EvaluationFacts,
    EvaluationKey,
    PredictionArray,
    Temperature,
    join_predictions,
)
from domainbed_carft.runs import saved
from domainbed_carft.runs.predictions import LoadingOptions, Predictor, make_predictor
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.scores import Scores, describe_evaluation, describe_run
from domainbed_carft.runs.suites import SuitePredictions, SuiteTest, make_suite_test
from domainbed_carft.runs.sweep_run import SweepOptions
from domainbed_carft.runs.zero_shot import predict_test_set_zero_shot

NO_ZERO_SHOT = (
    "the original CLIP model was not found; run carft evaluate --suite again, with --original"
)


def measure_on_suite(
    name: str,
    run: Run,
    options: LoadingOptions,
    *,
    record: bool = False,
    original: str | None = None,
) -> Scores:
    """Measure a run on the suite called ``name``; raises as `make_suite_test` does.

    Args:
        name: name of the suite.
        run: the run.
        options: how to load the images.
        record: save the evaluation in the folder of the run's job.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.
    """
    test = make_suite_test(name, run, options)
    predict = make_predictor(run, options.device)
    if record:
        (scores,) = measure_and_record(test, run, predict, [describe_run(run)], original)
    else:
        (scores,) = test.measure(predict, [describe_run(run)])
    return scores


def measure_and_record(
    test: SuiteTest,
    run: Run,
    predict: Predictor,
    descriptions: Sequence[Scores],
    original: str | None = None,
) -> list[Scores]:
    """Measure variants of a run's weights on a suite, and save them if the run has a job's folder.

    Nothing is saved if a test set cannot be read, since an earlier evaluation can be complete. If
    the files cannot be written, the scores have the reason.

    Args:
        test: the test sets.
        run: the run.
        predict: returns the logits of a batch for each variant.
        descriptions: the descriptions of the variants, without scores.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.
    """
    step = _find_step(run)
    if step is None:
        return test.measure(predict, descriptions)

    has_temperature = [description.wise_ft_alpha for description in descriptions] == [None]
    facts = describe_suite_evaluation(test, run, step)
    if not has_temperature:
        facts = dataclasses.replace(facts, temperature=None)
    predictions = test.predict(
        _add_temperature(predict, facts.temperature),
        variants=2 if facts.temperature else len(descriptions),
    )
    unsaved = ""
    if not predictions.unread:
        try:
            _save(test, run, facts, predictions, descriptions, original)
        except CarftError as error:  # the scores are still worth reporting
            unsaved = str(error)
    return [
        dataclasses.replace(test.score(predictions, variant, description), unsaved=unsaved)
        for variant, description in enumerate(descriptions)
    ]


def _find_step(run: Run) -> int | None:
    """Return the step by which an evaluation of the run is saved, or None if it has no job folder.

    A soup in a job's folder is not the job's run.
    """
    file = run.path.parent / RECORDS
    if run.soup is not None or not file.is_file():
        return None
    if run.step is not None:
        return run.step
    steps = [int(record["step"]) for _, record in records.read_keyed_records(file, warnings=[])]
    return max(steps, default=None)


def describe_suite_evaluation(test: SuiteTest, run: Run, step: int) -> EvaluationFacts:
    """Return the facts of the evaluation of a run's weights on a suite.

    The temperature is the one that the evaluation of the same weights on the job's dataset has
    fitted, if there is one.

    Raises:
        CarftError: if an image is missing.
    """
    try:
        image_sets = [
            dataclasses.replace(image_set.facts, digest=test.hash_images(name))
            for name, image_set in test.image_sets.items()
        ]
    except OSError as error:
        raise CarftError(f"{error.filename} cannot be read: {error.strerror}") from error
    data = "".join(f"{image_set.name} {image_set.digest}\n" for image_set in image_sets)
    facts = describe_evaluation(run, step, image_sets, hashlib.sha256(data.encode()).hexdigest())
    return dataclasses.replace(
        facts,
        suite=test.suite.name,
        temperature=_find_temperature(run.path.parent, step, facts.weights),
    )


def _find_temperature(folder: Path, step: int, weights_digest: str) -> Temperature | None:
    with contextlib.suppress(CarftError):  # not evaluated on its dataset
        facts = metrics.load_metrics(folder, EvaluationKey(step)).facts
        if facts.weights == weights_digest:
            return facts.temperature
    return None


def _add_temperature(predict: Predictor, temperature: Temperature | None) -> Predictor:
    """Return a predictor that also returns the logits at the temperature, if there is one."""
    if temperature is None:
        return predict
    divisor = temperature.value

    def predict_at_temperatures(images: Tensor) -> Iterator[Tensor]:
        (logits,) = predict(images)
        yield logits
        yield logits.double() / divisor

    return predict_at_temperatures


def _save(
    test: SuiteTest,
    run: Run,
    facts: EvaluationFacts,
    predicted: SuitePredictions,
    descriptions: Sequence[Scores],
    original: str | None,
) -> None:
    """Save predictions and metrics of each variant."""
    names = [image_set.name for image_set in facts.image_sets]
    zero_shot: list[PredictionArray] = []
    try:
        for facts_of_set in facts.image_sets:
            predictions = predict_test_set_zero_shot(
                run,
                test.image_sets[facts_of_set.name],
                facts_of_set.digest,
                test.options,
                original,
            )
            zero_shot.append(predictions)
    except CarftError:
        if original is not None:
            raise
        zero_shot = []
        facts = dataclasses.replace(facts, unmeasured=NO_ZERO_SHOT)

    for variant, description in enumerate(descriptions):
        predictions = join_predictions(
            raw=[predicted.by_set[name][variant] for name in names],
            zero_shot=zero_shot,
            scaled=[predicted.by_set[name][variant + 1] for name in names if facts.temperature],
        )
        variant_facts = dataclasses.replace(facts, wise_ft_alpha=description.wise_ft_alpha)
        metrics.save_predictions(run.path.parent, predictions, variant_facts)
        metrics.save_metrics(run.path.parent, metrics.measure_run(predictions, variant_facts))


def measure_recorded_run_on_suite(
    recorded: RecordedRun,
    step: int,
    suite: str,
    skipped: Collection[str],
    options: SweepOptions,
) -> bool:
    """Evaluate a run at a step on a suite, and save its predictions and metrics in its folder.

    If the folder has predictions of the same weights, images and prompts, only the metrics are
    computed.

    Args:
        recorded: the run.
        step: the step.
        suite: name of the suite.
        skipped: names of test sets to skip.
        options: how to load the images.

    Returns:
        True if the images had to be predicted.

    Raises:
        CarftError: if the run cannot be opened, or a test set cannot be found or read.
    """
    folder = Path(recorded.folder)
    earlier = None
    with contextlib.suppress(CarftError):  # the file is missing or damaged
        earlier = metrics.load_predictions(folder, EvaluationKey(step, suite))

    run = saved.open_step(recorded, step)
    if run is None:  # weights deleted after an evaluation: its predictions are still valid
        if earlier is None or not earlier[1].matches(recorded.job):
            raise CarftError(f"weights of step {step} were not kept")
    else:
        loading = options.for_loading(suite)
        test = make_suite_test(suite, run, loading, skipped)
        expected = describe_suite_evaluation(test, run, step)
        is_current = earlier is not None and earlier[1].covers(expected)
        if earlier is None or not is_current or (options.original and earlier[1].unmeasured):
            predict = make_predictor(run, loading.device)
            (scores,) = measure_and_record(
                test, run, predict, [describe_run(run)], options.original
            )
            _require_saved(scores)
            return True

    metrics.save_metrics(folder, metrics.measure_run(*earlier))
    return False


def _require_saved(scores: Scores) -> None:
    """Raise CarftError if a test set could not be read, or the files could not be written."""
    if scores.unread:
        reasons = [f"{name}: {'; '.join(scores.problems[name])}" for name in scores.unread]
        raise CarftError(f"{scores.suite} cannot be read: {'; '.join(reasons)}")
    if scores.unsaved:
        raise CarftError(scores.unsaved)
