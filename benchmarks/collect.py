"""Compare time, memory and printed values of collectors of a sweep.

    python benchmarks/collect.py FOLDER [--jobs 3840] [--rounds 5] [--upstream CHECKOUT]

Unless FOLDER exists, it is filled with the records of a synthetic sweep. Each round collects the
sweep with ``carft collect``, the harness's ``collect_results``, and the ``collect_results`` of an
upstream checkout, by all three selection rules. The exit status is 1 if a printed value differs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DATASETS = {"PACS": 4, "VLCS": 4}
ALGORITHMS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")
TRIALS = 3
STEPS = tuple(range(0, 4801, 300))
JOBS_OF_ONE_CHOICE = len(DATASETS) * len(ALGORITHMS) * TRIALS * (4 + 6)
FURTHER_HPARAMS = 12  # DomainBed's own, and those that a fork adds
# Upstream reads folders in the file system's order, on which the last bit of a mean depends, and so
# the rounding of a half. tests/golden/upstream was made with sorted folders as well.
SORTED = """
import os, runpy
unsorted = os.listdir
os.listdir = lambda path=".": sorted(unsorted(path))
runpy.run_module("domainbed.scripts.collect_results", run_name="__main__", alter_sys=True)
"""
METHODS = {
    "training-domain validation set": "training-domain",
    "leave-one-domain-out cross-validation": "leave-one-domain-out",
    "test-domain validation set (oracle)": "oracle",
}
_HEADER = re.compile(r"-------- (?:Dataset: (.+?)|(Averages)), model selection method: (.+)")

# (method, dataset or "Averages") -> algorithm -> cells as printed, their average last
Tables = dict[tuple[str, str], dict[str, list[str]]]


class Cost(NamedTuple):
    """The cost of a command."""

    clock: float  # seconds
    cpu: float  # seconds of CPU time
    memory: float  # peak resident memory in MiB


def write_sweep(folder: Path, jobs: int) -> None:
    """Write about ``jobs`` jobs below ``folder``, the same number for each hyperparameter choice.

    Each dataset, algorithm and trial has jobs with one and with two test environments.
    """
    draw = random.Random(0)
    choices = max(1, round(jobs / JOBS_OF_ONE_CHOICE))
    for args in _arguments_of_jobs(folder, choices):
        records = [_record(args, step, draw) for step in STEPS]
        job = Path(args["output_dir"])
        job.mkdir(parents=True)
        lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
        (job / "results.jsonl").write_text(lines)
        (job / "done").write_text("done")


def _arguments_of_jobs(folder: Path, choices: int) -> Iterator[dict[str, Any]]:
    for (dataset, count), algorithm in itertools.product(DATASETS.items(), ALGORITHMS):
        targets = [list(pair) for n in (1, 2) for pair in itertools.combinations(range(count), n)]
        for envs, trial, choice in itertools.product(targets, range(TRIALS), range(choices)):
            args = {
                "algorithm": algorithm, "checkpoint_freq": None, "data_dir": "/data",
                "dataset": dataset, "holdout_fraction": 0.2, "hparams": None,
                "hparams_seed": choice, "save_model_every_checkpoint": False, "seed": 0,
                "skip_model_save": False, "steps": None, "task": "domain_generalization",
                "test_envs": envs, "trial_seed": trial, "uda_holdout_fraction": 0,
            }  # fmt: skip
            name = hashlib.md5(json.dumps(args, sort_keys=True).encode()).hexdigest()
            yield args | {"output_dir": str(folder / name)}


def _record(args: dict[str, Any], step: int, draw: random.Random) -> dict[str, Any]:
    """Make a record whose accuracies are multiples of 1/400, so that some are equal."""
    choice_draw = random.Random(args["hparams_seed"])
    hparams = {"batch_size": 32, "clip_backbone": "ViT-B/16", "contexts": "imagenet"}
    hparams |= {f"hyperparameter_{i}": choice_draw.random() for i in range(FURTHER_HPARAMS)}
    splits = itertools.product(range(DATASETS[args["dataset"]]), ("in", "out"))
    return {
        "args": args, "hparams": hparams, "step": step, "epoch": step / 41.75,
        "loss": draw.random(), "loss_kl": draw.random(), "step_time": draw.random(),
        "mem_gb": draw.random(), "device": "GPU",
        **{f"env{env}_{part}_acc": draw.randint(120, 400) / 400 for env, part in splits},
    }  # fmt: skip


def read_printed(text: str) -> Tables:
    """Parse the tables printed by ``domainbed.scripts.collect_results``."""
    tables: Tables = {}
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _HEADER.match(line):
            dataset, averages, method = match.groups()
            rows = tables.setdefault((METHODS[method], dataset or averages), {})
        elif line and not line.startswith(("Algorithm ", "Total records")):
            label, *cells = re.split(r"\s{2,}", line.strip())
            rows[label] = cells
        elif not line:
            rows = {}
    return tables


def read_json(tables: Iterable[Mapping[str, Any]]) -> Tables:
    """Parse the tables of ``carft collect --format json``, rounded like the text."""
    return {
        (table["selection"], table["dataset"] or "Averages"): {
            row["algorithm"]: [*map(_format_cell, row["cells"])] for row in table["rows"]
        }
        for table in tables
    }


def _format_cell(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "X"
    if cell["column"] == "average":  # upstream prints no error of it
        return f"{cell['mean']:.1f}"
    error = cell["standard_error"] or 0.0  # the text has an error even for a single trial
    return f"{cell['mean']:.1f} +/- {error:.1f}"


def differences(first: Tables, second: Tables) -> Sequence[str]:
    """Return a line for each cell whose text differs."""
    first_cells, second_cells = (
        {
            (*table, algorithm, place): cell
            for table, rows in tables.items()
            for algorithm, row in rows.items()
            for place, cell in enumerate(row)
        }
        for tables in (first, second)
    )
    return [
        f"{key}: {first_cells.get(key)} and {second_cells.get(key)}"
        for key in sorted({**first_cells, **second_cells}, key=str)
        if first_cells.get(key) != second_cells.get(key)
    ]


def run(command: list[str], folder: Path) -> tuple[str, Cost]:
    """Run a command and return its output and cost."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE
    )
    assert process.stdout
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    clock = time.perf_counter() - begin
    return output, Cost(clock, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of the sweep")
    parser.add_argument("--jobs", type=int, default=3840, help="number of synthetic jobs")
    parser.add_argument("--rounds", type=int, default=5, help="number of measurements")
    parser.add_argument("--upstream", type=Path, help="a checkout of DomainBed")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not folder.exists():
        write_sweep(folder, arguments.jobs)
    files = list(folder.glob("*/results.jsonl"))
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{len(files):,} jobs, {len(files) * len(STEPS):,} records, {size:.0f} MB")

    select = ["--format", "json", "--select", ",".join(METHODS.values())]
    script = ["-m", "domainbed.scripts.collect_results", "--input_dir", str(folder)]
    commands = {
        "carft collect": (["-m", "domainbed_carft", "collect", str(folder), *select], Path.cwd()),
        "the harness's collect_results": (script, Path.cwd()),
    }
    if arguments.upstream:
        words = ["-c", SORTED, "--input_dir", str(folder)]
        commands["upstream's collect_results"] = (words, arguments.upstream)

    texts: dict[str, str] = {}
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, (words, place) in commands.items():
            texts[name], cost = run([sys.executable, *words], place)
            costs[name].append(cost)
    for name, rounds in costs.items():
        clock, cpu, memory = (statistics.median(values) for values in zip(*rounds, strict=True))
        low, high = min(rounds).clock, max(rounds).clock
        print(
            f"{name}: {clock:.2f} s ({low:.2f} to {high:.2f}), {cpu:.2f} s of CPU time, "
            f"{memory:.0f} MiB"
        )

    ours, *others = texts
    our_tables = read_json(json.loads(texts[ours])["tables"])
    n_cells = sum(len(row) for rows in our_tables.values() for row in rows.values())
    differing = 0
    for name in others:
        lines = differences(our_tables, read_printed(texts[name]))
        print(f"{name}: {n_cells - len(lines)} of {n_cells} values equal as printed")
        print("".join(f"  {line}\n" for line in lines[:10]), end="")
        differing += len(lines)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
