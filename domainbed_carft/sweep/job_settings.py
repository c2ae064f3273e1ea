"""What a launch tells its jobs by process variables, which is no part of their identity."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft import process_variables
from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import Job
from domainbed_carft.sweep import host

SKIP_VARIABLE = process_variables.SKIP_TRAINING_IN_SPLITS.name

JobVariables = Callable[[Job], Mapping[str, str]]  # the process variables of a job


@dataclass(frozen=True)
class JobSettings:
    """Settings of all jobs that are not part of their identity; None leaves each to its default.

    ``log`` names the scalar logs: tensorboard, wandb.
    """

    keep_weights: str | None = None
    log: Sequence[str] = ()

    def variables(self, job: Job, sweep_name: str) -> dict[str, str]:
        """The process variables by which a job of the sweep gets these settings."""
        variables = {
            process_variables.KEEP_WEIGHTS.name: self.keep_weights,
            process_variables.LOG.name: " ".join(self.log),
        }
        if "wandb" in self.log and "WANDB_RUN_GROUP" not in os.environ:  # a user's own stays
            variables["WANDB_RUN_GROUP"] = f"{sweep_name}/{job.variant}".rstrip("/")
        return {name: value for name, value in variables.items() if value}


def skips_training_in_splits(
    output: Path, jobs: Sequence[Job], chosen: bool | None = None
) -> bool | None:
    """Whether the jobs leave out the accuracies on the training environments' in-splits.

    The first of these decides: ``chosen``, the user's variable, the manifest of the sweep, the
    records of a sweep that 0.1.0 began. A new sweep leaves them out. Returns None for a domainbed
    whose train always has them. Raises CarftError for another value of the variable.
    """
    if not host.skips_in_splits():
        return None
    if chosen is not None:
        return chosen

    variable = process_variables.SKIP_TRAINING_IN_SPLITS.read()
    if variable not in ("", "0", "1"):
        raise CarftError(Problem(SKIP_VARIABLE, variable, expected="0 or 1"))
    if variable:
        return variable == "1"

    sweep = manifest.read(output) if output.is_dir() else None
    if sweep and sweep.skip_training_in_splits is not None:
        return sweep.skip_training_in_splits

    # 0.1.0 evaluated them unless a flag said otherwise, which only the records tell.
    recorded_args = [args for job in jobs if (args := records.recorded_arguments(job.folder))]
    if recorded_args or sweep:
        skips = [args.get("skip_training_in_splits") is True for args in recorded_args]
        return bool(skips) and all(skips)
    return True
