"""What `carft evaluate OUT` costs beside the predictions alone, of the same runs and pictures.

    python benchmarks/sweep_evaluation.py [--rounds 5] [--trials 4] [--pictures 24] [--device cpu]

A sweep of CARFT on the tiny CLIP, each environment of a PACS-shaped tree of JPEGs left out in turn,
is trained for one step. Then each round does three things, in another order each time:

- predictions: `predict_rows` on the pictures that the evaluation needs, and nothing else;
- evaluation: `carft evaluate` of a sweep of which nothing is known;
- cached: the same, where the predictions of zero-shot CLIP are in the cache folder.

All run in the same pool, with the fork server. Processor time is that of all processes: the
command, the fork server, and the runs. Other work on the machine changes it less than the time on
the clock. Zero-shot CLIP predicts each environment once for all runs, so --trials counts. The exit
status is 1 if the evaluation takes more processor time than the bar says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import counted_job
import torch
from synthetic_tree import photographs

from domainbed_carft import machine, process_variables
from domainbed_carft.runs import sweep, sweep_job
from domainbed_carft.runs.sweep import SweepOptions, evaluate_sweep

BAR = 1.15
CACHED = "cached"
WAYS = (counted_job.PREDICTIONS, counted_job.EVALUATION, CACHED)
RUN_SWEEP = "--run_sweep"


@dataclass(frozen=True)
class Cost:
    """Seconds of a command: on the clock, and of the processors."""

    wall: float
    cpu: float


def run_sweep(output: Path, device: str) -> None:
    """Evaluate the sweep, or predict alone, in processes that are `counted_job`s."""
    sweep_job.MODULE = counted_job.__name__
    if os.environ[counted_job.WAY] == counted_job.PREDICTIONS:
        sweep.figures_of = lambda _: "only predicted"

    evaluation = evaluate_sweep(output, SweepOptions(device=device))
    n_runs = len({(run.folder, run.step) for run in evaluation.runs})
    if evaluation.measured != n_runs:
        raise SystemExit(f"{evaluation.measured} of {n_runs} runs were measured")


def measure(way: str, output: Path, cache: Path, device: str) -> Cost:
    """Do one of WAYS in a process of its own."""
    for path in output.glob("*/evaluation_step*"):
        path.unlink()
    if way == counted_job.EVALUATION:
        shutil.rmtree(cache / "zero_shot", ignore_errors=True)

    job_way = way if way == counted_job.PREDICTIONS else counted_job.EVALUATION
    with tempfile.TemporaryDirectory(prefix="carft-counted-") as folder:
        variables = {counted_job.WAY: job_way, counted_job.FOLDER: folder}
        variables["PYTHONPATH"] = str(Path(__file__).parent.resolve())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, __file__, RUN_SWEEP, str(output), "--device", device],
            env={**os.environ, **variables},
            check=True,
        )
        wall = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)

        # The fork server does not wait for its processes, so their time is not in `after`.
        seconds = [float(path.read_text()) for path in Path(folder).iterdir()]
    command_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, command_seconds + sum(seconds))


def train(folder: Path, pictures: int, trials: int) -> Path:
    """A sweep of one step on JPEGs in ``folder``; its output folder."""
    count, classes = photographs(folder, pictures)
    hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
    hparams |= {"batch_size": 8, "warmup_steps": 0, "total_steps": 2, "data_edition": "unchecked"}
    output = folder / "OUT"
    command = [sys.executable, "-m", "domainbed.scripts.sweep", "launch", "--skip_confirmation"]
    command += ["--data_dir", str(folder), "--output_dir", str(output), "--single_test_envs"]
    command += ["--algorithms", "CARFT", "--datasets", "PACS", "--command_launcher", "pool"]
    command += ["--n_hparams", "1", "--n_trials", str(trials), "--steps", "1"]
    command += ["--hparams", json.dumps(hparams)]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    n_jobs = len([*output.glob("*/done")])
    print(f"{n_jobs} jobs, {count} JPEGs of 500 x 400", flush=True)
    return output


def print_ratios(costs: dict[str, list[Cost]]) -> float:
    """Print the ratios to the predictions alone; returns the evaluation's, of processor time."""
    alone = costs[counted_job.PREDICTIONS]
    medians = {}
    for way in (counted_job.EVALUATION, CACHED):
        pairs = list(zip(costs[way], alone, strict=True))
        ratios_by_kind = {
            "processors": [cost.cpu / reference.cpu for cost, reference in pairs],
            "clock": [cost.wall / reference.wall for cost, reference in pairs],
        }
        for kind, ratios in ratios_by_kind.items():
            medians[way, kind] = statistics.median(ratios)
            print(
                f"{way}, {kind}: {medians[way, kind]:.3f} of the predictions alone "
                f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds); the bar is {BAR}"
            )
    return medians[counted_job.EVALUATION, "processors"]


def main() -> int:
    """Train a sweep, and print what its evaluation takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=4, help="of four jobs each")
    parser.add_argument("--pictures", type=int, default=24, help="of a class and environment")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(RUN_SWEEP, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_sweep:
        run_sweep(arguments.run_sweep, arguments.device)
        return 0

    os.environ.pop("OMP_NUM_THREADS", None)  # the caller's would keep the pool from sharing cores
    costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="carft-sweep-evaluation-") as name:
        folder = Path(name)
        cache = folder / "cache"
        os.environ[process_variables.CACHE.name] = str(cache)
        print(
            f"{platform.processor() or platform.machine()}, {machine.cores()} cores, Python "
            f"{platform.python_version()}, torch {torch.__version__}"
        )
        output = train(folder, arguments.pictures, arguments.trials)
        measure(counted_job.EVALUATION, output, cache, arguments.device)  # warms up

        for number in range(arguments.rounds):
            first = number % len(WAYS)
            for way in (*WAYS[first:], *WAYS[:first]):
                cost = measure(way, output, cache, arguments.device)
                costs[way].append(cost)
                load = os.getloadavg()[0]
                print(
                    f"round {number + 1}, {way}: {cost.wall:.1f} s, {cost.cpu:.1f} s of processors "
                    f"(load {load:.1f})",
                    flush=True,
                )
    return int(print_ratios(costs) > BAR)


if __name__ == "__main__":
    sys.exit(main())
