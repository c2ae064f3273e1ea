"""The demo: the four algorithms, leave-one-domain-out on EmojiStyles, through DomainBed's commands.

Nothing here trains or averages: it starts ``domainbed.scripts.sweep``, watches its folder, and
shows what ``domainbed.scripts.collect_results`` says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from domainbed_carft import results
from domainbed_carft.errors import CarftError
from domainbed_carft.report import plot_targets

ALGORITHMS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")
ENVIRONMENTS = ("fluent3d", "line", "noto", "twemoji")
STEPS = 101  # EmojiStyles.N_STEPS, where the default schedule ends


def run(output: Path, trials: int = 1) -> None:
    """Train, collect and plot into ``output``; jobs finished there before are not run again."""
    sweep = output / "sweep"
    sweep.mkdir(parents=True, exist_ok=True)
    jobs = len(ALGORITHMS) * len(ENVIRONMENTS) * trials
    print(
        f"{jobs} jobs: {', '.join(ALGORITHMS)}, each trained {STEPS} steps with one of "
        f"{', '.join(ENVIRONMENTS)} left out. Log: {output / 'sweep.log'}"
    )
    _launch(sweep, output / "sweep.log", jobs, trials)
    table = _collect(sweep)
    (output / "results.txt").write_text(table, encoding="utf-8")
    selected = results.select(results.load(sweep))
    plot_targets(selected, ENVIRONMENTS, ALGORITHMS, output / "accuracy.png")
    print(table)
    print(
        "Each cell: accuracy (%) on the environment that was left out, with the checkpoint chosen "
        "by the method named above the table.\nX: leave-one-domain-out cross-validation needs the "
        "jobs with two test environments, which the demo does not run.\n"
    )
    print(f"Table:    {output / 'results.txt'}")
    print(f"Plot:     {output / 'accuracy.png'}")
    print(f"Records:  {sweep}/*/results.jsonl, with out.txt, err.txt and model.pkl beside")


def _launch(sweep: Path, log: Path, jobs: int, trials: int) -> None:
    """Run the jobs that are not done; whatever an interrupted demo left half-way starts anew."""
    with log.open("w", encoding="utf-8") as out:
        for command in ("delete_incomplete", "launch"):
            # In a session of its own, so that an interrupt ends the sweep and its jobs alike.
            process = subprocess.Popen(
                _sweep_command(command, sweep, trials),
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                if command == "launch":
                    _watch(process, sweep, jobs)
                status = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                raise
            if status != 0:
                break
    _, done = _progress(sweep)
    if status != 0 or done != jobs:
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise CarftError(
            f"the sweep ended with status {status} and {done} of {jobs} jobs done; the end of "
            f"{log}:\n{tail}"
            "Run the same command again to go on with the jobs that are not done"
        )


def _sweep_command(command: str, sweep: Path, trials: int) -> list[str]:
    return [
        sys.executable, "-m", "domainbed.scripts.sweep", command,
        "--algorithms", *ALGORITHMS, "--datasets", "EmojiStyles",
        "--data_dir", "embedded", "--output_dir", str(sweep), "--command_launcher", "pool",
        "--n_hparams", "1", "--n_trials", str(trials), "--single_test_envs", "--skip_confirmation",
        "--steps", str(STEPS),
    ]  # fmt: skip


def _watch(process: subprocess.Popen[bytes], sweep: Path, jobs: int) -> None:
    """A bar over all training steps of all jobs until the sweep ends, fed from their records."""
    with tqdm(total=jobs * STEPS, unit="step", smoothing=0, desc="training") as bar:
        while True:
            ended = process.poll() is not None
            steps, done = _progress(sweep)
            bar.update(steps - bar.n)
            # On a screen the clock goes on between records; a log gets a line a record.
            bar.set_postfix_str(f"{done} of {jobs} jobs done", refresh=sys.stderr.isatty())
            if ended:
                return
            time.sleep(0.5)


def _progress(sweep: Path) -> tuple[int, int]:
    """Steps trained and jobs done so far."""
    steps = sum(_last_step(path) + 1 for path in sweep.glob("*/results.jsonl"))
    return steps, sum(1 for _ in sweep.glob("*/done"))


def _last_step(path: Path) -> int:
    """Step of the last whole record; a line that is being written does not count yet."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return int(json.loads(line)["step"])
        except json.JSONDecodeError:
            continue
    return -1


def _collect(sweep: Path) -> str:
    command = [
        sys.executable, "-m", "domainbed.scripts.collect_results", "--input_dir", str(sweep),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CarftError(
            f"{' '.join(command[1:])} ended with status {done.returncode}: {done.stderr[-1000:]}"
        )
    return done.stdout
