"""Is a job on our harness the same as on DomainBed's own? Splits, pictures seen, accuracies.

    python benchmarks/parity.py --upstream CHECKOUT [--seeds 5] [--algorithms CARFT ERM]

Each job runs twice with the same arguments: from the root of a checkout of facebookresearch/
DomainBed, so on its harness, and from an empty folder, so on ours. Both need this package and
upstream's requirements installed. The data is EmojiStyles' pictures laid out as PACS, which both
know; a job's trial seed is its seed, and `art_painting` (here fluent3d) the test environment.

- CLIPZeroShot, no augmentation, all 1,716 pictures: nothing is random but the splits, so every
  accuracy must be equal to the last digit.
- CARFT on the tiny CLIP with EmojiStyles' hparams: `--steps` steps of 3 x 16, up to 20 pictures of
  each class and environment.
- ERM, ResNet-18, from random weights: `--erm_steps` steps of 3 x 4, 16 pictures of each of 4
  classes and environment. The random weights stand in a TORCH_HOME where ImageNet's would be.

Within each job's process `watched_job` replaces each label by one that tells the picture too, and
turns it back before an algorithm or the accuracy sees it: so it is known which pictures came into
which split, were trained on as which environment, and evaluated as which split. CARFT and ERM draw
in another order on each harness: over the seeds, the mean difference has its standard error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDERS = {"art_painting": "fluent3d", "cartoon": "line", "photo": "noto", "sketch": "twemoji"}
TEST_ENV = 0
TRAINING = [i for i in range(len(FOLDERS)) if i != TEST_ENV]
SPLITS = [f"env{i}_{part}" for part in ("in", "out") for i in range(len(FOLDERS))]
HARNESSES = ("upstream", "ours")
# The classes (none: all) and the pictures of each: ResNet-18 takes 55 ms a picture and core.
DATA: dict[str, tuple[list[str], int]] = {
    "CLIPZeroShot": ([], 1000),
    "CARFT": ([], 20),
    "ERM": (["animal", "face", "plant", "vehicle"], 16),
}
LOADERS = 2  # processes; upstream's 8 for each of 11 loaders are more than a small machine feeds
CLASSES, INDICES = 16, 4096  # room for labels, and for the pictures of an environment
# In a process of its own: this file is no module of a package, and `-c` finds domainbed as -m does.
WATCHED = "import runpy, sys; runpy.run_path(sys.argv[1])['watched_job']()"


def watched_job() -> None:
    """Run DomainBed's train with the rest of the command line; write what it did as JSON."""
    import domainbed

    report, sys.argv = sys.argv[2], ["train", *sys.argv[3:]]
    seen: dict[str, Any] = {"splits": {}, "trained": defaultdict(list), "evaluated": []}
    seen["harness"] = str(Path(domainbed.__file__).parent)
    watch(seen)
    try:
        runpy.run_module("domainbed.scripts.train", run_name="__main__", alter_sys=True)
    finally:
        Path(report).write_text(json.dumps(seen), encoding="utf-8")


def watch(seen: dict[str, Any]) -> None:
    """Wrap what both harnesses call under the same name; pictures are written to `seen`."""
    from domainbed import algorithms, datasets
    from domainbed.lib import misc
    from torchvision.datasets import ImageFolder

    datasets.MultipleDomainDataset.N_WORKERS = LOADERS
    init, split, accuracy = ImageFolder.__init__, misc.split_dataset, misc.accuracy
    get_class = algorithms.get_algorithm_class

    def marked(folder: Any, *args: Any, **kwargs: Any) -> None:
        init(folder, *args, **kwargs)
        folder.samples = [
            (path, y + CLASSES * mark(folder, index))
            for index, (path, y) in enumerate(folder.samples)
        ]

    def watched_split(data: Any, n: int, seed: int = 0) -> Any:
        parts = split(data, n, seed)
        if isinstance(data, ImageFolder):  # and not an in-split that is split again
            for part, name in zip(parts, ("out", "in")):
                keys = vars(part).get("keys", vars(part).get("indices"))
                env = mark(data, 0) // INDICES
                seen["splits"][f"env{env}_{name}"] = [mark(data, key) for key in keys]
        return parts

    def watched_accuracy(
        network: Any, loader: Any, weights: Any, device: Any, **options: Any
    ) -> float:
        marks: list[int] = []
        value: float = accuracy(network, unmarked(loader, marks), weights, device, **options)
        seen["evaluated"].append(marks)
        return value

    ImageFolder.__init__ = marked
    misc.split_dataset, misc.accuracy = watched_split, watched_accuracy
    algorithms.get_algorithm_class = lambda name: watched_class(get_class(name), seen["trained"])


def watched_class(algorithm: Any, trained: dict[int, list[int]]) -> Any:
    """The class, its step wrapped once: it may be asked for more often."""
    # Ours takes the first if there is one; upstream knows the second.
    ours = "domainbed.lib.job_batches" in sys.modules and hasattr(algorithm, "step_on_device")
    name = "step_on_device" if ours else "update"
    step = getattr(algorithm, name)
    if hasattr(step, "watched"):
        return algorithm

    def watched_step(self: Any, minibatches: Any, *more: Any) -> Any:
        plain: list[Any] = []
        for env, batch in zip(TRAINING, minibatches, strict=True):
            plain += unmarked([batch], trained[env])
        return step(self, plain, *more)

    watched_step.watched = True  # type: ignore[attr-defined]
    setattr(algorithm, name, watched_step)
    return algorithm


def mark(folder: Any, index: int) -> int:
    """A number for a picture of an environment's folder."""
    return index + INDICES * [*FOLDERS].index(Path(folder.root).name)


def unmarked(batches: Any, marks: list[int]) -> Iterator[tuple[Any, Any]]:
    """The batches with plain labels; which pictures they hold is appended to `marks`."""
    for x, y in batches:
        marks += (y // CLASSES).tolist()
        yield x, y % CLASSES


def lay_out(root: Path, chosen: list[str], pictures: int) -> list[str]:
    """Link EmojiStyles' pictures as root/PACS, of each class so many evenly spaced; its classes."""
    from domainbed_carft.data import emoji

    source = emoji.style_folders()
    classes = chosen or sorted(path.name for path in (source / "noto").iterdir())
    for environment, name in itertools.product(FOLDERS, classes):
        target = root / "PACS" / environment / name
        target.mkdir(parents=True)
        files = sorted((source / FOLDERS[environment] / name).iterdir())
        taken = min(len(files), pictures)
        for file in [files[i * len(files) // taken] for i in range(taken)]:
            (target / file.name).symlink_to(file)
    return classes


def stand_in_weights(torch_home: Path) -> None:
    """Random weights of a ResNet-18, where both harnesses look for ImageNet's."""
    import torch
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(0)
    path = torch_home / "hub" / "checkpoints" / os.path.basename(ResNet18_Weights.IMAGENET1K_V1.url)
    path.parent.mkdir(parents=True)
    torch.save(resnet18(weights=None).state_dict(), path)


def commands(steps: int, erm_steps: int, classes: list[str]) -> dict[str, list[str]]:
    """Each algorithm's part of the command line, but for seeds and folders."""
    clip = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes, "lr": 3e-4}
    clip |= {"batch_size": 16, "warmup_steps": min(10, steps - 1), "total_steps": steps}
    clip |= {"amp": "off", "data_edition": "unchecked"}
    zero_shot = clip | {"data_augmentation": False}
    erm = {"resnet18": True, "resnet50_augmix": False, "batch_size": 4, "lr": 1e-4}
    chosen = {"CLIPZeroShot": (1, zero_shot), "CARFT": (steps, clip), "ERM": (erm_steps, erm)}
    return {
        name: ["--steps", str(n), "--checkpoint_freq", str(n + 1), "--hparams", json.dumps(hparams)]
        for name, (n, hparams) in chosen.items()
    }


def run(work: Path, upstream: Path, algorithm: str, seed: int, rest: list[str]) -> dict[str, Any]:
    """One job on each harness, one after the other; what was seen, with the last record."""
    both = {}
    for harness, folder in zip(HARNESSES, (upstream, work / "empty")):
        job = work / f"{algorithm}-{seed}-{harness}"
        command = [sys.executable, "-c", WATCHED, __file__, f"{job}.json"]
        command += f"--algorithm {algorithm} --dataset PACS --test_envs {TEST_ENV}".split()
        command += f"--trial_seed {seed} --seed {seed} --skip_model_save".split()
        command += ["--data_dir", str(work / "data" / algorithm), "--output_dir", str(job), *rest]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_HOME": str(work / "torch")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{job.name} failed:\n{done.stderr[-2000:]}")
        seen = json.loads(Path(f"{job}.json").read_text(encoding="utf-8"))
        if (Path(seen["harness"]) == upstream / "domainbed") != (harness == "upstream"):
            raise SystemExit(f"{job.name} ran on {seen['harness']}, which is the other harness")
        lines = (job / "results.jsonl").read_text(encoding="utf-8").splitlines()
        both[harness] = seen | {"checkpoints": len(lines), "record": json.loads(lines[-1])}
    print(f"{algorithm}, seed {seed}: done", flush=True)
    return both


def exact(pair: dict[str, Any]) -> dict[str, bool]:
    """What has to be equal in a pair of jobs, or true in both; accuracies only without chance."""
    a, b = jobs = [pair[harness] for harness in HARNESSES]
    theirs, ours = (job["record"] for job in jobs)
    facts = {
        "same splits, in the same order": a["splits"] == b["splits"],
        "same hparams": theirs["hparams"] == ours["hparams"],
        "as many pictures of each environment": counts(a) == counts(b),
        "trained on pictures of the in-splits only": all(
            set(marks) <= set(job["splits"][f"env{env}_in"])
            for job in jobs
            for env, marks in job["trained"].items()
        ),
        "each split evaluated whole, at each checkpoint": all(
            [*map(sorted, job["evaluated"])]
            == [sorted(job["splits"][s]) for s in SPLITS] * job["checkpoints"]
            for job in jobs
        ),
    }
    if theirs["args"]["algorithm"] == "CLIPZeroShot":
        facts["every accuracy equal"] = all(theirs[f"{s}_acc"] == ours[f"{s}_acc"] for s in SPLITS)
    return facts


def counts(job: dict[str, Any]) -> dict[str, int]:
    """How many pictures of each environment a job was trained on."""
    return {f"env{env}": len(marks) for env, marks in job["trained"].items()}


def figures(record: dict[str, Any]) -> dict[str, float]:
    """The accuracies of a record in percent, and the mean loss since the last checkpoint."""
    values = {split: 100 * record[f"{split}_acc"] for split in SPLITS}
    for part in ("in", "out"):
        mean = statistics.mean(values[f"env{i}_{part}"] for i in TRAINING)
        values[f"mean of training environments, {part}"] = mean
    return {**values, "loss": record["loss"]}


def compared(pairs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each figure its means, and the mean of ours - upstream's with its standard error."""
    theirs, ours = ([figures(pair[h]["record"]) for pair in pairs] for h in HARNESSES)
    result = {}
    for name in ours[0]:
        each = [b[name] - a[name] for a, b in zip(theirs, ours)]
        result[name] = {
            "upstream": statistics.mean(a[name] for a in theirs),
            "ours": statistics.mean(b[name] for b in ours),
            "apart": statistics.mean(each),
            "standard error": statistics.stdev(each) / len(each) ** 0.5,
            "each": each,
        }
    return result


def conclude(by_algorithm: dict[str, list[dict[str, Any]]], path: Path) -> int:
    """Show and write the comparison; 1 if what must be equal is not."""
    written, failed = {}, False
    for algorithm, pairs in by_algorithm.items():
        facts, table = [exact(pair) for pair in pairs], compared(pairs)
        seen = [{h: counts(pair[h]) for h in HARNESSES} for pair in pairs]
        written[algorithm] = {"exact": facts, "trained on": seen, "figures": table}
        failed |= not all(all(fact.values()) for fact in facts)
        print(f"\n{algorithm}, {len(pairs)} seeds; trained on, in the first: {seen[0]}")
        for name in facts[0]:
            print(f"  {name}: {sum(fact[name] for fact in facts)} of {len(facts)}")
        print(f"  {'':32}{'upstream':>9}{'ours':>9}{'apart':>9}{'s.e.':>8}  within 2 s.e.")
        for name, row in table.items():
            theirs, ours, apart, error = [*row.values()][:4]
            within = "yes" if abs(apart) <= 2 * error else "NO"
            print(f"  {name:34}{theirs:7.3f}{ours:9.3f}{apart:+9.3f}{error:8.3f}  {within}")
    path.write_text(json.dumps(written, indent=1), encoding="utf-8")
    print(f"\nWritten: {path}")
    return int(failed)


def main() -> int:
    """Run all jobs, print and write the comparison; 1 if what must be equal is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--algorithms", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--steps", type=int, default=60, help="of CARFT (default: 60)")
    parser.add_argument("--erm_steps", type=int, default=25, help="(default: 25)")
    parser.add_argument("--output", type=Path, help="new folder for jobs and parity.json")
    arguments = parser.parse_args()
    upstream = arguments.upstream.resolve()
    if arguments.seeds < 2 or not (upstream / "domainbed" / "scripts" / "train.py").is_file():
        parser.error(f"expected --seeds of 2 or more, and domainbed/scripts/train.py in {upstream}")
    work = (arguments.output or Path(tempfile.mkdtemp(prefix="parity-"))).resolve()
    (work / "empty").mkdir(parents=True)
    stand_in_weights(work / "torch")
    classes = {name: lay_out(work / "data" / name, *data) for name, data in DATA.items()}
    rest = commands(arguments.steps, arguments.erm_steps, classes["CARFT"])
    runs = [*itertools.product(arguments.algorithms, range(arguments.seeds))]
    with ThreadPoolExecutor(2) as pool:
        pairs = pool.map(lambda r: run(work, upstream, *r, rest[r[0]]), runs)
        by_algorithm: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for (name, _), pair in zip(runs, pairs):
            by_algorithm[name].append(pair)
    return conclude(by_algorithm, work / "parity.json")


if __name__ == "__main__":
    sys.exit(main())
