"""What the evaluation of a checkpoint costs, by upstream's transforms and by ours, side by side.

    python benchmarks/evaluation.py [--pictures 9991] [--rounds 3] [--workers 1] [--before CHECKOUT]

All splits of a tree of PACS's shape (four environments, seven classes, JPEGs of 227 x 227 px) are
evaluated by CARFT on the embedded tiny CLIP, the training environments' pictures augmented as in
upstream, in turn by the data set's own transforms, which are upstream's, and as a job does it: the
second of two evaluations, with and without the target's pictures in memory. Processor time of all
processes counts, since other work on the machine changes it less than the time on the clock; both
are printed. ``--before`` adds what this
package took at an earlier commit, in a checkout of it (`git worktree add CHECKOUT 77cac3e`), where
all pictures had 224 px for every CLIP and each pass started its own loaders.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from domainbed.lib import checks, picture_batches, preparation, training
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
BEFORE = """
import json, os, sys, time
from domainbed.lib import training
from domainbed.scripts import train

original = training.Trainer._evaluate

def evaluate(self, step):
    began, spent = time.perf_counter(), sum(os.times()[:4])
    found = original(self, step)
    told = time.perf_counter() - began, sum(os.times()[:4]) - spent, found
    print(json.dumps(told), file=sys.__stdout__, flush=True)
    os._exit(0)

training.Trainer._evaluate = evaluate
train.main(sys.argv[1:])
"""


def grow(root: Path, count: int) -> None:
    """Smooth pictures with some noise, as photographs have; 64 files, linked."""
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
            job = dataclasses.replace(job, pictures=picture_batches.Pictures())
        with training.stopping.StopSignals() as stop, JobFolder(args.output_dir).claim(1) as lock:
            run = training.Trainer(job, None, stop, lock)
            run.batches.begin(1, True, False, run.n_workers, job.pictures)
            with contextlib.closing(run.batches):
                run.evaluator.accuracies()
                run.batches.step_batches()
                began, spent = time.perf_counter(), sum(os.times()[:4])
                accuracies = run.evaluator.accuracies()
            return time.perf_counter() - began, sum(os.times()[:4]) - spent, accuracies


def before(checkout: str, words: list[str]) -> tuple[float, float, dict[str, float]]:
    """`evaluated` of the package in ``checkout``, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", BEFORE, *words, "--steps", "1"], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": checkout}, cwd=checkout,
    ).stdout  # fmt: skip
    clock, spent, accuracies = json.loads(told.splitlines()[-1])
    return clock, spent, accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=9991, help="in all environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--before", help="a checkout of this package at an earlier commit")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}, expected at least 2 for a spread")
    print(
        f"torch {torch.__version__}, Pillow {PIL.__version__}, {torch.get_num_threads()} threads, "
        f"{arguments.workers} loader process(es), {arguments.pictures:,} pictures"
    )
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder), arguments.pictures)
        shared = [
            *("--algorithm", "CARFT", "--dataset", "PACS", "--data_dir", folder),
            *("--hparams", '{"clip_backbone": "tiny", "data_edition": "unchecked"}'),
            *("--workers", str(arguments.workers), "--output_dir", f"{folder}/job"),
            *("--steps", "10", "--checkpoint_freq", "1"),
        ]
        Path(folder, "job").mkdir()
        found: dict[str, list[Any]] = {way: [] for way in (TRANSFORMS, FROM_FILES, IN_MEMORY)}
        then: list[Any] = []
        for _ in range(arguments.rounds):
            for way, measured in found.items():
                measured.append(evaluated(shared, way))
            if arguments.before:
                then.append(before(arguments.before, shared))
    (old, *others) = found
    if then:
        ratios = [ours[1] / theirs[1] for ours, theirs in zip(found[others[-1]], then)]
        spent = statistics.median(times[1] for times in then)
        print(
            f"{arguments.before}: {spent:.1f} s of processors; {others[-1]}: "
            f"{statistics.median(ratios):.3f} of that ({min(ratios):.3f} to {max(ratios):.3f})"
        )
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
