"""What SLURM says of its jobs, and jobs as elements of its arrays, through submitit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from types import FrameType
from typing import Any

from domainbed_carft import machine
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.folder import MAX_ATTEMPTS, STOPPED, JobFolder, slurm_id
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import attempt, launch_file
from domainbed_carft.launchers.attempt import Children, VariablesOf
from domainbed_carft.launchers.options import SlurmOptions

PENDING = "PENDING"
NO_REASON = "None"  # of a job that SLURM has not looked at yet

# Reasons of SLURM for which a job waits until somebody changes the request or the cluster.
_LASTING_REASONS = (
    "AccountNotAllowed",
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "JobHeldUser",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
    "QOSTimeLimit",
)
_LASTING_LIMITS = "PerJobLimit"  # the end of the names of many others

# SLURM starts a job again while a process of its last run may still hold the lock.
LOCK_PATIENCE = 30.0  # seconds

# How often a job that another process holds is restarted: SLURM waits two minutes in between.
_MAX_RESTARTS = 5

# How long before its time limit a job is told to save its state and stop, and for how much of that
# time it may save.
SIGNAL_SECONDS = 120
_SHARE_FOR_SAVING = 0.7

# Jobs of an array where the cluster does not say how many it allows.
_USUAL_ARRAY = 1000

# After so many submitit gives a job up; for us time-outs are no failures.
_MAX_TIMEOUTS = 10**9


@dataclass(frozen=True)
class JobState:
    """SLURM's state of a job (PENDING, RUNNING, COMPLETING, ...), and why it waits, else ""."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def is_lasting(reason: str) -> bool:
    """Whether a job that waits for this reason of SLURM does not start by itself."""
    return reason in _LASTING_REASONS or reason.endswith(_LASTING_LIMITS)


def states(ids: Iterable[str]) -> dict[str, JobState]:
    """SLURM's state of each of these jobs that has not ended.

    The ids are those of jobs, or of elements of arrays, as "123_4". Raises CarftError if SLURM does
    not answer.
    """
    distinct_ids = set(ids)
    if not distinct_ids:
        return {}

    jobs = ",".join(sorted({job_id.partition("_")[0] for job_id in distinct_ids}))
    output = call("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={jobs}")
    lines = [line.strip().split("|") for line in output.splitlines() if line.count("|") == 2]
    return {
        job_id: JobState(state, reason if state == PENDING else "")
        for job_id, state, reason in lines
        if job_id in distinct_ids
    }


def cancel(ids: Iterable[str]) -> None:
    """Cancel these jobs, or elements of arrays; a running one gets a signal first, and saves."""
    call("scancel", *sorted(set(ids)))


def largest_array() -> int | None:
    """How many elements the cluster allows an array; None if it does not say."""
    with contextlib.suppress(CarftError):
        config = call("scontrol", "show", "config")
        size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.M)
        if size:
            return max(1, int(size[1]))
    return None


def call(*command: str) -> str:
    """What a command of SLURM prints; raises CarftError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a null byte
        raise CarftError(f"SLURM does not answer: {error}") from error

    # Jobs that have ended are forgotten after a while.
    if done.returncode and "Invalid job id" not in done.stderr:
        raise CarftError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Slurm:
    """Submit the jobs and return; SLURM starts them, and restarts those it preempts."""

    options: SlurmOptions

    def __call__(self, jobs: Sequence[Job], variables_of: VariablesOf = None) -> None:
        """Submit the jobs to be run; raises CarftError if SLURM is missing or takes no more."""
        n_gpus = self.options.gpus
        # What is set in this process is of another machine.
        common_variables = machine.job_variables(
            self.options.cpus, n_gpus > 0, user_variables={}, processes=max(1, n_gpus)
        )
        common_variables |= own_methods.get_variables()
        patience = _SHARE_FOR_SAVING * SIGNAL_SECONDS

        sweeps: dict[Path, list[_Element]] = {}
        for job in jobs:
            folder = JobFolder(job.folder)
            if not (folder.done or folder.is_held() or folder.get_final_failure()):
                variables = variables_of(job) if variables_of else {}
                element = _Element(job, {**common_variables, **variables}, patience)
                sweeps.setdefault(job.folder.parent.absolute(), []).append(element)

        raise_for(self.problems(sweeps))
        previous_array = None
        n_elements = sum(map(len, sweeps.values()))
        for sweep, elements in sweeps.items():
            last_array = self._submit(sweep, elements, previous_array)
            # One after another, several arrays together have no more jobs at a time than the cap.
            previous_array = last_array if n_elements > self.options.array_cap else None

    def problems(self, sweeps: Iterable[Path]) -> Iterator[str]:
        """Reasons why nothing can be submitted from here, or for jobs in the folders ``sweeps``."""
        missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if not which(name)]
        if importlib.util.find_spec("submitit") is None:
            install = f"{sys.executable} -m pip install 'submitit>=1.5'"
            yield f"the slurm launcher needs the package submitit: {install}"
        elif missing:
            yield f"the slurm launcher needs {', '.join(missing)}, which are not on PATH here"

        for sweep in sweeps:
            path = str(sweep.absolute())
            if re.search(r"[\n\r%\\]", path):  # the last two: SLURM's patterns for names
                yield f"slurm: {path!r} has a line break, % or \\; choose another --output_dir"

    def _submit(
        self, sweep: Path, elements: list[_Element], previous_array: str | None
    ) -> str | None:
        """Submit the jobs of one folder as arrays, each after the one before.

        Returns the SLURM id of the last.
        """
        launch = launch_file.begin("slurm", sweep)
        launch.write()  # where nothing can be noted, nothing is submitted
        size = largest_array() or _USUAL_ARRAY

        for begin in range(0, len(elements), size):
            chunk = elements[begin : begin + size]
            try:
                ids = self._submit_array(sweep, chunk, previous_array)
            except Exception as error:  # submitit has its own, for what sbatch answers
                # DomainBed's sweep takes a job for launched, and passes it over, by its folder.
                for element in elements[begin:]:
                    with contextlib.suppress(OSError):
                        element.job.folder.rmdir()
                raise CarftError(
                    f"slurm: a submission was refused: {' '.join(str(error).split())}. {begin} of "
                    f"{len(elements)} jobs in {sweep} are submitted; launch the rest later"
                ) from error

            for element, job_id in zip(chunk, ids):
                launch.jobs[element.job.folder.name] = job_id
            launch.write()
            previous_array, _, _ = ids[0].partition("_")
            print(
                f"slurm: job {previous_array} runs {len(chunk)} of the sweep's {len(elements)} jobs"
            )
        return previous_array

    def submit_job(
        self,
        function: Callable[[], None],
        sweep: Path,
        name: str,
        after: Iterable[str],
    ) -> str:
        """Submit one job that calls a function when the jobs ``after`` have ended.

        It has one core and no GPU, and is listed among the launches of the folder ``sweep`` as
        ``name``. Returns its SLURM id. Raises CarftError if SLURM does not take it.
        """
        launch = launch_file.begin("slurm", sweep, name)
        parameters = self.parameters(":".join(after))
        parameters.pop("array_parallelism")
        parameters["job_name"] = f"carft-{name}"
        for parameter in ("gpus_per_node", "mem"):
            parameters.pop(parameter, None)
        parameters |= {"cpus_per_task": 1, "srun_args": []}

        try:
            launch.write()
            (job_id,) = self._submit_all(sweep, [function], parameters)
        except CarftError:
            raise
        except Exception as error:  # submitit has its own, for what sbatch answers
            reason = " ".join(str(error).split())
            raise CarftError(f"slurm: the submission of {name} was refused: {reason}") from error

        launch.jobs[name] = job_id
        launch.write()
        return job_id

    def _submit_array(
        self, sweep: Path, elements: list[_Element], previous_array: str | None
    ) -> list[str]:
        """Submit one array, and return the SLURM ids of its elements."""
        return self._submit_all(sweep, elements, self.parameters(previous_array))

    def _submit_all(
        self, sweep: Path, callables: Sequence[Callable[[], None]], parameters: Mapping[str, Any]
    ) -> list[str]:
        """Submit what SLURM's jobs are to call, and return their SLURM ids."""
        import submitit

        logs = sweep / launch_file.FOLDER / "slurm-logs"
        logs.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=_MAX_TIMEOUTS)
        executor.update_parameters(**parameters)

        # This process may itself run in a SLURM job, whose variables are not for its jobs.
        cluster_variables = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_"))
        }
        with submitit.helpers.clean_env():
            os.environ.update(cluster_variables)
            with executor.batch():
                submitted = [executor.submit(function) for function in callables]
        return [str(job.job_id) for job in submitted]

    def parameters(self, after: str | None = None) -> dict[str, Any]:
        """Submitit's parameters; this array starts when the job `after` has ended."""
        options = self.options
        extra = {"requeue": True, "time": options.time, **(options.extra or {})}
        if after:
            extra["dependency"] = f"afterany:{after}"

        parameters = {
            "job_name": "carft-sweep",
            "partition": options.partition,
            "account": options.account,
            "qos": options.qos,
            "cpus_per_task": options.cpus,
            "gpus_per_node": options.gpus or None,
            "array_parallelism": options.array_cap,
            "signal_delay_s": SIGNAL_SECONDS,
            "setup": list(options.setup) or None,
            "mem": f"{int(1024 * options.memory_gb)}MB" if options.memory_gb else None,
            # Since SLURM 22.05 a step does not know how many cores its job was given.
            "srun_args": [f"--cpus-per-task={options.cpus}"],
            "additional_parameters": extra,
        }
        return {name: value for name, value in parameters.items() if value is not None}


@dataclass(frozen=True)
class _Element:
    """What runs in a SLURM job: the function that submitit pickles, and calls there.

    Signals are handled here: submitit would request the requeue inside the handler, before the
    attempt is recorded and the lock released. A child has `patience` seconds to save.
    """

    job: Job
    environment: Mapping[str, str]  # variables; jobs that wait in SLURM's queue have this name
    patience: float

    def __call__(self) -> None:
        """Make attempts until one is the last.

        Raises CarftError if the job failed, so that SLURM shows it, SystemExit if it was stopped.
        """
        children = Children()

        def save_and_stop(number: int, frame: FrameType | None) -> None:
            """The time limit is near, or the job is preempted: save, then wait for another turn."""
            children.stop(number, signal.SIGUSR1)
            kill_timer = threading.Timer(self.patience, children.stop, (None, signal.SIGKILL))
            kill_timer.daemon = True
            kill_timer.start()

        signal.signal(signal.SIGUSR2, save_and_stop)
        # SLURM ends the job; if for preemption, it will start it again without our asking.
        signal.signal(signal.SIGTERM, lambda number, frame: children.stop(number))

        for _ in range(MAX_ATTEMPTS + 1):
            outcome = attempt.run(self.job, self.environment, children, LOCK_PATIENCE)
            if children.stopped_by is not None or outcome.result not in ("again", "interrupted"):
                break
        if outcome.result == "done":
            return

        if children.stopped_by == signal.SIGUSR2 and outcome.result != "failed":
            _requeue()
        if children.stopped_by is not None:
            sys.exit(128 + children.stopped_by)

        n_restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if outcome.result == "held" and n_restarts < _MAX_RESTARTS:  # leave the job to its holder
            _requeue()
            sys.exit(STOPPED)
        raise CarftError(str(outcome))


def clear_job_variables() -> None:
    """Drop the variables of the SLURM job that this process runs in, before it submits others."""
    for name in list(os.environ):
        is_of_cluster = name.startswith(("SLURM_CONF", "SLURM_CLUSTERS"))
        if name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_")) and not is_of_cluster:
            del os.environ[name]


def _requeue() -> None:
    """Have SLURM start the job that this process runs in once more."""
    call("scontrol", "requeue", slurm_id() or "")
