"""Measure the cost of evaluating a checkpoint, relative to upstream's transforms.

    python benchmarks/evaluation.py [--images 9991] [--rounds 3] [--workers 1]

CARFT on the embedded tiny CLIP model evaluates all splits of a tree with PACS's folders (four
environments, seven classes, JPEGs of 227 x 227 px), and augments the images of the training
environments like upstream. It uses in turn the dataset's own transforms, which are upstream's, and
those of the package, with and without the target's images in memory. The second of two evaluations
is measured. The main result is the CPU time of all processes, which depends less than wall-clock
time on other work on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from domainbed import algorithms
from domainbed.lib import checks, preparation, training
from domainbed.scripts import train
from PIL import Image

from domainbed_carft.jobs.job_folder import JobFolder

ENVIRONMENTS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
SIDE = 227
TRANSFORMS = "upstream's transforms"
FROM_FILES = "carft, from files"
IN_MEMORY = "carft, target in memory"
MEMORY = 6 << 30  # bytes


def write_images(root: Path, count: int) -> None:
    """Write smooth images with some noise, similar to photographs: links to 64 files."""
    generator = np.random.default_rng(0)
    originals = []
    for index in range(64):
        colours = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.array(smooth, dtype=np.int16) + generator.integers(-12, 13, (SIDE, SIDE, 3))
        originals.append(root / f"{index}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(originals[-1], quality=90)
    for index in range(count):
        folder = root / "PACS" / ENVIRONMENTS[index % 4] / CLASSES[index // 4 % 7]
        folder.mkdir(parents=True, exist_ok=True)
        os.link(originals[index % 64], folder / f"{index}.jpg")


def evaluate(words: list[str], way: str) -> tuple[float, float, dict[str, float]]:
    """Return wall-clock seconds, CPU seconds, and the accuracies of an evaluation."""
    args = train.parse(words)[0]
    given = checks.parse_hparams(args.hparams)
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    hparams = algorithm_class.resolve_hparams(args.dataset, given, steps=args.steps).values
    with contextlib.redirect_stdout(io.StringIO()):
        job = preparation.prepare(args, hparams, MEMORY if way == IN_MEMORY else 0)
        if way == TRANSFORMS:
            job = dataclasses.replace(job, plan=None)
        with training.stopping.StopSignals() as stop, JobFolder(args.output_dir).claim(1) as lock:
            run = training.Trainer(job, None, stop, lock)
            run.batches.begin(1, True, False, run.n_workers)
            with contextlib.closing(run.batches):
                run.evaluator.accuracies()
                run.batches.step_batches()
                start, cpu_start = time.perf_counter(), sum(os.times()[:4])
                accuracies = run.evaluator.accuracies()
            return time.perf_counter() - start, sum(os.times()[:4]) - cpu_start, accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=9991, help="number of images (default: 9991)")
    parser.add_argument("--rounds", type=int, default=3, help="at least 2 (default: 3)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes (default: 1)")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; expected at least 2, to show the spread")
    print(
        f"torch {torch.__version__}, Pillow {PIL.__version__}, {torch.get_num_threads()} threads, "
        f"{arguments.workers} loader process(es), {arguments.images:,} images"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images)
        shared = [
            *("--algorithm", "CARFT", "--dataset", "PACS", "--data_dir", folder),
            *("--hparams", '{"clip_backbone": "tiny", "data_edition": "unverified"}'),
            *("--workers", str(arguments.workers), "--output_dir", f"{folder}/job"),
            *("--steps", "10", "--checkpoint_freq", "1"),
        ]
        Path(folder, "job").mkdir()
        results: dict[str, list[Any]] = {way: [] for way in (TRANSFORMS, FROM_FILES, IN_MEMORY)}
        for _ in range(arguments.rounds):
            for way, rounds in results.items():
                rounds.append(evaluate(shared, way))

    for way, rounds in results.items():
        wall, cpu = (statistics.median(times) for times in list(zip(*rounds))[:2])
        print(f"{way:24} {wall:6.1f} s, {cpu:6.1f} s of CPU time (medians)")
    upstream_rounds = results.pop(TRANSFORMS)
    upstream_accuracies = upstream_rounds[0][2]
    for way, rounds in results.items():
        for column, name in enumerate(("wall-clock time", "CPU time")):
            ratios = [times[column] / base[column] for times, base in zip(rounds, upstream_rounds)]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds"
            print(f"{way}: {statistics.median(ratios):.3f} of upstream's {name} ({spread})")
        accuracies = rounds[0][2]
        gap = max(abs(accuracies[name] - value) for name, value in upstream_accuracies.items())
        print(f"{way}: accuracies differ by at most {100 * gap:.2f} points")


if __name__ == "__main__":
    main()
