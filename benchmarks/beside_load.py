"""What a job of several threads loses beside other load, by how its threads wait for each other.

    python benchmarks/beside_load.py [--rounds 5] [--steps 10]

Steps of CARFT on the tiny CLIP, 3 x 16 pictures, with as many threads as there are cores (at least
two): as OpenMP does by itself, so that threads spin while they wait; with OMP_WAIT_POLICY=PASSIVE,
as our launchers set it; and with one thread. Each is measured alone and beside processes that keep
all cores busy, one after another in each round. Wall times: that is what is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from domainbed_carft import machine

BUSY = "while True: pass"
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def measure(steps: int) -> None:
    """In a process of its own: print the seconds of a step, after what the algorithm prints."""
    from step_cost import batch, make

    algorithm = make("CARFT", "tiny", "fp32")
    data = [batch(16, 48, number) for number in range(steps + 2)]
    for number, one in enumerate(data):
        if number == 2:  # the first warm up
            begin = time.perf_counter()
        algorithm.update(one)
    print((time.perf_counter() - begin) / steps)


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Busy processes beside the block."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def main() -> None:
    """Measure, and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}, expected at least 2 for a median and quartiles")
    cores = machine.cores()
    threads = {"OMP_NUM_THREADS": str(max(2, cores))}
    kinds = {
        "spinning": threads,
        "PASSIVE": {**threads, "OMP_WAIT_POLICY": "PASSIVE"},
        "one thread": {"OMP_NUM_THREADS": "1"},
    }
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, Python "
        f"{platform.python_version()}; {threads['OMP_NUM_THREADS']} threads"
    )
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = f"import beside_load; beside_load.measure({given.steps})"
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(given.rounds):
        for name, variables in kinds.items():
            for busy in (0, cores):
                with load(busy):
                    told = subprocess.run(
                        [sys.executable, "-c", code], cwd=os.path.dirname(__file__) or ".",
                        env={**kept, **variables}, stdout=subprocess.PIPE, text=True, check=True,
                    ).stdout  # fmt: skip
                times.setdefault((name, busy), []).append(float(told.split()[-1]))
    for (name, busy), taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        each = [a / b for a, b in zip(taken, times["one thread", busy])]
        print(
            f"{name}, {'beside load' if busy else 'alone'}: {1000 * middle:.0f} ms a step "
            f"(quartiles {1000 * low:.0f} to {1000 * high:.0f}), "
            f"{statistics.median(each):.2f} times as long as with one thread"
        )


if __name__ == "__main__":
    main()
