"""Ways to run the jobs of a sweep.

Interface of upstream file domainbed/command_launchers.py at b93c22a: REGISTRY maps a name to a
function of a list of command strings. A launcher may return the jobs that failed; one that
returns nothing, because it does not wait for them, is taken at its word.
"""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from domainbed.lib import names


@dataclass(frozen=True)
class FailedJob:
    """A job that ended with another exit status than 0, and the last thing it had to say."""

    command: str
    status: int
    last_words: str

    def __str__(self) -> str:
        where = _output_dir(shlex.split(self.command)) or self.command
        return f"exit status {self.status}: {where}: {self.last_words}"


_NO_GPU = "The multi_gpu launcher found no GPU: use the local one, or check CUDA_VISIBLE_DEVICES."

Launcher = Callable[[list[str]], Sequence[FailedJob] | None]


def local_launcher(commands: list[str]) -> list[FailedJob]:
    """Run the commands one after another; go on after a failure; report failures at the end."""
    failed = []
    started = time.monotonic()
    for number, command in enumerate(commands, start=1):
        failure = _run(command)
        if failure is not None:
            failed.append(failure)
        _print_progress(number, len(commands), len(failed), time.monotonic() - started)
    _print_failures(failed, len(commands))
    return failed


def dummy_launcher(commands: list[str]) -> None:
    """Print the commands and run none of them."""
    for command in commands:
        print(f"Dummy launcher: {command}")


def multi_gpu_launcher(commands: list[str]) -> list[FailedJob]:
    """Run one command at a time on each GPU, those of CUDA_VISIBLE_DEVICES if it is set.

    Raises:
        RuntimeError: there is no GPU.
    """
    gpus = _visible_gpus()
    if not gpus:
        raise RuntimeError(_NO_GPU)
    idle: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in gpus:
        idle.put(gpu)

    def run_on_idle_gpu(command: str) -> FailedJob | None:
        gpu = idle.get()
        try:
            return _run(command, {"CUDA_VISIBLE_DEVICES": gpu})
        finally:
            idle.put(gpu)

    with ThreadPoolExecutor(max_workers=len(gpus)) as pool:
        failed = [failure for failure in pool.map(run_on_idle_gpu, commands) if failure]
    _print_failures(failed, len(commands))
    return failed


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [gpu for gpu in listed.split(",") if gpu]


def _run(command: str, environment: Mapping[str, str] | None = None) -> FailedJob | None:
    """Run one command, without a shell, and return it if it fails."""
    arguments = shlex.split(command)
    if arguments[0] == "python":
        # The commands say so for upstream's sake; the jobs need what this interpreter can import.
        arguments[0] = sys.executable
    try:
        status = subprocess.run(
            arguments, env={**os.environ, **(environment or {})}, check=False
        ).returncode
    except OSError as error:
        return FailedJob(command, 127, str(error))
    return FailedJob(command, status, _last_words(arguments)) if status else None


def _output_dir(arguments: Sequence[str]) -> str | None:
    """Return the value of --output_dir, if there is one."""
    if "--output_dir" not in arguments[:-1]:
        return None
    return arguments[arguments.index("--output_dir") + 1]


def _last_words(arguments: Sequence[str]) -> str:
    """Return the last line of the job's err.txt that is not blank."""
    folder = _output_dir(arguments)
    if folder is None:
        return "it has no --output_dir to leave a message in"
    try:
        path = os.path.join(folder, "err.txt")
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no message in err.txt"


def _print_progress(done: int, total: int, failed: int, seconds: float) -> None:
    """Standard output belongs to the jobs, so this goes to the error stream."""
    left = seconds / done * (total - done)
    failures = f", {failed} failed" if failed else ""
    print(
        f"sweep: {done} of {total} jobs ended{failures}; "
        f"{_clock(seconds)} gone, about {_clock(left)} left",
        file=sys.stderr,
        flush=True,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _print_failures(failed: Sequence[FailedJob], total: int) -> None:
    if failed:
        print(f"sweep: {len(failed)} of {total} jobs failed:", file=sys.stderr)
    for failure in failed:
        print(f"- {failure}", file=sys.stderr)


REGISTRY: dict[str, Launcher] = {
    "local": local_launcher,
    "dummy": dummy_launcher,
    "multi_gpu": multi_gpu_launcher,
}


def problems(name: str, output_dir: str) -> list[str]:
    """Say if no launcher is called `name`, or if it is known to fail on this machine.

    A plugin's launcher says so by its function `problems` of the sweep's folder.
    """
    if name not in REGISTRY:
        return [names.unknown_name("Launcher", name, REGISTRY)]
    if REGISTRY[name] is multi_gpu_launcher and not _visible_gpus():
        return [_NO_GPU]
    ask = getattr(REGISTRY[name], "problems", None)
    return list(ask(output_dir)) if ask else []


def runs_here(name: str) -> bool:
    """Whether the jobs are known to run on this machine, and so to find the data as we do.

    A plugin's launcher says so by the attribute `runs_here`.
    """
    launcher = REGISTRY.get(name)
    ours = launcher in (local_launcher, multi_gpu_launcher)
    return ours or getattr(launcher, "runs_here", False) is True
