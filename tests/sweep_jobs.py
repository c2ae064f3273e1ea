"""Jobs of the stand-in for train, launchers that run them, and their events."""

import contextlib
import io
import itertools
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft import cli, launchers
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import JobFolder
from domainbed_carft.launchers.attempt import run_commands

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"  # of domainbed, with a train that needs no torch


def command(folder: Path, path: Path | str = STAND_IN, **flags: Any) -> str:
    """Return a sweep's command line for a job of the stand-in for train."""
    return f"PYTHONPATH={shlex.quote(str(path))} {Job(flags, folder).line}"


def carft(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `carft sweep` in this process."""
    words = ["sweep", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def read_status(out: Path) -> Any:
    """Return the output of `carft sweep status --json`."""
    return json.loads(carft("status", out, "--json").stdout)


def commands(sweep: Path, count: int, **flags: Any) -> list[str]:
    return [command(Path(sweep) / f"job{number:02}", **flags) for number in range(count)]


def story(folder: Path) -> list[dict[str, Any]]:
    """Read the events that the stand-in recorded, if any."""
    path = Path(folder) / "story"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(folder: Path) -> list[str]:
    return [line["event"] for line in story(folder)]


def is_warm(folder: Path) -> bool:
    """Return True if the job was forked from a process that had done the imports."""
    first = story(folder)[0]
    return bool(first["pid"] != first["imported_by"])


def stat(pid: int) -> list[str]:
    """Return a process's state and parent; an ended process counts as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return ["Z", "-1"]


def statuses(folder: Path) -> list[int | None]:
    return [attempt.status for attempt in JobFolder(folder).read_attempts()]


def wait_until(
    condition: Callable[[], Any],
    seconds: float = 240,
    message: str = "the condition was not met in time",
    pause: float = 0.05,
) -> Any:
    """Wait until a condition returns a true value, and return the value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, message
        time.sleep(pause)
    return value


def most_at_once(folders: Sequence[Path]) -> int:
    """Return the largest number of these jobs that ran at the same time."""
    timeline = [(line["time"], line["event"]) for folder in folders for line in story(folder)]
    changes = (1 if event == "start" else -1 for _, event in sorted(timeline))
    return max(itertools.accumulate(changes))


def run(name: str, commands: Sequence[str], **options: Any) -> Any:
    """Run a sweep's command lines with a launcher; return its result."""
    return run_commands(launchers.make(name, options), commands)


LAUNCH = """
import json, sys
from sweep_jobs import run
name, options, commands = map(json.loads, sys.argv[1:])
print(json.dumps([ending.result for ending in run(name, commands, **options) or []]))
"""


def launch(
    name: str, commands: Iterable[str], options: Mapping[str, Any] | None = None
) -> subprocess.Popen[str]:
    """Start a launcher in another process, which the test can stop or kill."""
    words = [json.dumps(part) for part in (name, options or {}, list(commands))]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *words],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def missing_slurm() -> str:
    """Return the reason why tests with SLURM cannot run, or "" if they can."""
    if not shutil.which("sinfo"):
        return "there is no SLURM here (.ci/slurm installs one)"
    words = ["timeout", "20", "sinfo", "--noheader", "--format=%t"]
    states = subprocess.run(words, capture_output=True, text=True).stdout.split()
    ready = {"idle", "mix", "alloc", "comp"} & {*states}
    return "" if ready else "SLURM has no node for jobs (.ci/slurm starts one)"
