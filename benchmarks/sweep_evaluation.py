"""Measure the cost of `carft evaluate OUT` relative to its predictions alone.

    python benchmarks/sweep_evaluation.py [--rounds 5] [--trials 4] [--images 24] [--device cpu]

CARFT on the tiny CLIP model is trained for one step, with each environment of a PACS-like tree of
JPEGs as target. Each round runs in the same pool the predictions that the evaluation needs, and a
complete evaluation without any cached results. CPU time includes all processes: the command, the
fork server, and the runs. Zero-shot CLIP predicts each environment once for all runs, so the ratio
depends on --trials. The exit status is 1 if the ratio is above the limit.
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
from typing import Any

import torch
from synthetic_tree import write_jpegs

from domainbed_carft import process_variables
from domainbed_carft.jobs import records
from domainbed_carft.runs import predictions, sweep, sweep_job
from domainbed_carft.runs.saved import open_step

LIMIT = 1.15
WAYS = PREDICTIONS, EVALUATION = ("predictions", "evaluation")
WAY = "COUNTED_WAY"  # environment variable: the element of WAYS to measure
FOLDER = "COUNTED_FOLDER"  # environment variable: folder for a file per process with its seconds
SWEEP = "--run_sweep"


def run_sweep(output: Path, device: str) -> None:
    """Evaluate or only predict the sweep, in processes that run `count_job`."""
    sweep_job.MODULE = Path(__file__).stem
    if os.environ[WAY] == PREDICTIONS:
        sweep.find_run_metrics = lambda _: "only predicted"
    evaluation = sweep.evaluate_sweep(output, sweep.SweepOptions(device=device))
    n_runs = len({(run.folder, run.step) for run in evaluation.runs})
    if evaluation.measured != n_runs:
        raise SystemExit(f"{evaluation.measured} of {n_runs} runs were measured")


def count_job(task: str) -> int:
    """Run the task of one process of the pool, and write its CPU time to a file."""
    status = sweep_job.main([task]) if os.environ[WAY] == EVALUATION else predict(json.loads(task))
    Path(os.environ[FOLDER], str(os.getpid())).write_text(str(sum(os.times()[:4])))
    return status


def predict(task: dict[str, Any]) -> int:
    """Predict the images that the evaluation of one run needs, and return the exit status."""
    options = predictions.LoadingOptions(
        device=predictions.choose_device(task["device"]),
        batch_size=task["batch_size"],
        workers=task["workers"],
    )
    (recorded,), _ = records.read([Path(task["folder"])])
    run = open_step(recorded, task["step"])
    assert run is not None  # `train` saved it
    evaluation = sweep_job.prepare(run, task["step"])
    splits = [*evaluation.reported, *evaluation.validation]
    predictor = predictions.make_predictor(run, options.device)
    (rows,) = predictions.predict_rows(splits, predictor, options)
    return 0 if all(len(part.label) for part in rows) else 1


def measure(way: str, output: Path, device: str) -> float:
    """Return the CPU seconds of one of WAYS without cached results."""
    for path in output.glob("*/evaluation_step*"):
        path.unlink()
    shutil.rmtree(Path(os.environ[process_variables.CACHE.name], "zero_shot"), ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="carft-counted-") as folder:
        variables = {WAY: way, FOLDER: folder, "PYTHONPATH": str(Path(__file__).parent.resolve())}
        usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, __file__, SWEEP, str(output), "--device", device]
        subprocess.run(command, env={**os.environ, **variables}, check=True)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The fork server does not wait for its processes, so their time is not in `usage`.
        seconds = sum(float(path.read_text()) for path in Path(folder).iterdir())
    seconds += usage.ru_utime + usage.ru_stime
    return seconds - usage_before.ru_utime - usage_before.ru_stime


def train(folder: Path, images: int, trials: int) -> Path:
    """Train a sweep for one step on JPEGs in ``folder``, and return its output folder."""
    count, classes = write_jpegs(folder, images)
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
    sys.exit(count_job(sys.argv[1]) if sys.argv[1:2] and sys.argv[1][0] == "{" else main())
