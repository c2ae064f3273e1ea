"""A rehearsal in one short job of SLURM, with the resources of a job of the sweep."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import launch_file, slurm
from domainbed_carft.launchers.options import SlurmOptions
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.sweep import preflight_file
from domainbed_carft.sweep.launch import LaunchPlan
from domainbed_carft.sweep.preflight_file import Preflight

NAME = "preflight"
TIME = "60"  # minutes, unless the user sets a limit
POLL_SECONDS = 2.0
PATIENCE = 30.0  # seconds that a network file system may take to show the file


def run(plan: LaunchPlan, words: Sequence[str]) -> Preflight:
    """Submit the command ``carft WORDS``, wait for it, and return what it wrote.

    Ctrl-C cancels the job. Raises CarftError if SLURM does not take the job, or it wrote nothing.
    """
    assert isinstance(plan.launcher, Slurm)
    options = plan.launcher.options
    if options.time == SlurmOptions.time:
        options = replace(options, time=TIME)
    earlier = _read(plan)

    variables = machine.variables(options.cpus, options.gpus > 0, user_variables={})
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = ["env", *settings, sys.executable, "-m", "domainbed_carft", *words]
    plan.output.mkdir(parents=True, exist_ok=True)
    sweep = plan.output.absolute()
    job_id = Slurm(options).submit_job(_CommandLine(command), sweep, NAME, is_small=False)
    print(f"slurm: job {job_id} rehearses the sweep; waiting for it", file=sys.stderr)

    try:
        _wait_for(job_id)
    except KeyboardInterrupt:
        slurm.cancel([job_id])
        raise

    deadline = time.monotonic() + PATIENCE
    while True:
        preflight = _read(plan)
        if preflight and preflight != earlier:
            return preflight
        if time.monotonic() > deadline:
            logs = sweep / launch_file.FOLDER / "slurm-logs"
            raise CarftError(f"SLURM job {job_id} ended without a result; see its logs in {logs}")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class _CommandLine:
    """What the SLURM job calls: it runs a command line, in the folder where it was submitted."""

    words: Sequence[str]

    def __call__(self) -> None:
        """Run the command; raises CalledProcessError if it fails, so that SLURM shows it."""
        slurm.forget_own_job()
        subprocess.run(self.words, check=True)


def _wait_for(job_id: str) -> None:
    """Wait until SLURM has no such job any more."""
    while slurm.states([job_id]):
        time.sleep(POLL_SECONDS)


def _read(plan: LaunchPlan) -> Preflight | None:
    """The file as it is now; None if there is none, or it cannot be read."""
    try:
        return preflight_file.read(plan.output)
    except CarftError:
        return None
