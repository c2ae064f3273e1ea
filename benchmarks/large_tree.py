"""What a data set of DomainNet's size costs: check, start of a job, memory, a checkpoint interval.

    python benchmarks/large_tree.py --folder FOLDER [--parts verify start lists train]
        [--train_scale 0.02] [--steps 101] [--workers 2] [--distinct 64] [--cold] [--keep]

Below FOLDER a tree is made with the environments, classes and counts of DomainNet, 586,575 small
pictures; where a count is known by environment only it is spread evenly over the classes. The
pictures are hard links to ``--distinct`` JPEGs of 8 to 16 px; with 586575 or more each is a file of
its own, and 2.4 GB of disk are taken. Each part runs in processes of its own:

- ``verify``: ``carft data verify DomainNet``, twice; with ``--cold`` (root only) the kernel's
  caches of the whole machine are dropped before the first;
- ``start``: a training job until its first step is done, twice: the first reads all prompts with
  the text encoder, the second finds them in the cache;
- ``lists``: one pass over all splits as an evaluation makes it, but with nothing read or decoded,
  for the memory that the lists of pictures take in the loader's processes;
- ``train``: a job of ``--steps`` steps and the checkpoint after the last of them, on
  ``--train_scale`` of the pictures: what an interval between two checkpoints costs. The checkpoint
  that DomainBed makes of the first step of a job is left out. ``--train_scale 1 --steps 1001`` is
  an interval of DomainBed's on the whole set.

Memory is what the processes of a job hold together, looked at every half second, without the pages
of program files, which they share with other jobs (pages that n of them share count 1/n in each).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from process_memory import MIB, Memory
from synthetic_tree import NAME, grow, pictures, wanted

from domainbed_carft.data import benchmarks

HPARAMS = {"clip_backbone": "tiny"}


def run(title: str, *command: object, **environment: str) -> None:
    """Run a command to its end; print how long it took and what memory."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    memory = Memory(process.pid)
    memory.start()
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    memory.stopped.set()
    memory.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{title}: exit status {process.returncode}\n{output[-3000:]}")
    print(
        f"{title}: {seconds:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of processor time); "
        f"{memory.said()}largest process {usage.ru_maxrss // MIB:,} MiB resident"
    )
    print("".join(f"    {line}\n" for line in output.splitlines() if line.startswith("| ")), end="")
    sys.stdout.flush()


# Inside a job's own process


class Clock:
    """Sums the time that functions take, and how often they are called."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def watch(self, holder: Any, function: str, title: str) -> None:
        """Put a function that is timed in its place."""
        original = getattr(holder, function)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[title] += time.perf_counter() - began
                self.calls[title] += 1

        setattr(holder, function, timed)

    def show(self) -> None:
        """Print all, on the lines that the benchmark hands on."""
        for title, seconds in self.seconds.items():
            print(f"| {seconds:8.2f} s  {title} (calls: {self.calls[title]:,})")
        print(f"| {own():8,} MiB at most in the first process, resident")
        print(f"| {time.perf_counter() - self.began:8.2f} s  in all, from the first import")


def job(arguments: argparse.Namespace, steps: int) -> list[str]:
    """The command line of a training job."""
    flags = (
        f"--algorithm CARFT --dataset {NAME} --test_envs 0 --workers {arguments.workers} "
        f"--steps {steps} --checkpoint_freq {max(1, steps - 1)} --skip_model_save"
    )
    return [
        *flags.split(),
        *("--data_dir", str(arguments.folder), "--hparams", json.dumps(HPARAMS)),
        *("--output_dir", str(arguments.folder / "output")),
    ]


def inside_job(arguments: argparse.Namespace, only_start: bool) -> None:
    """Train with a clock, as ``domainbed.scripts.train`` does; perhaps to the first step only.

    Of the checkpoints that of the first step is left out.
    """
    clock = Clock()
    from domainbed import datasets
    from domainbed.lib import (
        evaluation,
        image_folders,
        job_batches,
        preparation,
        step_meters,
        training,
    )
    from domainbed.scripts import train

    from domainbed_carft.clips import backbone

    clock.seconds["importing"], clock.calls["importing"] = time.perf_counter() - clock.began, 1
    clock.watch(datasets, "list_environments", "listing")
    clock.watch(datasets, "verify_listing", "our check of the data")
    clock.watch(image_folders, "read_environment", "ImageFolders of the listed pictures")
    clock.watch(preparation, "split_environments", "splits")
    clock.watch(backbone, "text_features", "text features of all prompts")
    clock.watch(training.Trainer, "__init__", "loaders and algorithm, text features included")
    clock.watch(job_batches.JobBatches, "step_batches", "waiting for the pictures of steps")
    clock.watch(step_meters, "step", "steps")
    clock.watch(evaluation.Evaluator, "evaluate", "evaluations")
    if only_start:

        def stop(*_: Any) -> None:
            clock.show()
            raise SystemExit(0)

        training.Trainer._checkpoint = stop
    else:
        checkpoint = training.Trainer._checkpoint
        training.Trainer._checkpoint = lambda trainer, step: (
            checkpoint(trainer, step) if step else None
        )
    status = train.main(job(arguments, arguments.steps))
    clock.show()
    raise SystemExit(status)


def inside_lists(arguments: argparse.Namespace) -> None:
    """Hand every picture's place, but no picture, through the loaders of an evaluation."""
    import torch
    from domainbed.lib import checks, fast_data_loader, preparation
    from domainbed.lib.picture_batches import Pictures
    from domainbed.scripts import train

    args = train.build_parser().parse_args(job(arguments, 1))
    dataset, environments = preparation.load_environments(
        args, preparation.choose_hparams(args, checks.parse_hparams(args.hparams))
    )
    nothing = torch.zeros(1)
    for folder in dataset:
        folder.loader, folder.transform = str, lambda path: nothing
    parts = [part for e in environments for part in (e.in_split, e.out_split)]
    print(f"| {own():,} MiB in the first process before the pass (resident)")
    began = time.perf_counter()
    count = 0
    requests = fast_data_loader.evaluation_requests([len(part) for part in parts], 64, ())
    for _, labels in fast_data_loader.load_batches(parts, requests, arguments.workers, Pictures()):
        count += len(labels)
    print(f"| {count:,} pictures' places in {time.perf_counter() - began:.1f} s")
    print(f"| {own():,} MiB in the first process at most (resident)")


def own() -> int:
    """The largest resident set size of this process, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MIB


# The parts


def drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(arguments: argparse.Namespace, part: str) -> None:
    """One part; the tree is there."""
    command = [__file__, "--folder", arguments.folder, "--workers", arguments.workers, "--inside"]
    cache = {"DOMAINBED_CARFT_CACHE": str(arguments.folder / "cache")}
    if part == "verify":
        verify = ("-m", "domainbed_carft", "data", "verify", NAME, "--data_dir", arguments.folder)
        if arguments.cold:
            drop_caches()
        run(f"verify, first{', caches dropped' if arguments.cold else ''}", *verify)
        run("verify, again", *verify)
    elif part == "start":
        for when in ("prompts to be read", "prompts in the cache"):
            run(f"start of a job, {when}", *command, "start", **cache)
    elif part == "lists":
        run("all lists once, nothing decoded", *command, "lists", **cache)
    else:
        run(f"{arguments.steps} steps", *command, "train", "--steps", arguments.steps, **cache)


def prepare(arguments: argparse.Namespace, scale: float) -> None:
    """Make the tree of this size, unless an earlier run kept one."""
    root = arguments.folder / benchmarks.get(NAME).folder
    stamp = arguments.folder / "scale"
    state = f"{scale} {arguments.distinct}"
    if stamp.is_file() and stamp.read_text() == state:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    began = time.perf_counter()
    originals = pictures(arguments.folder / "originals", min(arguments.distinct, 60_001))
    made = grow(root, wanted(scale), originals)
    stamp.write_text(state)
    print(f"a tree of {made:,} pictures made in {time.perf_counter() - began:.0f} s")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="made, and deleted afterwards")
    parser.add_argument("--keep", action="store_true", help="leave the tree there")
    parts = ["verify", "start", "lists", "train"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--scale", type=float, default=1.0, help="of the parts other than train")
    parser.add_argument("--train_scale", type=float, default=0.02, help="of the part train")
    parser.add_argument("--steps", type=int, default=101)
    parser.add_argument("--workers", type=int, default=2, help="the loader's processes")
    parser.add_argument("--distinct", type=int, default=64, help="different files")
    parser.add_argument("--cold", action="store_true", help="drop the machine's caches; root only")
    parser.add_argument("--inside", choices=["start", "lists", "train"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.distinct < 10:
        parser.error(f"--distinct is {arguments.distinct}, expected 10 or more: ext4 has a limit")
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.inside == "lists":
        inside_lists(arguments)
    elif arguments.inside:
        inside_job(arguments, arguments.inside == "start")
    else:
        if arguments.folder.exists() and not (arguments.folder / "originals").is_dir():
            raise SystemExit(f"{arguments.folder} exists and is not of this benchmark")
        arguments.folder.mkdir(parents=True, exist_ok=True)
        print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
        for part in sorted(arguments.parts, key="verify start lists train".split().index):
            prepare(arguments, arguments.train_scale if part == "train" else arguments.scale)
            measure(arguments, part)
        if not arguments.keep:
            shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
