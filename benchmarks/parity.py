"""Compare the accuracies of jobs on DomainBed's harness and on the included one.

    python benchmarks/parity.py --upstream CHECKOUT [--seeds 5] [--algorithms CLIPZeroShot CARFT]

Each job runs twice with the same arguments: in a checkout of facebookresearch/DomainBed, where
Python imports DomainBed's harness, and in an empty folder, where it imports the included one.
Install this package and upstream's requirements. The data is EmojiStyles' images in PACS's folders.
The seed is also the trial seed, and `art_painting` (here fluent3d) is the test environment.

- CLIPZeroShot, no augmentation, all 1,716 images: only the splits are random, so all accuracies
  must be equal to the last digit. Otherwise the exit status is 1.
- CARFT on the tiny CLIP model: `--steps` steps of 3 x 16, up to 20 images per class and
  environment. The two harnesses draw batches in different order, so the mean difference is printed
  with its interval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from domainbed_carft.data import emoji
from domainbed_carft.results.comparisons import student_interval

FOLDERS = {"art_painting": "fluent3d", "cartoon": "line", "photo": "noto", "sketch": "twemoji"}
MAX_IMAGES = {"CLIPZeroShot": 1000, "CARFT": 20}  # per class and environment
SPLITS = [f"env{env}_{part}_acc" for part in ("in", "out") for env in range(len(FOLDERS))]
# `-c` finds domainbed in the same way as `-m`. By default upstream starts 8 loader processes for
# each of 11 loaders.
JOB = """
import runpy, sys
from domainbed import datasets
assert datasets.__file__.startswith(sys.argv[1]), f"{datasets.__file__} is the other harness"
datasets.MultipleDomainDataset.N_WORKERS = 2
sys.argv = ["train", *sys.argv[2:]]
runpy.run_module("domainbed.scripts.train", run_name="__main__", alter_sys=True)
"""
HARNESS = Path(__file__).resolve().parents[1] / "third_party"

Figures = dict[str, float]


def lay_out(root: Path, n_images: int) -> list[str]:
    """Link EmojiStyles' images, evenly spaced, below root/PACS, and return the classes."""
    source = emoji.style_folders()
    classes = sorted(path.name for path in (source / "noto").iterdir())
    for environment, name in itertools.product(FOLDERS, classes):
        target = root / "PACS" / environment / name
        target.mkdir(parents=True)
        files = sorted((source / FOLDERS[environment] / name).iterdir())
        count = min(len(files), n_images)
        for file in [files[i * len(files) // count] for i in range(count)]:
            (target / file.name).symlink_to(file)
    return classes


def train(job: Path, harness: Path, words: Sequence[str]) -> Figures:
    """Train a job on one of the harnesses, and return its last accuracies in percent and loss."""
    folder = job.parent / "empty" if harness == HARNESS else harness
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(harness), "--output_dir", str(job), *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{job.name} failed:\n{done.stderr[-2000:]}")
    record = json.loads((job / "results.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    percent = {split: 100 * record[split] for split in SPLITS}
    for part in ("in", "out"):
        mean = np.mean([percent[f"env{env}_{part}_acc"] for env in range(1, len(FOLDERS))])
        percent[f"training environments, {part}"] = float(mean)
    return percent | {"loss": record["loss"]}


def command(data: Path, algorithm: str, steps: int) -> list[str]:
    """Lay out an algorithm's data, and return its command line without seeds and output folder."""
    classes = lay_out(data, MAX_IMAGES[algorithm])
    steps = steps if algorithm == "CARFT" else 1
    hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
    hparams |= {"batch_size": 16, "lr": 3e-4, "warmup_steps": min(10, steps - 1)}
    hparams |= {"total_steps": steps, "amp": "off", "data_edition": "unverified"}
    hparams |= {"data_augmentation": algorithm == "CARFT"}
    words = ["--algorithm", algorithm, "--dataset", "PACS", "--data_dir", str(data)]
    words += ["--test_envs", "0", "--hparams", json.dumps(hparams), "--skip_model_save"]
    return [*words, "--steps", str(steps), "--checkpoint_freq", str(steps + 1)]


def train_seeds(name: Path, harness: Path, words: list[str], seeds: int) -> list[Figures]:
    """Train a job for each seed, two jobs at a time."""

    def train_seed(seed: int) -> Figures:
        job = name.with_name(f"{name.name}-{seed}")
        return train(job, harness, [*words, "--seed", str(seed), "--trial_seed", str(seed)])

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(train_seed, range(seeds)))


def compare(algorithm: str, upstream: Sequence[Figures], included: Sequence[Figures]) -> bool:
    """Print the comparison, and return True if all accuracies are equal."""
    print(f"\n{algorithm}, {len(included)} seeds: included - upstream, 95% interval (Student's t)")
    for name in included[0]:
        first = np.array([figures[name] for figures in upstream])
        second = np.array([figures[name] for figures in included])
        low, high = student_interval(list(second - first))
        print(
            f"  {name:28}{first.mean():8.3f}{second.mean():8.3f}"
            f"{(second - first).mean():+8.3f} ({low:+.3f} to {high:+.3f})"
        )
    return all(
        figures[split] == other[split]
        for figures, other in zip(included, upstream, strict=True)
        for split in SPLITS
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="checkout of DomainBed")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--algorithms", nargs="+", choices=MAX_IMAGES, default=list(MAX_IMAGES))
    parser.add_argument("--steps", type=int, default=60, help="steps of CARFT (default: 60)")
    arguments = parser.parse_args()
    upstream = arguments.upstream.resolve()
    if arguments.seeds < 2 or not (upstream / "domainbed" / "scripts" / "train.py").is_file():
        parser.error(f"expected --seeds of 2 or more, and domainbed/scripts/train.py in {upstream}")

    is_equal = {}
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        work = Path(name)
        (work / "empty").mkdir()
        for algorithm in arguments.algorithms:
            words = command(work / algorithm, algorithm, arguments.steps)
            figures = [
                train_seeds(work / f"{algorithm}-{harness.name}", harness, words, arguments.seeds)
                for harness in (upstream, HARNESS)
            ]
            is_equal[algorithm] = compare(algorithm, *figures)
    return int(not is_equal.get("CLIPZeroShot", True))


if __name__ == "__main__":
    sys.exit(main())
