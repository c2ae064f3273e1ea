"""One job on DomainBed's own harness and on ours: splits and accuracies.

    python benchmarks/parity.py --upstream CHECKOUT [--seeds 5] [--algorithms CLIPZeroShot CARFT]

Each job runs twice with the same arguments: from a checkout of facebookresearch/DomainBed, so on
its harness, and from an empty folder, so on ours. Both need this package and upstream's
requirements. The data is EmojiStyles' images in PACS's folders; the seed is also the trial seed,
and `art_painting` (here fluent3d) the test environment.

- CLIPZeroShot, no augmentation, all 1,716 images: only the splits are random, so every accuracy
  must be equal to the last digit. If one is not, the status is 1.
- CARFT on the tiny CLIP: `--steps` steps of 3 x 16, up to 20 images of each class and environment.
  Each harness draws batches in another order, so the differences have a mean and an interval.
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
IMAGES = {"CLIPZeroShot": 1000, "CARFT": 20}  # of a class and environment, at most
SPLITS = [f"env{env}_{part}_acc" for part in ("in", "out") for env in range(len(FOLDERS))]
# `-c` finds domainbed as `-m` does. Upstream starts 8 loader processes for each of 11 loaders.
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
    """Link EmojiStyles' images, evenly spaced, as root/PACS; returns the classes."""
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
    """Train a job on one of the harnesses; returns its last accuracies in percent and loss."""
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
    """Lay out an algorithm's data; returns its command line but for seeds and output folder."""
    classes = lay_out(data, IMAGES[algorithm])
    steps = steps if algorithm == "CARFT" else 1
    hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
    hparams |= {"batch_size": 16, "lr": 3e-4, "warmup_steps": min(10, steps - 1)}
    hparams |= {"total_steps": steps, "amp": "off", "data_edition": "unchecked"}
    hparams |= {"data_augmentation": algorithm == "CARFT"}
    words = ["--algorithm", algorithm, "--dataset", "PACS", "--data_dir", str(data)]
    words += ["--test_envs", "0", "--hparams", json.dumps(hparams), "--skip_model_save"]
    return [*words, "--steps", str(steps), "--checkpoint_freq", str(steps + 1)]


def train_seeds(name: Path, harness: Path, words: list[str], seeds: int) -> list[Figures]:
    """Train a job of each seed, two at a time."""

    def train_seed(seed: int) -> Figures:
        job = name.with_name(f"{name.name}-{seed}")
        return train(job, harness, [*words, "--seed", str(seed), "--trial_seed", str(seed)])

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(train_seed, range(seeds)))


def conclude(algorithm: str, upstream: Sequence[Figures], ours: Sequence[Figures]) -> bool:
    """Print the comparison; returns whether all figures are equal."""
    print(f"\n{algorithm}, {len(ours)} seeds: ours - upstream's, 95% interval by Student's t")
    for name in ours[0]:
        first, second = (np.array([each[name] for each in side]) for side in (upstream, ours))
        low, high = student_interval(list(second - first))
        print(
            f"  {name:28}{first.mean():8.3f}{second.mean():8.3f}"
            f"{(second - first).mean():+8.3f} ({low:+.3f} to {high:+.3f})"
        )
    return [*ours] == [*upstream]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--algorithms", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--steps", type=int, default=60, help="of CARFT (default: 60)")
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
            is_equal[algorithm] = conclude(algorithm, *figures)
    return int(not is_equal.get("CLIPZeroShot", True))


if __name__ == "__main__":
    sys.exit(main())
