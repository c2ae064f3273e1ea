"""A process of `sweep_evaluation.py`, which says how much processor time it took.

The pool runs it in the place of `domainbed_carft.runs.sweep_job`, with the task of that.
COUNTED_WAY: "evaluation" to do what that does, "predictions" to predict the same
pictures; COUNTED_FOLDER: where to write the seconds of processors, in a file for each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from domainbed_carft.jobs import records
from domainbed_carft.runs import sweep_job
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    choose_device,
    predict_rows,
    run_predictor,
)
from domainbed_carft.runs.saved import open_step

EVALUATION = "evaluation"
PREDICTIONS = "predictions"
WAY = "COUNTED_WAY"
FOLDER = "COUNTED_FOLDER"


def predict_alone(words: list[str]) -> int:
    """Predict the pictures that an evaluation needs; returns the exit status."""
    task = json.loads(words[0])
    options = LoadingOptions(
        device=choose_device(task["device"]),
        batch_size=task["batch_size"],
        workers=task["workers"],
    )

    (recorded,), _ = records.read([Path(task["folder"])])
    run = open_step(recorded, task["step"])
    assert run is not None  # it was trained for this
    evaluation = sweep_job.prepare(run, task["step"])
    splits = [*evaluation.reported, *evaluation.validation]
    (rows,) = predict_rows(splits, run_predictor(run, options.device), options)
    return 0 if all(len(part.label) for part in rows) else 1


def main() -> int:
    """Do the work of one process, and write what it took."""
    work = sweep_job.main if os.environ[WAY] == EVALUATION else predict_alone
    status = work(sys.argv[1:])
    seconds = sum(os.times()[:4])
    Path(os.environ[FOLDER], str(os.getpid())).write_text(str(seconds))
    return status


if __name__ == "__main__":
    sys.exit(main())
