"""What the checksum of the picture store costs, as a share of getting a batch from the store.

    python benchmarks/picture_checksum.py [--rounds 15]

One process of one thread gets batches as a loader of the harness does on a processor, both stages,
from a store that holds all of its pictures. In each round it gets all pictures without a checksum,
with ours, and with zlib's CRC-32 in its place, in turn; the share is of processor time, the median
over rounds with quartiles. The pictures are those of `benchmarks/pictures.py`, JPEGs of 500 x 400.
Needs the extra `fast`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pictures
import torch
from domainbed.datasets import MultipleEnvironmentImageFolder
from domainbed.lib.picture_batches import Pictures, Source

from domainbed_carft.pictures import rng, store, store_folder
from domainbed_carft.pictures.protocols import plan_for

BATCH = 32
CASES = {"training": 0, "test": 1}  # the environment of each


def measure(source: Source) -> float:
    """Seconds of processor time a picture."""
    count = len(source.folder.samples) // BATCH * BATCH
    started = time.process_time()
    for first in range(0, count, BATCH):
        with rng.preserved_states():
            source.batch([(0, place, (0, place)) for place in range(first, first + BATCH)])
    return (time.process_time() - started) / count


def filled_sources(root: Path, folder: Path) -> list[Source]:
    """For each environment how to read its pictures from a store below ``folder``, full of them."""
    folder.mkdir()
    tempfile.tempdir = str(folder)
    kept, line = store_folder.open_store("1G")
    assert kept, line
    environments = MultipleEnvironmentImageFolder(str(root), [1], True, {})
    plan = dataclasses.replace(
        plan_for("domainbed", 224, augment=True), mode="fast", jitter="numba"
    )
    job_pictures = Pictures(plan, kept)
    sources = [source for data in environments if (source := job_pictures.source(data))]
    for source in sources:
        measure(source)
    return sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checksums: dict[str, Callable[[bytes, np.ndarray], int]] = {
        "none": lambda key, content: 0,
        "ours": store.checksum,
        "crc32": lambda key, content: zlib.crc32(content.data, zlib.crc32(key)),
    }
    with tempfile.TemporaryDirectory() as folder:
        pictures.make_pictures(Path(folder, "data"))
        sources = {}
        for name, checksum in checksums.items():
            store.checksum = checksum
            sources[name] = filled_sources(Path(folder, "data"), Path(folder, name))

        print(
            f"{pictures.processor()}, one thread; medians of {arguments.rounds} rounds (quartiles)"
        )
        for case, environment in CASES.items():
            times: dict[str, list[float]] = {name: [] for name in checksums}
            for number in range(arguments.rounds):
                names = [*checksums]
                for name in names[number % 3 :] + names[: number % 3]:
                    store.checksum = checksums[name]
                    times[name].append(measure(sources[name][environment]))

            without = times.pop("none")
            print(f"{case}: {statistics.median(without) * 1e3:.3f} ms a picture without a checksum")
            for name, seconds in times.items():
                shares = [with_it / base - 1 for with_it, base in zip(seconds, without)]
                low, middle, high = statistics.quantiles(shares, n=4)
                print(f"  {name:6} {middle:+7.1%} ({low:+.1%} to {high:+.1%})")


if __name__ == "__main__":
    main()
