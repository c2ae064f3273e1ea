"""Jobs as elements of SLURM's job arrays, through submitit; asking for and cancelling them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers import attempt
from domainbed_carft.launchers.launches import FOLDER, Launch
from domainbed_carft.launchers.options import SlurmOptions
from domainbed_carft.launchers.protocol import FailedJob
from domainbed_carft.launchers.slurm_commands import cancel, largest_array, states
from domainbed_carft.launchers.slurm_element import Element

__all__ = ["Slurm", "cancel", "states"]

# What no #SBATCH line can hold, or what SLURM reads as a pattern.
_UNSAFE = "\n\r%\\"


@dataclass(frozen=True)
class Slurm:
    """Submit the jobs and return; SLURM starts them, and starts again what it preempts."""

    options: SlurmOptions
    verbose: bool = False

    def __call__(self, commands: Sequence[str]) -> list[FailedJob] | None:
        """Submit the jobs that are neither done, nor run by someone, nor to be left alone.

        Returns the jobs to be left alone, for what they failed with before, or None.

        Raises:
            CarftError: SLURM is not there, or takes no more; what it took stays submitted.
        """
        _submitit()
        waiting: dict[Path, list[tuple[str, JobFolder]]] = {}
        for command in commands:
            folder = attempt.Command(command).folder
            if folder is None:
                raise CarftError(f"slurm: there is no --output_dir in the command {command!r}")
            if not (folder.done or folder.is_held() or folder.failed()):
                waiting.setdefault(folder.path.parent.absolute(), []).append((command, folder))
        if unsafe := _unsafe(waiting):
            raise CarftError("; ".join(unsafe))
        after, left = None, sum(map(len, waiting.values()))
        for sweep, jobs in waiting.items():
            after = self._submit(sweep, jobs, after, left)
            left -= len(jobs)
        return None

    def problems(self, sweeps: Iterable[Path]) -> list[str]:
        """Why nothing can be submitted from here, or for jobs in these folders."""
        try:
            _submitit()
        except CarftError as error:
            return [str(error), *_unsafe(sweeps)]
        return _unsafe(sweeps)

    def _submit(
        self, sweep: Path, jobs: Sequence[tuple[str, JobFolder]], after: str | None, left: int
    ) -> str | None:
        """Submit the jobs of one folder as arrays, each of which waits for the one before.

        Args:
            after: the last array of the folder before, so that the cap holds over all folders.
            left: jobs to submit, in this folder and those that come after it.

        Returns the last array.
        """
        launch = Launch("slurm", sweep)
        ids: dict[str, str | None] = {}
        os.close(launch.write(ids))  # where nothing can be noted, nothing is submitted
        size = min(self.options.array_size, largest_array() or sys.maxsize)
        for begin in range(0, len(jobs), size):
            chunk = jobs[begin : begin + size]
            try:
                submitted = self._submit_array(sweep, chunk, after)
            except Exception as error:  # submitit has its own, for what sbatch answers
                # DomainBed's sweep takes a job for launched, and passes it over, by its folder.
                for _, folder in jobs[begin:]:
                    with contextlib.suppress(OSError):
                        folder.path.rmdir()
                raise CarftError(_refused(error, ids, left - begin)) from error
            ids.update({folder.name: name for (_, folder), name in zip(chunk, submitted)})
            os.close(launch.write(ids))
            after = submitted[0].partition("_")[0]
            print(f"slurm: job {after} has {len(chunk)} of the sweep's {len(jobs)} jobs")
        return after

    def _submit_array(
        self, sweep: Path, jobs: Sequence[tuple[str, JobFolder]], after: str | None
    ) -> list[str]:
        """Submit one array, and return the SLURM ids of its elements."""
        submitit = _submitit()
        logs = sweep / FOLDER / "slurm-logs"
        logs.mkdir(parents=True, exist_ok=True)
        # Time-outs are no failures, and never too many.
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=10**9)
        executor.update_parameters(**self.parameters(after))
        patience = 0.7 * self.options.signal_seconds
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "DOMAINBED_CORES")
        environment = dict.fromkeys(names, str(self.options.cpus))
        elements = [Element(command, environment, patience) for command, _ in jobs]
        with _outside_any_job(), executor.batch():
            submitted = [executor.submit(element) for element in elements]
        return [str(one.job_id) for one in submitted]

    def parameters(self, after: str | None = None) -> dict[str, Any]:
        """Submitit's parameters; this array starts when the job `after` has ended."""
        chosen = self.options
        extra: dict[str, str | bool] = {"requeue": True, **(chosen.extra or {})}
        if after:
            extra["dependency"] = f"afterany:{after}"
        given = {
            "job_name": "carft-sweep", "time": chosen.time, "partition": chosen.partition,
            "account": chosen.account, "qos": chosen.qos, "cpus_per_task": chosen.cpus,
            "gpus_per_node": chosen.gpus or None, "array_parallelism": chosen.array_cap,
            "signal_delay_s": chosen.signal_seconds, "setup": list(chosen.setup) or None,
            "mem": f"{int(1024 * chosen.memory_gb)}MB" if chosen.memory_gb else None,
            # Since SLURM 22.05 a step does not know how many cores its job was given.
            "srun_args": [f"--cpus-per-task={chosen.cpus}"],
            "additional_parameters": extra,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


def _unsafe(sweeps: Iterable[Path]) -> list[str]:
    return [
        f"slurm: the folder {str(sweep)!r} has a line break, % or \\ in its name, which SLURM's "
        "batch files cannot hold; move the sweep to another"
        for sweep in (sweep.absolute() for sweep in sweeps)
        if any(character in str(sweep) for character in _UNSAFE)
    ]


def _submitit() -> Any:
    """The package submitit, where there is a SLURM for it to talk to."""
    try:
        import submitit
    except ImportError as error:
        raise CarftError(
            f"the slurm launcher needs the package submitit: {sys.executable} -m pip install "
            "'submitit>=1.5'"
        ) from error
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if not shutil.which(name)]
    if missing:
        raise CarftError(
            f"the slurm launcher needs SLURM's commands, but {', '.join(missing)} cannot be found "
            "on PATH; log in to a machine that submits jobs, or use the pool launcher"
        )
    return submitit


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide that this process may itself run in a SLURM job, as in an interactive one.

    Submitted jobs inherit the environment, and take what sbatch and srun read from it.
    """
    inherited = {n: v for n, v in os.environ.items() if n.startswith(("SLURM_", "SRUN_"))}
    kept = {n: v for n, v in inherited.items() if n in ("SLURM_CONF", "SLURM_CLUSTERS")}
    for name in inherited.keys() - kept.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)


def _refused(error: Exception, submitted: dict[str, str | None], left: int) -> str:
    answer = " ".join(str(error).split())
    before = f"{len(submitted)} jobs are submitted and stay so; " if submitted else ""
    return (
        f"slurm: a submission was refused: {answer}. {before}{left} jobs are left. They are not "
        "queued: launch the sweep again for them once SLURM takes more, or with other options"
    )
