"""Jobs as elements of SLURM's job arrays, through submitit; asking for and cancelling them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import MAX_ATTEMPTS, Held, JobFolder, slurm_id
from domainbed_carft.launchers import attempt
from domainbed_carft.launchers.attempt import Children, Ending, FailedJob, Result
from domainbed_carft.launchers.launches import FOLDER, Launch
from domainbed_carft.launchers.options import SlurmOptions

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


# SLURM starts a job again while a process of its last run may still hold the lock.
_OTHERS_SECONDS = 30.0

# A turn is this and the two minutes that SLURM has a requeued job wait: some two hours in all.
_HELD_TURNS = 50


@dataclass(frozen=True)
class Element:
    """The function that submitit pickles, and calls in the job.

    Its two signals are handled here and not by submitit, which would ask for the requeue inside of
    the handler, before the attempt is noted and the lock let go.

    Args:
        command: of the sweep's job.
        environment: variables to set for it.
        patience: seconds a child has to save itself before it is killed.
    """

    command: str
    environment: Mapping[str, str]
    patience: float

    def __call__(self) -> None:
        """Make attempts until one is the last.

        Raises:
            CarftError: the job failed, so that SLURM shows it as failed.
            SystemExit: SLURM told the job to stop.
        """
        children = Children()

        def warned(number: int, frame: FrameType | None) -> None:
            """The time limit is near, or the job is preempted: save, then wait for another turn."""
            children.stop(number, signal.SIGUSR1)
            self._kill_later(children)

        def told_to_end(number: int, frame: FrameType | None) -> None:
            """SLURM ends the job; if for preemption, it will start it again without our asking."""
            children.stop(number)

        signal.signal(signal.SIGUSR2, warned)
        signal.signal(signal.SIGTERM, told_to_end)
        ending = self._attempts(children)
        if ending.result is Result.DONE:
            return
        if children.stopped_by == signal.SIGUSR2 and ending.result is not Result.LEFT:
            name = slurm_id()
            print(f"carft: requeue {name}", flush=True)
            requeue(name or "")
        if children.stopped_by is not None:
            sys.exit(128 + children.stopped_by)
        if ending.held is not None:
            self._give_way(ending.held)
        raise CarftError(str(ending.failure))

    def _give_way(self, held: Held) -> NoReturn:
        """Leave the job to who has it, and look again in another turn; not for ever."""
        name = slurm_id() or ""
        notes = held.folder.parent / FOLDER / "slurm-logs"
        notes.mkdir(parents=True, exist_ok=True)
        with (notes / f"{name}.held").open("a", encoding="utf-8") as file:
            file.write(f"{held.holder}\n")
        turns = len((notes / f"{name}.held").read_text(encoding="utf-8").splitlines())
        if turns > _HELD_TURNS:
            raise CarftError(f"{held}. It was waited for {turns} times; launch the sweep again")
        print(f"carft: {held}; requeue {name}", flush=True)
        requeue(name)
        sys.exit(75)  # try again: EX_TEMPFAIL

    def _attempts(self, children: Children) -> Ending:
        interruptions = 0
        while True:
            ending = attempt.run(self.command, self.environment, children, _OTHERS_SECONDS)
            interruptions += ending.result is Result.INTERRUPTED
            again = ending.result in (Result.FAILED, Result.INTERRUPTED)
            if children.stopped_by or not again or interruptions >= MAX_ATTEMPTS:
                return ending

    def _kill_later(self, children: Children) -> None:
        timer = threading.Timer(self.patience, children.kill)
        timer.daemon = True
        timer.start()


_AT_ONCE = 500  # jobs named in one command line

# Why a job may wait that will be started in its turn. Other reasons are worth telling.
_IN_TURN = (
    *("None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit"),
    *("Cleaning", "Licenses", "RaisedSignal", ""),
)


def states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's word (PENDING, RUNNING, COMPLETING, ...) for each of these jobs that has not ended.

    Where a job does not simply wait for its turn, the reason follows: PENDING (PartitionTimeLimit).

    Args:
        ids: of jobs, or of elements of arrays, as "123_4".

    Raises:
        CarftError: SLURM cannot be asked.
    """
    asked = set(ids)
    if not asked:
        return {}
    jobs = ",".join(sorted({name.partition("_")[0] for name in asked}))
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={jobs}"]
    done = _call(command)
    if done.returncode and "Invalid job id" not in done.stderr:  # all have ended, and are forgotten
        raise CarftError(f"squeue failed: {done.stderr.strip() or done.returncode}")
    lines = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
    return {name: _word(state, reason) for name, state, reason in lines if name in asked}


def _word(state: str, reason: str) -> str:
    tell = state == "PENDING" and reason not in _IN_TURN
    return f"{state} ({reason})" if tell else state


def cancel(ids: Iterable[str]) -> None:
    """Cancel these jobs, or elements of arrays; one that runs is told first, and saves.

    Raises:
        CarftError: SLURM does not do it.
    """
    named = sorted(set(ids))
    for begin in range(0, len(named), _AT_ONCE):
        done = _call(["scancel", *named[begin : begin + _AT_ONCE]])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise CarftError(f"scancel failed: {done.stderr.strip() or done.returncode}")


def requeue(name: str) -> None:
    """Have SLURM end a running job and start it again.

    Raises:
        CarftError: SLURM does not do it.
    """
    done = _call(["scontrol", "requeue", name])
    if done.returncode:
        raise CarftError(
            f"scontrol requeue {name} failed: {done.stderr.strip() or done.returncode}; launch "
            "the sweep again to go on with this job"
        )


def largest_array() -> int | None:
    """How many elements the cluster allows an array; None if it does not say."""
    try:
        done = _call(["scontrol", "show", "config"])
    except CarftError:
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(found[1])) if found and not done.returncode else None


def _call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CarftError(f"SLURM cannot be asked: {error}") from error
