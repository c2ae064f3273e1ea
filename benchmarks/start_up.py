"""How long a job takes from its start to its first training step: warm, cold, and upstream's.

    python benchmarks/start_up.py --upstream CHECKOUT [--python PYTHON] [--rounds 5]

CARFT on the tiny CLIP, a PACS-shaped tree of JPEGs, as many threads and loader processes as each
harness chooses for a job alone. A round runs a job of DomainBed's own harness with our plugin, one
of ours that starts cold, and three of ours in one launch of `local`: the first waits for the warm
process, the next two do not, of which the last counts. `first_step/sitecustomize.py` tells when a
job's first step is done. Wall time begins when the launcher starts the job; processor time is that
of the job's own process, without its loaders.

PYTHON (default: this one) runs the checkout, and has upstream's requirements and this package.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from synthetic_tree import photographs

from domainbed_carft import launchers, machine
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.jobs.fork_server import SWITCH
from domainbed_carft.jobs.job import Job

UPSTREAM, COLD, FIRST, WARM = KINDS = ("upstream", "cold", "first of a launch", "warm")
GOAL = 1 / 3

Times = tuple[float, float]  # seconds of wall time, of processor time


def steps(told: Path, started: list[float]) -> list[Times]:
    """The times of jobs that started then, from the lines they have appended since."""
    lines = [[*map(float, line.split())] for line in told.read_text().splitlines()]
    told.unlink()
    assert len(lines) == len(started), "a job has not trained"
    return [(ended - begin, used) for (ended, used), begin in zip(lines, started)]


def upstreams(told: Path, python: str, checkout: Path, job: Job) -> Times:
    begin = time.time()
    done = subprocess.run([python, *job.command[1:]], cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"upstream's job failed:\n{done.stderr[-2000:]}")
    return steps(told, [begin])[0]


def ours(told: Path, jobs: list[Job]) -> list[Times]:
    left = launchers.make("local")(jobs)
    if left:
        raise SystemExit(str(left[0]))
    return steps(told, [JobFolder(job.folder).attempts()[0].started for job in jobs])


def shown(values: list[float], unit: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f}{unit} (quartiles {low:.2f} to {high:.2f})"


def main() -> None:
    """Run the jobs, and print their times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--python", default=sys.executable, help="runs the checkout")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if not (given.upstream / "domainbed" / "scripts").is_dir():
        parser.error(f"expected a checkout of DomainBed in {given.upstream}")
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}, expected at least 2 for a median and quartiles")
    upstream = given.upstream.resolve()
    print(
        f"{platform.processor() or platform.machine()}, {machine.cores()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )
    times: dict[str, list[Times]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="carft-start-up-") as name:
        folder = Path(name)
        _, classes = photographs(folder, 6)
        told = folder / "told"
        os.environ["FIRST_STEP"] = str(told)
        os.environ["PYTHONPATH"] = str(Path(__file__).parent / "first_step")
        os.environ.pop("OMP_NUM_THREADS", None)
        os.chdir(folder)  # where no other domainbed is
        hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
        hparams |= {"batch_size": 16, "data_edition": "unchecked"}
        arguments = {"algorithm": "CARFT", "dataset": "PACS", "data_dir": name, "steps": 1}
        arguments |= {"hparams": hparams, "skip_model_save": True}
        for number in range(given.rounds):
            jobs = [Job(arguments, folder / f"{number}-{place}") for place in range(5)]

            def cold(job: Job = jobs[1]) -> list[tuple[str, Times]]:
                os.environ[SWITCH] = "1"
                (found,) = ours(told, [job])
                del os.environ[SWITCH]
                return [(COLD, found)]

            def warm(three: list[Job] = jobs[2:]) -> list[tuple[str, Times]]:
                first, _, last = ours(told, three)
                return [(FIRST, first), (WARM, last)]

            def theirs(job: Job = jobs[0]) -> list[tuple[str, Times]]:
                return [(UPSTREAM, upstreams(told, given.python, upstream, job))]

            turns = [theirs, cold, warm]
            for turn in turns[number % 3 :] + turns[: number % 3]:
                for kind, found in turn():
                    times[kind].append(found)
            each = ", ".join(f"{kind} {times[kind][-1][0]:.1f} s" for kind in KINDS)
            print(f"round {number + 1}: {each}", flush=True)
    for kind in KINDS:
        wall, used = ([one[place] for one in times[kind]] for place in (0, 1))
        print(f"{kind}: {shown(wall, ' s')}; processor time {shown(used, ' s')}")
    for kind in KINDS[1:]:
        pairs = [*zip(times[kind], times[UPSTREAM])]
        wall, used = ([a[place] / b[place] for a, b in pairs] for place in (0, 1))
        print(f"{kind} over upstream: {shown(wall, '')}; processor time {shown(used, '')}")
    print(f"The goal for warm over upstream is {GOAL:.2f}.")


if __name__ == "__main__":
    main()
