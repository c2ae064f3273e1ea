"""All selected runs of a sweep on a suite, each picture read once for the runs that share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from domainbed_carft.results import collection, suites
from domainbed_carft.runs import saved
from domainbed_carft.runs.default_weights import choose_weights
from domainbed_carft.runs.measuring import LoadingOptions, Predictor
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.suite_evaluation import append_record, run_facts, suite_test
from domainbed_carft.runs.suite_scores import SuiteEvaluation
from domainbed_carft.suites import records


def evaluate_sweep_on_suite(folder: Path, suite: str, options: LoadingOptions) -> int:
    """Measure each run that validation chose on the sets of a suite that it was not trained on.

    The records are added to the jobs' suites.jsonl. Runs with a record of their weights are left
    out. Returns how many runs were measured. Raises CarftError as `suite_test`.
    """
    files_by_environments: dict[frozenset[str], list[Path]] = {}
    for group in collection.gather([folder]).groups:
        for run in suites.selected_runs(group):
            file = choose_weights(run.folder, None)
            if not _has_record(file, suite):
                files_by_environments.setdefault(run.trained_on, []).append(file)

    for trained_on, files in files_by_environments.items():
        runs = [saved.open_run(file) for file in files]
        _evaluate_together(runs, suite, options, skipped_sets=trained_on)
    return sum(map(len, files_by_environments.values()))


def _has_record(weights_file: Path, suite: str) -> bool:
    """Whether the job's records have this suite by these weights, and are not older than them."""
    record_file = weights_file.parent / records.FILE
    if not record_file.exists() or record_file.stat().st_mtime < weights_file.stat().st_mtime:
        return False
    return any(
        (record["suite"], record["weights"], record["wise_ft_alpha"])
        == (suite, weights_file.name, None)
        for record in records.read(weights_file.parent)
    )


def _evaluate_together(
    runs: Sequence[TrainedRun], suite: str, options: LoadingOptions, skipped_sets: frozenset[str]
) -> None:
    """Measure runs with the same test pictures on the sets of a suite, in one pass over these."""
    test = suite_test(suite, runs[0], options)
    remaining = test.suite.without(skipped_sets)
    located_sets = [located for located in test.located_sets if located.test_set in remaining.sets]
    test = dataclasses.replace(test, suite=remaining, located_sets=located_sets)

    all_scores = test.scores(_predictor_of_runs(runs, options), variants=len(runs))
    for run, scores in zip(runs, all_scores, strict=True):
        append_record(run.path, SuiteEvaluation(run_facts(run), scores))


def _predictor_of_runs(runs: Sequence[TrainedRun], options: LoadingOptions) -> Predictor:
    """Predicts by each run in turn.

    Runs that do not train the encoder share the image features of the CLIP that they started from.
    """
    algorithms = [run.algorithm.to(options.device) for run in runs]

    def predict(pictures: Tensor) -> Iterator[Tensor]:
        features_by_clip: dict[tuple[str, str], Tensor] = {}
        for algorithm in algorithms:
            if algorithm.trains_encoder:
                yield algorithm.predict(pictures)
                continue

            clip = (algorithm.hparams["clip_digest"], algorithm.hparams["amp"])
            if clip not in features_by_clip:
                features_by_clip[clip] = algorithm.features(pictures)
            yield algorithm.class_logits(features_by_clip[clip])

    return predict
