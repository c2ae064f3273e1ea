"""Time a sweep on DomainBed's harness with the plugin, and on the included one (local and pool).

    python benchmarks/whole_sweep.py --upstream CHECKOUT [--python PYTHON] [--rounds 2]

A sweep has four jobs of CARFT on the tiny CLIP model, which hold out each environment of a
PACS-shaped tree of JPEGs in turn: 41 steps of 3 x 16, evaluated at the first and the last step. The
model is so small that images, evaluation and start-up take most of the time, as on a GPU. Each
round runs the three sweeps one after another, in a new order. Times are wall times, so keep the
machine otherwise idle.

PYTHON (default: this interpreter) runs the checkout, and needs upstream's requirements and this
package.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from synthetic_tree import write_jpegs

UPSTREAM, LOCAL, POOL = SWEEPS = ("upstream, local", "included, local", "included, pool")
N_IMAGES = 24  # per class and environment


def launch(sweep: str, output: Path, folder: Path, python: str, arguments: list[str]) -> float:
    """Run one of the sweeps in `folder`, and return its wall time in seconds."""
    command = [python, "-m", "domainbed.scripts.sweep", "launch", "--skip_confirmation"]
    command += ["--output_dir", str(output), "--command_launcher", sweep.split(", ")[1]]
    # Upstream's launcher starts `python` through a shell.
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begin
    n_done = len([*output.glob("*/done")])
    if done.returncode or n_done != 4:
        errors = "".join(path.read_text() for path in output.glob("*/err.txt"))
        raise SystemExit(f"{sweep}: {n_done} of 4 jobs are done\n{done.stderr}{errors}"[-4000:])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="checkout of DomainBed")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the checkout")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds (default: 2)")
    parser.add_argument("--steps", type=int, default=41, help="steps per job (default: 41)")
    options = parser.parse_args()
    upstream = options.upstream.resolve()
    if not (upstream / "domainbed" / "scripts").is_dir():
        parser.error(f"expected a checkout of DomainBed in {options.upstream}")

    os.environ.pop("OMP_NUM_THREADS", None)  # otherwise the launchers do not share the cores
    times: dict[str, list[float]] = {name: [] for name in SWEEPS}
    with tempfile.TemporaryDirectory(prefix="carft-whole-sweep-") as name:
        folder = Path(name)
        count, classes = write_jpegs(folder, N_IMAGES)
        print(f"torch {torch.__version__}; {count} JPEGs of 500 x 400")
        print(f"{options.steps} steps of 3 x 16")
        hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
        hparams |= {"batch_size": 16, "warmup_steps": min(5, options.steps - 1)}
        hparams |= {"total_steps": options.steps, "data_edition": "unverified"}
        arguments = ["--algorithms", "CARFT", "--datasets", "PACS", "--single_test_envs"]
        arguments += ["--n_hparams", "1", "--n_trials", "1", "--steps", str(options.steps)]
        arguments += ["--hparams", json.dumps(hparams), "--data_dir", name]
        for number in range(options.rounds):
            for sweep in SWEEPS[number % 3 :] + SWEEPS[: number % 3]:
                is_upstream = sweep == UPSTREAM
                seconds = launch(
                    sweep,
                    folder / f"{number}-{sweep}",
                    folder=upstream if is_upstream else folder,
                    python=options.python if is_upstream else sys.executable,
                    arguments=arguments,
                )
                times[sweep].append(seconds)
                print(f"round {number + 1}, {sweep}: {seconds:.1f} s", flush=True)
    for sweep in (LOCAL, POOL):
        ratios = [seconds / base for seconds, base in zip(times[sweep], times[UPSTREAM])]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{sweep}: {statistics.median(ratios):.2f} of upstream's time ({spread})")


if __name__ == "__main__":
    main()
