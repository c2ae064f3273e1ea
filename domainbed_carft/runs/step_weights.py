"""Which file of a job's folder holds the weights of a given step. Another step never stands in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.records import Run
from domainbed_carft.runs import saved
from domainbed_carft.runs.saved import TrainedRun

# The arguments by which weights belong to the records in their folder.
_SHARED_ARGUMENTS = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")


class NotKeptError(CarftError):
    """No file has the weights of the step that was selected."""

    def __init__(self, step: int) -> None:
        super().__init__(f"weights of step {step} were not kept")


def open_step(recorded: Run, step: int) -> TrainedRun:
    """The recorded run with its weights of a step, on the CPU.

    Raises NotKeptError if no file has them, and CarftError for a file that cannot be read as
    `saved.open_run`, or is not of the job that the records are of.
    """
    for file in _candidates(recorded, step):
        run = saved.open_run(file)
        is_last = file.name == WEIGHTS["last"]
        if step == (max(recorded.steps) if is_last else run.step):
            _require_same_job(run, recorded)
            return run
    raise NotKeptError(step)


def _candidates(recorded: Run, step: int) -> Iterator[Path]:
    """The files that may have the weights, those first whose name or place says so."""
    folder = Path(recorded.folder)
    names = [f"model_step{step}.pkl", WEIGHTS["best"]]
    if step == max(recorded.steps) and recorded.done:
        names.insert(1, WEIGHTS["last"])
    return (folder / name for name in names if (folder / name).exists())


def _require_same_job(run: TrainedRun, recorded: Run) -> None:
    for name in _SHARED_ARGUMENTS:
        in_weights = run.args.get(name)
        in_records = recorded.job.args.get(name)
        if in_weights != in_records:
            raise CarftError(
                f"{run.path} does not belong to the records in its folder: {name} is "
                f"{in_weights!r} in the weights and {in_records!r} in the records"
            )
