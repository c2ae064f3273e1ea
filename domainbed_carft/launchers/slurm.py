"""SLURM: submit jobs as arrays through submitit, and query or cancel them."""

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
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import MAX_ATTEMPTS, STOPPED, JobFolder, get_slurm_id
from domainbed_carft.launchers import attempt, launch_file
from domainbed_carft.launchers.attempt import Children
from domainbed_carft.launchers.options import SlurmOptions

PENDING = "PENDING"
NO_REASON = "None"  # SLURM has not considered the job yet

# Reasons for which a job waits until the request or the cluster changes.
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
_LASTING_LIMITS = "PerJobLimit"  # the end of many other reasons

# SLURM can restart a job while a process of its last turn still holds the lock.
LOCK_PATIENCE = 30.0  # seconds

# For a job held by another process; SLURM waits two minutes between restarts.
_MAX_RESTARTS = 5

# A job is signalled to save and stop this long before its time limit, and can save for this share
# of the time.
SIGNAL_SECONDS = 120
_SHARE_FOR_SAVING = 0.7

# Used if the cluster does not report its limit.
_DEFAULT_ARRAY_SIZE = 1000

# After this number submitit gives a job up, but time limits are not failures here.
_MAX_TIMEOUTS = 10**9


@dataclass(frozen=True)
class JobState:
    """SLURM's state of a job."""

    name: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str = ""  # why a pending job waits

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def is_lasting(reason: str) -> bool:
    """Return True if a job that waits for this reason will not start by itself."""
    return reason in _LASTING_REASONS or reason.endswith(_LASTING_LIMITS)


def get_states(ids: Iterable[str]) -> dict[str, JobState]:
    """Query SLURM's state of jobs that have not ended.

    Args:
        ids: ids of jobs or of array elements, such as "123" or "123_4".

    Returns:
        State by id.

    Raises:
        CarftError: if SLURM does not answer.
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
    """Cancel jobs or elements of arrays. Running ones receive a signal first, so that they save."""
    call("scancel", *sorted(set(ids)))


def get_max_array_size() -> int | None:
    """Return the maximum number of elements of an array, or None if SLURM does not report it."""
    with contextlib.suppress(CarftError):
        config = call("scontrol", "show", "config")
        size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.M)
        if size:
            return max(1, int(size[1]))
    return None


def call(*command: str) -> str:
    """Return the output of a command of SLURM. Raises CarftError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a null byte
        raise CarftError(f"SLURM does not answer: {error}") from error

    # SLURM forgets ended jobs after a while.
    if done.returncode and "Invalid job id" not in done.stderr:
        reason = " ".join(done.stderr.split()) or done.returncode
        raise CarftError(f"{command[0]} failed: {reason}")
    return done.stdout


@dataclass(frozen=True)
class Slurm:
    """Submit jobs to SLURM, which starts them and restarts preempted ones."""

    options: SlurmOptions

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs that are not done, held or failed.

        Args:
            jobs: the jobs.

        Raises:
            CarftError: if SLURM is missing or refuses a submission.
        """
        n_gpus = self.options.gpus
        # Variables of this process belong to another machine.
        common_variables = machine.job_variables(
            self.options.cpus, n_gpus > 0, user_variables={}, processes=max(1, n_gpus)
        )
        common_variables |= own_methods.get_variables()
        patience = _SHARE_FOR_SAVING * SIGNAL_SECONDS

        sweeps: dict[Path, list[_Element]] = {}
        for job in jobs:
            folder = JobFolder(job.folder)
            if not (folder.done or folder.is_held() or folder.get_final_failure()):
                element = _Element(job, {**common_variables, **job.variables}, patience)
                sweeps.setdefault(job.folder.parent.absolute(), []).append(element)

        raise_for(self.problems(sweeps))
        previous_array = None
        n_elements = sum(map(len, sweeps.values()))
        for sweep, elements in sweeps.items():
            last_array = self._submit(sweep, elements, previous_array)
            # Arrays that run one after another keep the cap on jobs at a time together.
            previous_array = last_array if n_elements > self.options.array_cap else None

    def problems(self, sweeps: Iterable[Path]) -> Iterator[str]:
        """Iterate over the reasons why jobs in the folders ``sweeps`` cannot be submitted."""
        missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if not which(name)]
        if importlib.util.find_spec("submitit") is None:
            install = f"{sys.executable} -m pip install 'submitit>=1.5'"
            yield f"the slurm launcher needs the package submitit: {install}"
        elif missing:
            yield f"the slurm launcher needs {', '.join(missing)}, which are not on PATH here"

        for sweep in sweeps:
            path = str(sweep.absolute())
            if re.search(r"[\n\r%\\]", path):  # % and \ belong to SLURM's patterns for file names
                yield f"slurm: {path!r} has a line break, % or \\; choose another --output_dir"

    def _submit(
        self, sweep: Path, elements: list[_Element], previous_array: str | None
    ) -> str | None:
        """Submit the jobs of one folder as arrays that run one after another.

        Returns the SLURM id of the last array.
        """
        launch = launch_file.begin("slurm", sweep)
        launch.write()  # an error here must come before anything is submitted
        size = get_max_array_size() or _DEFAULT_ARRAY_SIZE

        for begin in range(0, len(elements), size):
            chunk = elements[begin : begin + size]
            try:
                ids = self._submit_array(sweep, chunk, previous_array)
            except Exception as error:  # submitit defines several for answers of sbatch
                # DomainBed's sweep would skip a job whose folder exists.
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
        """Submit one job that calls a function, with one core and no GPU.

        Args:
            function: the function to call.
            sweep: folder whose launches list the job.
            name: name of the job in this list.
            after: SLURM ids of jobs that have to end first.

        Returns:
            The SLURM id of the job.

        Raises:
            CarftError: if SLURM refuses the job.
        """
        launch = launch_file.begin("slurm", sweep, name)
        parameters = self.parameters(":".join(after))
        parameters |= {"job_name": f"carft-{name}", "cpus_per_task": 1, "srun_args": []}
        for parameter in ("array_parallelism", "gpus_per_node", "mem"):
            parameters.pop(parameter, None)

        try:
            launch.write()
            (job_id,) = self._submit_all(sweep, [function], parameters)
        except CarftError:
            raise
        except Exception as error:  # submitit defines several for answers of sbatch
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
        """Submit functions that SLURM's jobs call, and return the SLURM ids of the jobs."""
        import submitit

        logs = sweep / launch_file.FOLDER / "slurm-logs"
        logs.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=_MAX_TIMEOUTS)
        executor.update_parameters(**parameters)

        # If this process runs in a SLURM job, its variables must not reach the submitted jobs.
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
        """Return the parameters for submitit.

        Args:
            after: SLURM id of a job that has to end first.
        """
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
            # Since SLURM 22.05 srun no longer inherits the number of cores from its job.
            "srun_args": [f"--cpus-per-task={options.cpus}"],
            "additional_parameters": extra,
        }
        return {name: value for name, value in parameters.items() if value is not None}


@dataclass(frozen=True)
class _Element:
    """The function that submitit pickles, and calls in a SLURM job.

    It handles signals itself, because submitit would requeue the job inside its handler, before the
    attempt is recorded and the lock released.
    """

    job: Job
    environment: Mapping[str, str]  # variables; renaming it would break jobs in SLURM's queue
    patience: float  # seconds that a child has to save

    def __call__(self) -> None:
        """Make attempts at the job until it is done, fails for good or is stopped.

        Raises:
            CarftError: if the job failed, so that SLURM shows it.
            SystemExit: if the job was stopped.
        """
        children = Children()

        def save_and_stop(number: int, frame: FrameType | None) -> None:
            """Save before the time limit or a preemption, so that the job can be requeued."""
            children.stop(number, signal.SIGUSR1)
            kill_timer = threading.Timer(self.patience, children.stop, (None, signal.SIGKILL))
            kill_timer.daemon = True
            kill_timer.start()

        signal.signal(signal.SIGUSR2, save_and_stop)
        # SLURM ends the job. After a preemption it requeues the job by itself.
        signal.signal(signal.SIGTERM, lambda number, frame: children.stop(number))

        for _ in range(MAX_ATTEMPTS + 1):
            end = attempt.run(self.job, self.environment, children, LOCK_PATIENCE)
            if children.stopped_by is not None or end.result not in ("again", "interrupted"):
                break
        if end.result == "done":
            return

        if children.stopped_by == signal.SIGUSR2 and end.result != "failed":
            _requeue()
        if children.stopped_by is not None:
            sys.exit(128 + children.stopped_by)

        n_restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if end.result == "held" and n_restarts < _MAX_RESTARTS:  # wait for the holder
            _requeue()
            sys.exit(STOPPED)
        raise CarftError(str(end))


def clear_job_variables() -> None:
    """Delete the variables of this process's SLURM job, which must not reach submitted jobs."""
    for name in list(os.environ):
        if name.startswith(("SLURM_CONF", "SLURM_CLUSTERS")):  # they select the cluster
            continue
        if name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_")):
            del os.environ[name]


def _requeue() -> None:
    """Let SLURM restart the job of this process."""
    call("scontrol", "requeue", get_slurm_id() or "")
