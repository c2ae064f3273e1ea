"""Measure the cost of `carft evaluate OUT` relative to predictions that share no images.

    python benchmarks/sweep_evaluation.py [--rounds 5] [--trials 4] [--images 24] [--device cpu]

CARFT on the tiny CLIP model is trained for one step, with each environment of a PACS-like tree of
JPEGs as target. Each round runs in the same pool the predictions that the evaluation needs, where
each run decodes its images anew, and a complete evaluation without any cached results. CPU time
includes all processes. The evaluation keeps decoded images, and zero-shot CLIP predicts each
environment once for all runs, so the ratio depends on --trials. The exit status is 1 if the ratio
is above the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from synthetic_tree import write_jpegs

from domainbed_carft import process_variables
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import collection
from domainbed_carft.runs import predictions, sweep, sweep_run
from domainbed_carft.runs.saved import open_step
from domainbed_carft.runs.sweep_run import SweepOptions

LIMIT = 1.05
WAYS = PREDICTIONS, EVALUATION = ("predictions", "evaluation")
WAY = "COUNTED_WAY"  # environment variable: the element of WAYS to measure
SWEEP = "--run_sweep"


def run_sweep(output: Path, device: str) -> None:
    """Evaluate or only predict the sweep."""
    if os.environ[WAY] == PREDICTIONS:
        sweep.measure_recorded_run = predict
    scores = sweep.measure_sweep(collection.gather([output]), SweepOptions(device))
    n_runs = len({(run.folder, run.step) for run in scores.runs})
    if scores.measured != n_runs:
        raise SystemExit(f"{scores.measured} of {n_runs} runs were measured")


def predict(recorded: RecordedRun, step: int, options: SweepOptions) -> bool:
    """Predict the images that the evaluation of one run needs."""
    run = open_step(recorded, step)
    assert run is not None  # `train` saved it
    task = sweep_run.prepare(run, step)
    loading = options.for_loading(recorded.dataset)
    predictor = predictions.make_predictor(run, loading.device)
    (predicted,) = predictions.predict_image_sets(
        [*task.reported, *task.validation], predictor, loading
    )
    return all(map(len, predicted))


def measure(way: str, output: Path, device: str) -> float:
    """Return the CPU seconds of one of WAYS without cached results."""
    for path in output.glob("*/evaluation_step*"):
        path.unlink()
    shutil.rmtree(Path(os.environ[process_variables.CACHE.name], "zero_shot"), ignore_errors=True)
    variables = {WAY: way}
    if way == PREDICTIONS:
        variables[process_variables.IMAGE_MEMORY.name] = "0"
    usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, SWEEP, str(output), "--device", device]
    subprocess.run(command, env={**os.environ, **variables}, check=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = usage.ru_utime + usage.ru_stime
    return seconds - usage_before.ru_utime - usage_before.ru_stime


def train(folder: Path, images: int, trials: int) -> Path:
    """Train a sweep for one step on JPEGs in ``folder``, and return its output folder."""
    count, classes = write_jpegs(folder, images)
    hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
    hparams |= {"batch_size": 8, "warmup_steps": 0, "total_steps": 2, "data_edition": "unverified"}
    output = folder / "OUT"
    command = [sys.executable, "-m", "domainbed.scripts.sweep", "launch", "--skip_confirmation"]
    command += ["--data_dir", str(folder), "--output_dir", str(output), "--single_test_envs"]
    command += ["--algorithms", "CARFT", "--datasets", "PACS", "--command_launcher", "pool"]
    command += ["--n_hparams", "1", "--n_trials", str(trials), "--steps", "1"]
    command += ["--hparams", json.dumps(hparams)]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    n_jobs = len([*output.glob("*/done")])
    print(f"torch {torch.__version__}; {n_jobs} jobs, {count} JPEGs of 500 x 400", flush=True)
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds to measure (default: 5)")
    parser.add_argument(
        "--trials",
        type=int,
        default=4,
        help="trials of the sweep, with four jobs each (default: 4)",
    )
    parser.add_argument(
        "--images", type=int, default=24, help="per class and environment (default: 24)"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda:0 (default: cpu)")
    parser.add_argument(SWEEP, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_sweep:
        run_sweep(arguments.run_sweep, arguments.device)
        return 0

    os.environ.pop("OMP_NUM_THREADS", None)  # otherwise the pool does not divide the cores
    ratios = []
    with tempfile.TemporaryDirectory(prefix="carft-sweep-evaluation-") as name:
        os.environ[process_variables.CACHE.name] = f"{name}/cache"
        output = train(Path(name), arguments.images, arguments.trials)
        measure(EVALUATION, output, arguments.device)  # warms up
        for number in range(arguments.rounds):
            order = WAYS if number % 2 else WAYS[::-1]
            seconds = {way: measure(way, output, arguments.device) for way in order}
            ratios.append(seconds[EVALUATION] / seconds[PREDICTIONS])
            words = ", ".join(f"{way} {seconds[way]:.1f} s" for way in WAYS)
            print(f"round {number + 1}: {words}", flush=True)
    median = statistics.median(ratios)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"evaluation over predictions, CPU time: {median:.3f} ({spread}); limit {LIMIT}")
    return int(median > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
