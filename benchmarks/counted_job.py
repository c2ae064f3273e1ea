"""A process of `sweep_evaluation.py`, which says how much processor time it took.

The pool runs it in the place of `domainbed_carft.runs.evaluate_job`, with the arguments of that.
COUNTED_WAY: "evaluation" to do what that does, "predictions" to count predictions on the same
pictures; COUNTED_FOLDER: where to write the seconds of processors, in a file for each process.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from domainbed_carft.jobs import records
from domainbed_carft.runs import evaluate_job, picture_evaluation
from domainbed_carft.runs import preloaded as preloaded  # by the fork server
from domainbed_carft.runs.measuring import (
    LoadingOptions,
    choose_device,
    count_predictions,
    run_predictor,
)
from domainbed_carft.runs.step_weights import open_step

EVALUATION = "evaluation"
PREDICTIONS = "predictions"
WAY = "COUNTED_WAY"
FOLDER = "COUNTED_FOLDER"


def predict_alone(words: list[str]) -> int:
    """Count the predictions on the pictures that an evaluation needs; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--step", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args(words)
    options = LoadingOptions(
        device=choose_device(arguments.device),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )

    (recorded,), _ = records.read([Path(arguments.folder)])
    run = open_step(recorded, arguments.step)
    task = picture_evaluation.prepare(run, arguments.step)
    splits = [*task.reported, *task.validation]
    predict = run_predictor(run, options.device)
    (counts,) = count_predictions(splits, predict, options, num_classes=len(run.classes))
    return 0 if all(count.count for count in counts) else 1


def main() -> int:
    """Do the work of one process, and write what it took."""
    work = evaluate_job.main if os.environ[WAY] == EVALUATION else predict_alone
    status = work(sys.argv[1:])
    seconds = sum(os.times()[:4])
    Path(os.environ[FOLDER], str(os.getpid())).write_text(str(seconds))
    return status


if __name__ == "__main__":
    sys.exit(main())
