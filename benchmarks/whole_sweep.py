"""A whole sweep: DomainBed's own harness with our plugin, ours under `local` and under `pool`.

    python benchmarks/whole_sweep.py --upstream CHECKOUT [--python PYTHON] [--rounds 1]

Four jobs, CARFT on the tiny CLIP, each environment of a PACS-shaped tree of JPEGs left out in turn:
41 steps of 3 x 16, evaluated at the first and the last. So little is computed that pictures,
evaluation and start-up are what is waited for, as beside a GPU. A round runs the three sweeps one
after another, and the next in another order. The figures are wall times, so what else the machine
does counts: over several rounds ratios have quartiles.

PYTHON (default: this one) runs the checkout, and has upstream's requirements and this package.
The records of our two sweeps have to be equal but for times and rounding, else the exit status is
1: a job alone on the machine has more threads, which add up in another order.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from synthetic_tree import photographs

from domainbed_carft import machine

UPSTREAM, LOCAL, POOL = SWEEPS = ("upstream, local", "ours, local", "ours, pool")
GOALS = {LOCAL: 0.4, POOL: 0.25}


def seconds(
    sweep: str, data: Path, output: Path, upstream: Path, python: str, arguments: list[str]
) -> float:
    """Run one of the sweeps; its wall time."""
    theirs = sweep == UPSTREAM
    interpreter = python if theirs else sys.executable
    command = [interpreter, "-m", "domainbed.scripts.sweep", "launch", "--skip_confirmation"]
    command += ["--data_dir", str(data), "--output_dir", str(output), *arguments]
    command += ["--command_launcher", sweep.partition(", ")[2]]
    # Upstream's launcher has a shell look for `python`.
    path = f"{Path(interpreter).parent}{os.pathsep}{os.environ['PATH']}"
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=upstream if theirs else data, env={**os.environ, "PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    taken = time.perf_counter() - begin
    made = len([*output.glob("*/done")])
    if done.returncode or made != 4:
        words = "".join(path.read_text() for path in output.glob("*/err.txt"))
        raise SystemExit(f"{sweep}: {made} of 4 jobs are done\n{done.stderr}{words}"[-4000:])
    return taken


def records(output: Path) -> list[dict[str, Any]]:
    """All records of a sweep, without what differs between any two runs."""
    lines = [line for file in output.glob("*/results.jsonl") for line in file.open()]
    found = [json.loads(line) for line in lines]
    for record in found:
        del record["step_time"], record["mem_gb"], record["args"]["output_dir"]
        for name in ("evaluation_time", "device"):  # of our harness alone
            record.pop(name, None)
    return sorted(found, key=lambda record: (record["args"]["test_envs"], record["step"]))


def largest_difference(one: Any, other: Any) -> float:
    """Between two values of JSON: of their numbers, infinite where they differ in anything else."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = list(zip(one, other))
    else:
        return 0.0 if one == other else math.inf
    return max((largest_difference(*pair) for pair in pairs), default=0.0)


def main() -> int:
    """Run the sweeps, and print their times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--python", default=sys.executable, help="runs the checkout")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=41)
    parser.add_argument("--pictures", type=int, default=24, help="of a class and environment")
    given = parser.parse_args()
    if not (given.upstream / "domainbed" / "scripts").is_dir():
        parser.error(f"expected a checkout of DomainBed in {given.upstream}")
    # The caller's would keep the launchers from sharing out the cores.
    os.environ.pop("OMP_NUM_THREADS", None)
    times: dict[str, list[float]] = {name: [] for name in SWEEPS}
    apart = 0.0
    with tempfile.TemporaryDirectory(prefix="carft-whole-sweep-") as folder:
        count, classes = photographs(Path(folder), given.pictures)
        print(
            f"{platform.processor() or platform.machine()}, {machine.cores()} cores, Python "
            f"{platform.python_version()}, torch {torch.__version__}; {count} JPEGs of 500 x 400, "
            f"{given.steps} steps of 3 x 16",
            flush=True,
        )
        hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
        hparams |= {
            "batch_size": 16,
            "warmup_steps": min(5, given.steps - 1),
            "total_steps": given.steps,
        }
        hparams |= {"data_edition": "unchecked"}
        arguments = ["--algorithms", "CARFT", "--datasets", "PACS", "--single_test_envs"]
        arguments += ["--n_hparams", "1", "--n_trials", "1", "--steps", str(given.steps)]
        arguments += ["--hparams", json.dumps(hparams)]
        for number in range(given.rounds):
            order = SWEEPS[number % 3 :] + SWEEPS[: number % 3]
            outputs = {name: Path(folder, f"{number}-{name}") for name in SWEEPS}
            for name in order:
                place = Path(folder), outputs[name], given.upstream.resolve(), given.python
                times[name].append(seconds(name, *place, arguments))
                print(f"round {number + 1}, {name}: {times[name][-1]:.1f} s", flush=True)
            ours = records(outputs[LOCAL]), records(outputs[POOL])
            apart = max(apart, largest_difference(*ours))
    for name, goal in GOALS.items():
        ratios = [ours / theirs for ours, theirs in zip(times[name], times[UPSTREAM])]
        spread = ""
        if len(ratios) > 1:
            low, _, high = statistics.quantiles(ratios, n=4)
            spread = f" (quartiles {low:.2f} to {high:.2f})"
        print(f"{name}: {statistics.median(ratios):.2f} of upstream's{spread}; the goal is {goal}")
    print(f"The records under local and pool differ by at most {apart:.1g}.")
    return int(apart > 0.05)  # two of the smallest split's pictures


if __name__ == "__main__":
    sys.exit(main())
