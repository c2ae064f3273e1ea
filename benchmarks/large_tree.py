"""Measure time and memory for a dataset with as many images as DomainNet.

    python benchmarks/large_tree.py --folder FOLDER [--scale 1] [--steps 1001] [--distinct 64]

Makes a tree in FOLDER with DomainNet's environments, classes and numbers of images: 586,575 JPEGs
of 8 to 16 px, which are hard links to ``--distinct`` files, or separate files (2.4 GB) if that is
at least 60,000. Then it runs, each in a separate process:

- ``carft data verify DomainNet``, twice;
- a CARFT job with ``tiny`` until the end of its first step, twice (the first job encodes all
  prompts);
- a job of ``--steps`` steps with the evaluation after the last step: one checkpoint interval.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from domainbed_carft.data import benchmarks

DOMAINNET = benchmarks.get("DomainNet")
MAX_LINKS = 60_000  # per file; ext4 allows 65,000
TRAIN = "--train"


def write_tree(root: Path, scale: float, distinct: int) -> int:
    """Write a share of DomainNet's images, at least two per class, and return their number."""
    root.mkdir(parents=True)
    originals = []
    for index in range(min(distinct, MAX_LINKS)):
        side = 8 + index % 9
        buffer = io.BytesIO()
        Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(buffer, "JPEG")
        originals.append(root.parent / f"{index}.jpg")
        originals[-1].write_bytes(buffer.getvalue())

    n_images = 0
    edition = DOMAINNET.editions[0]
    for environment, total in edition.counts.items():
        per_class, remainder = divmod(total, len(DOMAINNET.classes))
        even_counts = {
            name: per_class + (index < remainder) for index, name in enumerate(DOMAINNET.classes)
        }
        for name, count in edition.by_class.get(environment, even_counts).items():
            folder = root / environment / name
            folder.mkdir(parents=True)
            for index in range(max(2, round(scale * count))):
                original = originals[n_images % len(originals)]
                path = folder / f"{environment}_{len(name):03}_{index:06}.jpg"
                if distinct < MAX_LINKS:
                    os.link(original, path)
                else:
                    path.write_bytes(original.read_bytes())
                n_images += 1
    return n_images


def measure(title: str, *words: object) -> None:
    """Run a Python command, and print its time and peak memory."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{title}: exit status {process.returncode}")
    print(
        f"{title}: {time.perf_counter() - begin:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of "
        f"CPU time; largest process {usage.ru_maxrss / 1024:,.0f} MiB",
        flush=True,
    )


def train(words: list[str], steps: int) -> int:
    """Train like ``domainbed.scripts.train``, but without the evaluation after step 0."""
    from domainbed.lib import training
    from domainbed.scripts import train as script

    checkpoint = training.Trainer._checkpoint

    def skip_first(trainer: Any, step: int) -> None:
        if steps == 1:
            os._exit(0)
        if step:
            checkpoint(trainer, step)

    training.Trainer._checkpoint = skip_first
    return script.main(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder to create for the tree and the jobs"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of DomainNet's images")
    parser.add_argument("--steps", type=int, default=1001, help="of the long job (default: 1001)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument(
        "--distinct", type=int, default=64, help="number of different files, at least 10"
    )
    parser.add_argument(TRAIN, type=int, help=argparse.SUPPRESS)
    arguments, words = parser.parse_known_args()
    folder = arguments.folder
    if arguments.train:
        words += ["--steps", str(arguments.train), "--workers", str(arguments.workers)]
        return train(words, arguments.train)

    os.environ["DOMAINBED_CARFT_CACHE"] = str(folder / "cache")
    n_images = write_tree(folder / DOMAINNET.folder, arguments.scale, arguments.distinct)
    print(f"{n_images:,} images; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for number in ("first", "second"):
        verify = ("data", "verify", "DomainNet", "--data_dir", folder)
        measure(f"verify, {number}", "-m", "domainbed_carft", *verify)

    job = ["--algorithm", "CARFT", "--dataset", "DomainNet", "--test_envs", 0, "--data_dir", folder]
    job += ["--hparams", json.dumps({"clip_backbone": "tiny"}), "--workers", arguments.workers]
    for name, steps in (("start-1", 1), ("start-2", 1), ("train", arguments.steps)):
        output = ["--output_dir", folder / name, "--checkpoint_freq", steps, "--skip_model_save"]
        measure(name, __file__, "--folder", folder, TRAIN, steps, *job, *output)
    record = json.loads((folder / "train" / "results.jsonl").read_text().splitlines()[-1])
    seconds = arguments.steps * record["step_time"]
    print(f"steps: {seconds:.1f} s; evaluation: {record['evaluation_time']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
