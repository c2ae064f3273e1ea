"""What launching costs: the overhead per job of each launcher, and the demo sweep under two.

    python benchmarks/launch.py [--jobs 1000] [--launchers harness local pool slurm]
    python benchmarks/launch.py --demo [--rounds 1] [--steps STEPS]

The trivial job is `python -S -c ...`, which writes the file `done`. Its own time is that of
starting it in a bare loop, in the same run; the overhead is what a launcher takes longer per job,
for slurm from the submission until the last job has ended. What the pool does, it does for several
jobs at a time, and its overhead may be negative. `harness` is the harness's own local launcher. A
SLURM that .ci/slurm started takes arrays of six jobs, for the tests; `MAX_ARRAY_SIZE=1001
.ci/slurm` starts it anew with what is usual.

With --demo, `local`, one job after another with all cores, and `pool`, one job a core, in turn
train the jobs of sweeps/demo.yaml in new folders.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft import launchers, machine
from domainbed_carft.launchers import slurm
from domainbed_carft.launchers.attempt import run_commands
from domainbed_carft.sweep import declaration_file, launch

JOB = "import os, sys; os.close(os.open(sys.argv[2] + '/done', os.O_CREAT))"
OPTIONS: dict[str, dict[str, Any]] = {"slurm": {"time": 10, "array_cap": os.cpu_count() or 1}}


def commands(sweep: Path, jobs: int) -> list[str]:
    """Trivial jobs of a sweep."""
    words = ["python", "-S", "-c", JOB, "--output_dir"]
    return [shlex.join([*words, str(sweep / f"{number:06}")]) for number in range(jobs)]


def bare(commands: Sequence[str]) -> None:
    """Start the jobs in a loop, with nothing around them."""
    for command in commands:
        words = shlex.split(command)
        subprocess.run([sys.executable, *words[1:]], check=True)


def through_slurm(commands: Sequence[str]) -> None:
    """Submit the jobs, and wait until the last one has ended."""
    run_commands(launchers.make("slurm", OPTIONS["slurm"]), commands)
    sweep = Path(shlex.split(commands[0])[-1]).parent
    (launched,) = sweep.glob("launches/*.json")
    ids = json.loads(launched.read_text())["jobs"].values()
    while slurm.states(ids):
        time.sleep(0.2)


def with_name(name: str) -> Callable[[Sequence[str]], object]:
    """What runs jobs under this name."""
    if name == "bare":
        return bare
    if name == "slurm":
        return through_slurm
    if name == "harness":
        from domainbed import command_launchers

        return command_launchers.local_launcher
    return functools.partial(run_commands, launchers.make(name))


def seconds(name: str, jobs: int) -> float:
    """How long it takes to launch this many jobs, and for them to end."""
    with tempfile.TemporaryDirectory(prefix="carft-launch-") as folder:
        batch = commands(Path(folder), jobs)
        for command in batch:  # as sweep does before it calls a launcher
            Path(shlex.split(command)[-1]).mkdir()
        run = with_name(name)
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            begin = time.perf_counter()
            run(batch)
            taken = time.perf_counter() - begin
        missing = jobs - sum(1 for _ in Path(folder).glob("*/done"))
    if missing:
        raise SystemExit(f"{name}: {missing} of {jobs} jobs are not done")
    return taken


def overheads(names: Sequence[str], jobs: int) -> None:
    """Print what each launcher adds to a job."""
    alone = seconds("bare", jobs)
    print(f"{jobs} trivial jobs, {1000 * alone / jobs:.1f} ms each in a bare loop")
    for name in names:
        if name == "slurm" and not shutil.which("sbatch"):
            print("slurm: not here")
            continue
        taken = seconds(name, jobs)
        print(
            f"{name}: {taken:.1f} s, {1000 * taken / jobs:.1f} ms a job, "
            f"{1000 * (taken - alone) / jobs:+.1f} ms over the bare loop"
        )


def demo_seconds(launcher: str, steps: int | None) -> float:
    """Train the jobs of the declared demo in a new folder."""
    declaration = declaration_file.load("demo")
    if steps:
        declaration = declaration.model_copy(update={"steps": steps})
    with tempfile.TemporaryDirectory(prefix="carft-launch-demo-") as folder:
        begin = time.perf_counter()
        failed = launch.run_plan(launch.plan(declaration, "embedded", Path(folder), launcher))
        taken = time.perf_counter() - begin
    if failed:
        raise SystemExit(f"{launcher}: {len(failed)} jobs failed, such as {failed[0]}")
    return taken


def demos(rounds: int, steps: int | None) -> None:
    """Print how long the demo sweep takes under `local` and under `pool`, in turn."""
    taken: dict[str, list[float]] = {"local": [], "pool": []}
    for number in range(rounds):
        for name in ("local", "pool") if number % 2 == 0 else ("pool", "local"):
            taken[name].append(demo_seconds(name, steps))
            print(f"demo sweep under {name}: {taken[name][-1]:.1f} s", flush=True)
    ratios = [pool / local for pool, local in zip(taken["pool"], taken["local"])]
    print(f"pool / local: {statistics.median(ratios):.2f}, median of {rounds}")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000, help="trivial jobs (default: 1000)")
    names = ["harness", "local", "pool", "slurm"]
    parser.add_argument("--launchers", nargs="+", default=names, choices=names)
    parser.add_argument("--demo", action="store_true", help="time the demo sweep instead")
    parser.add_argument("--rounds", type=int, default=1, help="demo sweeps of each (default: 1)")
    parser.add_argument("--steps", type=int, help="of the demo's jobs (default: as declared)")
    arguments = parser.parse_args()
    # An OMP_NUM_THREADS of the caller's would keep the launchers from sharing out the cores.
    os.environ.pop("OMP_NUM_THREADS", None)
    print(f"{platform.machine()}, {machine.cores()} cores, Python {platform.python_version()}")
    if arguments.demo:
        demos(arguments.rounds, arguments.steps)
    else:
        overheads(arguments.launchers, arguments.jobs)


if __name__ == "__main__":
    main()
