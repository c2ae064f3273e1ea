"""Jobs as elements of SLURM job arrays, through submitit; their states, and cancelling them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from types import FrameType
from typing import Any

from domainbed_carft import machine
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs.folder import MAX_ATTEMPTS, STOPPED, JobFolder, slurm_id
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import attempt, launches
from domainbed_carft.launchers.attempt import Children, Environment
from domainbed_carft.launchers.options import SlurmOptions

# SLURM starts a job again while a process of its last run may still hold the lock.
_OTHERS_SECONDS = 30.0

# How often a job that another process holds is restarted: SLURM waits two minutes in between.
_MOST_RESTARTS = 5


@dataclass(frozen=True)
class Slurm:
    """Submit the jobs and return; SLURM starts them, and restarts those it preempts."""

    options: SlurmOptions

    def __call__(self, jobs: Sequence[Job], environment: Environment = None) -> None:
        """Submit the jobs to be run; raises CarftError if SLURM is missing or takes no more."""
        sweeps: dict[Path, list[_Element]] = {}
        patience = 0.7 * self.options.signal_seconds
        # What is set here is of another machine.
        cards = self.options.gpus
        cores = machine.variables(self.options.cpus, cards > 0, kept={}, processes=max(1, cards))
        for job in jobs:
            folder = JobFolder(job.folder)
            if not (folder.done or folder.is_held() or folder.failed()):
                own = environment(job) if environment else {}
                element = _Element(job, {**cores, **own}, patience)
                sweeps.setdefault(job.folder.parent.absolute(), []).append(element)
        raise_for(self.problems(sweeps))
        after = None
        for sweep, elements in sweeps.items():
            after = self._submit(sweep, elements, after)

    def problems(self, sweeps: Iterable[Path]) -> Iterator[str]:
        """Why nothing can be submitted from here, or for jobs in these folders."""
        missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if not which(name)]
        if importlib.util.find_spec("submitit") is None:
            install = f"{sys.executable} -m pip install 'submitit>=1.5'"
            yield f"the slurm launcher needs the package submitit: {install}"
        elif missing:
            yield f"the slurm launcher needs {', '.join(missing)}, which are not on PATH here"
        for place in (str(sweep.absolute()) for sweep in sweeps):
            if re.search(r"[\n\r%\\]", place):  # the last two: SLURM's patterns for names
                yield f"slurm: {place!r} has a line break, % or \\; choose another --output_dir"

    def _submit(self, sweep: Path, elements: list[_Element], after: str | None) -> str | None:
        """Submit the jobs of one folder as arrays, each after the one before; returns the last."""
        launch = launches.begin("slurm", sweep)
        os.close(launch.write())  # where nothing can be noted, nothing is submitted
        size = min(self.options.array_size, largest_array() or sys.maxsize)
        for begin in range(0, len(elements), size):
            chunk = elements[begin : begin + size]
            try:
                submitted = self._submit_array(sweep, chunk, after)
            except Exception as error:  # submitit has its own, for what sbatch answers
                # DomainBed's sweep takes a job for launched, and passes it over, by its folder.
                for element in elements[begin:]:
                    with contextlib.suppress(OSError):
                        element.job.folder.rmdir()
                raise CarftError(
                    f"slurm: a submission was refused: {' '.join(str(error).split())}. {begin} of "
                    f"{len(elements)} jobs in {sweep} are submitted; launch the rest later"
                ) from error
            launch.jobs.update(zip((element.job.folder.name for element in chunk), submitted))
            os.close(launch.write())
            after = submitted[0].partition("_")[0]
            print(f"slurm: job {after} runs {len(chunk)} of the sweep's {len(elements)} jobs")
        return after

    def _submit_array(self, sweep: Path, elements: list[_Element], after: str | None) -> list[str]:
        """Submit one array, and return the SLURM ids of its elements."""
        import submitit

        logs = sweep / launches.FOLDER / "slurm-logs"
        logs.mkdir(parents=True, exist_ok=True)
        # Time-outs are no failures, and never too many.
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=10**9)
        executor.update_parameters(**self.parameters(after))
        # This process may itself run in a SLURM job, which is not to be passed on.
        own = ("SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_")
        kept = {name: value for name, value in os.environ.items() if name.startswith(own)}
        with submitit.helpers.clean_env():
            os.environ.update(kept)
            with executor.batch():
                submitted = [executor.submit(element) for element in elements]
        return [str(one.job_id) for one in submitted]

    def parameters(self, after: str | None = None) -> dict[str, Any]:
        """Submitit's parameters; this array starts when the job `after` has ended."""
        chosen = self.options
        extra = {"requeue": True, "time": chosen.time, **(chosen.extra or {})}
        if after:
            extra["dependency"] = f"afterany:{after}"
        given = {
            "job_name": "carft-sweep", "partition": chosen.partition,
            "account": chosen.account, "qos": chosen.qos, "cpus_per_task": chosen.cpus,
            "gpus_per_node": chosen.gpus or None, "array_parallelism": chosen.array_cap,
            "signal_delay_s": chosen.signal_seconds, "setup": list(chosen.setup) or None,
            "mem": f"{int(1024 * chosen.memory_gb)}MB" if chosen.memory_gb else None,
            # Since SLURM 22.05 a step does not know how many cores its job was given.
            "srun_args": [f"--cpus-per-task={chosen.cpus}"],
            "additional_parameters": extra,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Element:
    """What runs in a SLURM job: the function that submitit pickles, and calls there.

    Signals are handled here: submitit would request the requeue inside the handler, before the
    attempt is recorded and the lock released. A child has `patience` seconds to save.
    """

    job: Job
    environment: Mapping[str, str]
    patience: float

    def __call__(self) -> None:
        """Make attempts until one is the last.

        Raises CarftError if the job failed, so that SLURM shows it, SystemExit if it was stopped.
        """
        children = Children()

        def warned(number: int, frame: FrameType | None) -> None:
            """The time limit is near, or the job is preempted: save, then wait for another turn."""
            children.stop(number, signal.SIGUSR1)
            killing = threading.Timer(self.patience, children.stop, (None, signal.SIGKILL))
            killing.daemon = True
            killing.start()

        signal.signal(signal.SIGUSR2, warned)
        # SLURM ends the job; if for preemption, it will start it again without our asking.
        signal.signal(signal.SIGTERM, lambda number, frame: children.stop(number))
        for _ in range(MAX_ATTEMPTS + 1):
            ending = attempt.run(self.job, self.environment, children, _OTHERS_SECONDS)
            if children.stopped_by is not None or ending.result not in ("again", "interrupted"):
                break
        if ending.result == "done":
            return
        if children.stopped_by == signal.SIGUSR2 and ending.result != "failed":
            _call("scontrol", "requeue", slurm_id() or "")
        if children.stopped_by is not None:
            sys.exit(128 + children.stopped_by)
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if ending.result == "held" and restarts < _MOST_RESTARTS:  # leave the job to its holder
            _call("scontrol", "requeue", slurm_id() or "")
            sys.exit(STOPPED)
        raise CarftError(str(ending))


def states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's state (PENDING, RUNNING, COMPLETING, ...) of each of these jobs that has not ended.

    The reason of a wait follows, as in PENDING (Resources). The ids are those of jobs, or of
    elements of arrays, as "123_4". Raises CarftError if SLURM does not answer.
    """
    asked = set(ids)
    if not asked:
        return {}
    jobs = ",".join(sorted({name.partition("_")[0] for name in asked}))
    told = _call("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={jobs}")
    lines = [line.strip().split("|") for line in told.splitlines() if line.count("|") == 2]
    return {
        name: f"{state} ({reason})" if state == "PENDING" else state
        for name, state, reason in lines
        if name in asked
    }


def cancel(ids: Iterable[str]) -> None:
    """Cancel these jobs, or elements of arrays; a running one gets a signal first, and saves."""
    _call("scancel", *sorted(set(ids)))


def largest_array() -> int | None:
    """How many elements the cluster allows an array; None if it does not say."""
    with contextlib.suppress(CarftError):
        told = _call("scontrol", "show", "config")
        if found := re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.M):
            return max(1, int(found[1]))
    return None


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a null byte
        raise CarftError(f"SLURM does not answer: {error}") from error
    # Jobs that have ended are forgotten after a while.
    if done.returncode and "Invalid job id" not in done.stderr:
        raise CarftError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
