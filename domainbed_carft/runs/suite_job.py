"""Evaluate runs on a suite together: the process that `runs_on_suite` starts for each such group.

The exit status and the last line of standard error say how it ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.runs import preloaded as preloaded  # by the fork server
from domainbed_carft.runs import saved
from domainbed_carft.runs.measuring import LoadingOptions, Predictor, choose_device
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.suite_evaluation import (
    append_record,
    evaluation_plan,
    require_classes,
    run_facts,
    suite_test,
)
from domainbed_carft.runs.suite_scores import SuiteEvaluation
from domainbed_carft.suites import catalogue
from domainbed_carft.text import printable

MODULE = "domainbed_carft.runs.suite_job"


def main(argv: list[str] | None = None) -> int:
    """Evaluate the runs that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--device")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--data_dir")
    arguments = parser.parse_args(argv)
    try:
        options = LoadingOptions(
            device=choose_device(arguments.device),
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            data_dir=arguments.data_dir,
        )
        evaluate_together(arguments.weights, arguments.suite, options, skipped=arguments.skip)
    except (CarftError, OSError, RuntimeError) as error:  # torch's, of memory
        print(printable(str(error).splitlines()[0]), file=sys.stderr)
        return 1
    return 0


def evaluate_together(
    weights: Sequence[Path], suite: str, options: LoadingOptions, skipped: Collection[str] = ()
) -> None:
    """Measure runs on the sets of a suite but the ``skipped``; each adds to its suites.jsonl.

    Runs whose pictures are made in one way share a pass over them. Raises CarftError as `open_run`
    and `suite_test`, and if a set cannot be read; then the runs of that pass get no record.
    """
    runs_by_plan: dict[PicturePlan, list[TrainedRun]] = defaultdict(list)
    for path in weights:
        run = saved.open_run(path)
        require_classes(run, catalogue.get(suite))
        runs_by_plan[evaluation_plan(run)].append(run)

    for runs in runs_by_plan.values():
        _evaluate_in_one_pass(runs, suite, options, skipped)


def _evaluate_in_one_pass(
    runs: Sequence[TrainedRun], suite: str, options: LoadingOptions, skipped: Collection[str]
) -> None:
    """Measure runs whose pictures are made in one way."""
    test = suite_test(suite, runs[0], options)
    located_sets = [
        located for located in test.located_sets if located.test_set.name not in skipped
    ]
    test = dataclasses.replace(test, suite=test.suite.without(skipped), located_sets=located_sets)

    all_scores = test.scores(_predictor(runs, options), variants=len(runs))
    first = all_scores[0]
    if first.unread:
        reasons = [f"{name}: {'; '.join(first.problems.get(name, []))}" for name in first.unread]
        raise CarftError(f"{suite} cannot be read: {'; '.join(reasons)}")
    for run, scores in zip(runs, all_scores, strict=True):
        append_record(run.path, SuiteEvaluation(run_facts(run), scores))


def _predictor(runs: Sequence[TrainedRun], options: LoadingOptions) -> Predictor:
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

            clip = (str(algorithm.hparams["clip_digest"]), str(algorithm.hparams["amp"]))
            if clip not in features_by_clip:
                features_by_clip[clip] = algorithm.features(pictures)
            yield algorithm.class_logits(features_by_clip[clip])

    return predict


if __name__ == "__main__":
    sys.exit(main())
