"""How long collecting a sweep takes, and how much memory, with the same values coming out.

    python benchmarks/collect.py FOLDER [--jobs 3840] [--rounds 5] [--upstream CHECKOUT]

writes a sweep that never ran into FOLDER unless one is there already, and collects it with
``carft collect``, with the harness's ``collect_results``, and with that of an upstream checkout,
in all three methods of selection; with ``carft collect`` also in all columns, every algorithm
against CARFT. Seconds are medians of the rounds, which take turns, by the clock
(with the least and the most) and by the processors; memory is that of a process and its descendants
together, in a run of its own. Ends with status 1 if a value differs in a printed digit. The
checkout's own dependencies have to be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import printed_tables
import process_memory
import synthetic_sweep

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Upstream reads folders in the file system's order, on which the last bit of a mean depends, and
# with it how a half is rounded; tests/golden/upstream was made in the same way.
SORTED = """
import os, runpy
unsorted = os.listdir
os.listdir = lambda path=".": sorted(unsorted(path))
runpy.run_module("domainbed.scripts.collect_results", run_name="__main__", alter_sys=True)
"""
COLLECT = "carft collect"
COLLECT_ALL = "carft collect --columns all --against CARFT"
MIB = 1024  # in the kernel's KiB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=3840)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--upstream", type=Path, help="a checkout of DomainBed")
    parser.add_argument("--no-harness", action="store_true", help="carft collect only")
    arguments = parser.parse_args()
    describe(arguments.folder, arguments.jobs)
    ways = commands(arguments)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    texts = {}
    for _ in range(arguments.rounds):
        for name, (command, folder) in ways.items():
            started = time.perf_counter(), used()
            texts[name] = output(command, folder)
            times[name].append((time.perf_counter() - started[0], used() - started[1]))
    for name, (command, folder) in ways.items():
        clock, processors = map(sorted, zip(*times[name], strict=True))
        print(
            f"{name}: {statistics.median(clock):.2f} s ({clock[0]:.2f} to {clock[-1]:.2f}), "
            f"{statistics.median(processors):.2f} s of processors, "
            f"{memory(command, folder) / MIB:.0f} MiB"
        )
    return compare(texts)


def describe(folder: Path, jobs: int) -> None:
    """Write the sweep if it is not there; say how large it is and where it is read."""
    if not folder.exists():
        synthetic_sweep.write(folder, jobs)
    files = list(folder.glob("*/results.jsonl"))
    size = sum(path.stat().st_size for path in files)
    lines = sum(path.read_bytes().count(b"\n") for path in files[:1]) * len(files)
    print(
        f"{len(files):,} jobs, {lines:,} records, {size / 1e6:.0f} MB; "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )


def commands(arguments: argparse.Namespace) -> dict[str, tuple[list[str], Path]]:
    """Name -> command line, and the folder to run it in."""
    here = Path.cwd()
    folder = str(arguments.folder.resolve())
    collect = [sys.executable, "-m", "domainbed_carft", "collect", folder, "--format", "json"]
    collect += ["--select", ",".join(printed_tables.METHODS.values())]
    ways = {
        COLLECT: (collect, here),
        COLLECT_ALL: ([*collect, "--columns", "all", "--against", "CARFT"], here),
    }
    script = [sys.executable, "-m", "domainbed.scripts.collect_results", "--input_dir"]
    if not arguments.no_harness:
        ways["the harness's collect_results"] = ([*script, folder], here)
    if arguments.upstream:
        sweep = ["--input_dir", folder]
        ways["upstream's collect_results"] = (
            [sys.executable, "-c", SORTED, *sweep],
            arguments.upstream,
        )
    return ways


def used() -> float:
    """Processor seconds of all descendants that have ended so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def output(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | ONE_THREAD, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def memory(command: list[str], folder: Path) -> int:
    """Most that the process and its descendants held together, in KiB."""
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    peak = 0
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    while not ended.wait(0.05):
        held = sum(map(process_memory.proportional, process_memory.family(process.pid)))
        peak = max(peak, held)
    return peak


def compare(texts: dict[str, str]) -> int:
    """Say in which cells the others differ from ``carft collect``; the exit status."""
    ours = printed_tables.of_json(json.loads(texts.pop(COLLECT))["tables"])
    with_all = printed_tables.of_json(json.loads(texts.pop(COLLECT_ALL))["tables"])
    status = int(bool(printed_tables.differences(ours, with_all)))
    for name, text in texts.items():
        found = printed_tables.differences(ours, printed_tables.read(text))
        cells = sum(len(row) for rows in ours.values() for row in rows.values())
        print(f"{name}: {cells - len(found)} of {cells} values equal as printed")
        for line in found[:10]:
            print(f"  {line}")
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main())
