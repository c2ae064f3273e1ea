"""What it saves on a processor that a job keeps the memory that it frees, as `train` has it do.

    python benchmarks/freed_memory.py [--shape tiny B/32] [--rounds 20] [--batch 8]

Two processes take the same steps of CARFT in turn, one with glibc's defaults, one with
`machine.keep_freed_memory`, each on one thread. Processor time, the ratio of each round's pair as
median with quartiles; then the pages that each was given by the kernel after its first step, and
its peak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from step_cost import DOMAINS, SHAPES, batch, make, weights_of

from domainbed_carft import machine


def steps(backbone: str, size: int, keeps: bool) -> None:
    """Take a step for each line of the standard input, and answer with what it took."""
    torch.set_num_threads(1)
    if keeps:
        machine.keep_freed_memory()
    pixels = 48 if backbone == "tiny" else 224
    with contextlib.redirect_stdout(sys.stderr):
        algorithm = make("CARFT", backbone, "fp32")
    for number, _ in enumerate(sys.stdin):
        data = batch(size, pixels, number)
        before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        algorithm.step_on_device(data)
        used = resource.getrusage(resource.RUSAGE_SELF)
        told = time.process_time() - before[0], used.ru_minflt - before[1], used.ru_maxrss
        print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=["tiny", "B/32"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pictures a domain for a ViT")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        warnings.simplefilter("ignore")
        steps(*given.one)
        return
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}, expected at least 2 for a median and quartiles")
    for shape in given.shape:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            size = 16 if shape == "tiny" else given.batch
            children = []
            for keeps in (False, True):
                what = json.dumps([weights_of(shape, Path(folder)), size, keeps])
                command = [sys.executable, __file__, "--one", what]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                child = stack.enter_context(subprocess.Popen(command, **pipes))
                children.append(child)
            found: list[list[list[float]]] = []
            for _ in range(given.rounds + 1):
                pair = []
                for child in children:
                    child.stdin.write("step\n")
                    child.stdin.flush()
                    pair.append(json.loads(child.stdout.readline()))
                found.append(pair)
            for child in children:
                child.stdin.close()
        rounds = found[1:]  # the first asks for all that is needed
        ratios = [kept[0] / usual[0] for usual, kept in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        pages = [sum(pair[which][1] for pair in rounds) / len(rounds) for which in (0, 1)]
        peaks = [found[-1][which][2] / 1024 for which in (0, 1)]
        print(
            f"{shape}, {DOMAINS} x {size}: {middle:.3f} ({low:.3f} to {high:.3f}, {len(rounds)} "
            f"rounds) of the time with glibc's defaults; pages a step {pages[1]:,.0f} instead of "
            f"{pages[0]:,.0f}; peak {peaks[1]:,.0f} MiB instead of {peaks[0]:,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
