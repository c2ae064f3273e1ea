"""Evaluate one run picture by picture: the process that `carft evaluate OUT` starts for each.

The exit status and the last line of standard error say how it ended.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path

import torch

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import picture_rows
from domainbed_carft.runs import picture_evaluation
from domainbed_carft.runs import preloaded as preloaded  # by the fork server
from domainbed_carft.runs.measuring import LoadingOptions, choose_device
from domainbed_carft.runs.step_weights import NotKeptError, open_step
from domainbed_carft.text import printable

MODULE = "domainbed_carft.runs.evaluate_job"

# Exit statuses beside 0, measured now.
FAILED = 1
CURRENT = 3  # the file in the folder is still true
NOT_KEPT = 4
HELD = 5  # another process evaluates this run


def main(argv: list[str] | None = None) -> int:
    """Evaluate the run that the arguments name; returns the exit status."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.folder)
    try:
        options = LoadingOptions(
            device=choose_device(arguments.device),
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            data_dir=arguments.data_dir,
        )
        return _evaluate_alone(folder, arguments.step, options, arguments.original)
    except NotKeptError as error:
        return _fail(str(error), NOT_KEPT)
    except (CarftError, OSError) as error:
        return _fail(str(error), FAILED)
    except RuntimeError as error:  # torch's, of a GPU's memory or of the machine's
        return _fail(str(error).splitlines()[0], FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("folder")
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--device")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--data_dir")
    parser.add_argument("--original")
    return parser


def _evaluate_alone(folder: Path, step: int, options: LoadingOptions, original: str | None) -> int:
    """Evaluate a run, unless another process does, which has the lock of its folder."""
    # Of the folder itself, so that no file is left; a job that trains has another lock.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _fail("another process evaluates this run", HELD)
    try:
        return _evaluate(folder, step, options, original)
    finally:
        os.close(descriptor)


def _evaluate(folder: Path, step: int, options: LoadingOptions, original: str | None) -> int:
    recorded = _recorded_run(folder, step)
    try:
        run = open_step(recorded, step)
    except NotKeptError:
        # Weights that were deleted since then can make nothing stale.
        if picture_evaluation.is_of_job(folder, step, recorded.job):
            return CURRENT
        raise

    task = picture_evaluation.prepare(run, step, options.data_dir)
    facts = picture_evaluation.facts_of(task)
    if picture_evaluation.is_current(folder, facts):
        return CURRENT

    with torch.random.fork_rng(devices=[]):
        rows, complete_facts = picture_evaluation.evaluate_pictures(task, facts, options, original)
    picture_rows.save_rows(folder, rows, complete_facts)
    return 0


def _recorded_run(folder: Path, step: int) -> Run:
    """The run whose records in the folder have this step."""
    runs, _ = records.read([folder])
    run = next((candidate for candidate in runs if step in candidate.steps), None)
    if run is None:
        raise CarftError(f"{folder} has no record of step {step}")
    return run


def _fail(message: str, status: int) -> int:
    print(printable(message), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
