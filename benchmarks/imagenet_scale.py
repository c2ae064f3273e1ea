"""What a training set of ImageNet's size costs: listing and check, memory, an interval of a job.

    python benchmarks/imagenet_scale.py --folder FOLDER [--pictures 1281167] [--steps 21]
        [--batch_size 64] [--workers 2] [--keep]

Below FOLDER are made 1,000 folders of WordNet ids with so many small pictures, hard links to 64
JPEGs of 8 to 16 px, and the same as shards of 1,280, by webdataset's own writer, in random order
(3.9 GB for ImageNet's number). Of each, in processes of their own:

- ``read``: the data set is built, which lists and checks it; of shards once without an index and
  once with it;
- ``train``: CARFT on the embedded CLIP, so many steps in passes, and after the last of them the
  evaluation of the 2% that are held out. The checkpoint after the first step is left out.

Memory is what all processes of a job hold together, without the pages of program files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from large_tree import Clock, run
from synthetic_tree import grow, pictures

from domainbed_carft.suites import imagenet

PER_SHARD = 1280


def make(arguments: argparse.Namespace) -> None:
    """The folders and the shards."""
    import numpy as np
    import webdataset

    ids, began = imagenet.wordnet_ids(), time.perf_counter()
    each, more = divmod(arguments.pictures, len(ids))
    counts = {name: each + (index < more) for index, name in enumerate(ids)}
    root = arguments.folder / "folders" / "imagenet"
    originals = pictures(arguments.folder / "originals", 64)
    grow(root, {"train": counts}, originals)
    print(f"folders made in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    packed = arguments.folder / "shards" / "imagenet"
    packed.mkdir(parents=True)
    contents = [path.read_bytes() for path in originals]
    labels = np.repeat(np.arange(len(ids)), list(counts.values()))
    with webdataset.ShardWriter(f"{packed}/train-%06d.tar", maxcount=PER_SHARD, verbose=0) as out:
        for place in np.random.default_rng(0).permutation(len(labels)).tolist():
            label, picture = int(labels[place]), contents[place % len(contents)]
            out.write({"__key__": f"{ids[label]}_{place}", "jpg": picture, "cls": label})
    print(f"shards made in {time.perf_counter() - began:.0f} s", flush=True)


def inside(arguments: argparse.Namespace) -> None:
    """In a job's own process: build the data set, or train."""
    clock = Clock()
    from domainbed.lib import checks, evaluation, job_batches, preparation, step_meters, training
    from domainbed.scripts import train

    from domainbed_carft.data import shard_reading
    from domainbed_carft.plugin import data_sets as data

    clock.seconds["importing"] = time.perf_counter() - clock.began
    clock.watch(data.ImageNet, "read", "listing and check")
    clock.watch(shard_reading, "read_samples", "of it, making the index")
    clock.watch(preparation, "split_environments", "splits")
    clock.watch(job_batches.JobBatches, "step_batches", "waiting for the pictures of steps")
    clock.watch(step_meters, "step", "steps")
    clock.watch(evaluation.Evaluator, "evaluate", "evaluating what is held out")
    hparams = {
        "clip_backbone": "tiny",
        "contexts": ["a {}.", "a photo of a {}."],
        "sampling": "passes",
        "batch_size": arguments.batch_size,
        "warmup_steps": 1,
        "total_steps": arguments.steps,
    }
    flags = (
        "--algorithm CARFT --dataset ImageNet --test_envs --holdout_fraction 0.02 "
        f"--steps {arguments.steps} --checkpoint_freq {arguments.steps - 1} --skip_model_save "
        f"--workers {arguments.workers} --output_dir {arguments.folder}/output"
    )
    command = [*flags.split(), "--data_dir", str(arguments.data), "--hparams", json.dumps(hparams)]
    status = 0
    if arguments.inside == "read":
        args = train.build_parser().parse_args(command)
        preparation.load_environments(
            args, preparation.choose_hparams(args, checks.parse_hparams(args.hparams))
        )
    else:
        checkpoint = training.Trainer._checkpoint

        def after_the_last(run: Any, step: int) -> None:
            if step:
                checkpoint(run, step)

        training.Trainer._checkpoint = after_the_last
        shutil.rmtree(arguments.folder / "output", ignore_errors=True)  # of the kind before
        status = train.main(command)
    clock.show()
    raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="made, and deleted afterwards")
    parser.add_argument("--keep", action="store_true", help="leave it there")
    parser.add_argument("--pictures", type=int, default=1_281_167)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="the loader's processes")
    parser.add_argument("--inside", choices=["read", "train"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments)
    arguments.folder.mkdir(parents=True)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    make(arguments)
    given = [
        f"--{name}={getattr(arguments, name)}"
        for name in ("folder", "steps", "batch_size", "workers")
    ]
    cache = {"DOMAINBED_CARFT_CACHE": str(arguments.folder / "cache")}
    for kind in ("folders", "shards"):
        where = [__file__, *given, "--data", arguments.folder / kind, "--inside"]
        run(f"{kind}, read", *where, "read", **cache)
        if kind == "shards":
            run(f"{kind}, read with the index", *where, "read", **cache)
        run(f"{kind}, {arguments.steps} steps", *where, "train", **cache)
    if not arguments.keep:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
