"""The cost of evaluating a checkpoint, by upstream's transforms and by ours.

    python benchmarks/evaluation.py [--images 9991] [--rounds 3] [--workers 1]

All splits of a tree of PACS's shape (four environments, seven classes, JPEGs of 227 x 227 px) are
evaluated by CARFT on the embedded tiny CLIP, the training environments' images augmented as in
upstream, in turn by the dataset's own transforms, which are upstream's, and as a job does it: the
second of two evaluations, with and without the target's images in memory. Processor time of all
processes counts, since other work on the machine changes it less than the time on the clock.
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
from domainbed.lib import checks, image_batches, preparation, training
from domainbed.scripts import train
from PIL import Image

from domainbed_carft.jobs.folder import JobFolder

ENVIRONMENTS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
SIDE = 227
TRANSFORMS = "upstream's transforms"
FROM_FILES = "ours, from the files"
IN_MEMORY = "ours, the target in memory"
MEMORY = 6 << 30  # bytes


def grow(root: Path, count: int) -> None:
    """Smooth images with some noise, as photographs have; 64 files, linked."""
    draw = np.random.default_rng(0)
    originals = []
    for index in range(64):
        colours = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.array(smooth, dtype=np.int16) + draw.integers(-12, 13, (SIDE, SIDE, 3))
        originals.append(root / f"{index}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(originals[-1], quality=90)
    for index in range(count):
        place = root / "PACS" / ENVIRONMENTS[index % 4] / CLASSES[index // 4 % 7]
        place.mkdir(parents=True, exist_ok=True)
        os.link(originals[index % 64], place / f"{index}.jpg")


def evaluated(words: list[str], way: str) -> tuple[float, float, dict[str, float]]:
    """Seconds on the clock, seconds of processors, and the accuracies."""
    args = train.build_parser().parse_args(words)
    for name in train.UNRECORDED_FLAGS:
        del vars(args)[name]
    hparams = preparation.choose_hparams(args, checks.parse_hparams(args.hparams))
    with contextlib.redirect_stdout(io.StringIO()):
        job = preparation.prepare(args, hparams, MEMORY if way == IN_MEMORY else 0)
        if way == TRANSFORMS:
            job = dataclasses.replace(job, images=image_batches.Images())
        with training.stopping.StopSignals() as stop, JobFolder(args.output_dir).claim(1) as lock:
            run = training.Trainer(job, None, stop, lock)
            run.batches.begin(1, True, False, run.n_workers, job.images)
            with contextlib.closing(run.batches):
                run.evaluator.accuracies()
                run.batches.step_batches()
                began, spent = time.perf_counter(), sum(os.times()[:4])
                accuracies = run.evaluator.accuracies()
            return time.perf_counter() - began, sum(os.times()[:4]) - spent, accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=9991, help="in all environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}, expected at least 2 for a spread")
    print(
        f"torch {torch.__version__}, Pillow {PIL.__version__}, {torch.get_num_threads()} threads, "
        f"{arguments.workers} loader process(es), {arguments.images:,} images"
    )
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder), arguments.images)
        shared = [
            *("--algorithm", "CARFT", "--dataset", "PACS", "--data_dir", folder),
            *("--hparams", '{"clip_backbone": "tiny", "data_edition": "unchecked"}'),
            *("--workers", str(arguments.workers), "--output_dir", f"{folder}/job"),
            *("--steps", "10", "--checkpoint_freq", "1"),
        ]
        Path(folder, "job").mkdir()
        found: dict[str, list[Any]] = {way: [] for way in (TRANSFORMS, FROM_FILES, IN_MEMORY)}
        for _ in range(arguments.rounds):
            for way, measured in found.items():
                measured.append(evaluated(shared, way))
    (old, *others) = found
    for way, rounds in found.items():
        wall, spent = (statistics.median(times) for times in list(zip(*rounds))[:2])
        print(f"{way:24} {wall:6.1f} s, {spent:6.1f} s of processors (medians)")
    for way in others:
        for what, which in (("clock", 0), ("processors", 1)):
            ratios = [ours[which] / theirs[which] for ours, theirs in zip(found[way], found[old])]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds"
            print(f"{way}: {statistics.median(ratios):.3f} of upstream's, {what} ({spread})")
        apart = max(abs(found[way][0][2][name] - value) for name, value in found[old][0][2].items())
        print(f"{way}: accuracies apart by at most {100 * apart:.2f} points")


if __name__ == "__main__":
    main()
