"""Compute the golden files of tests/golden/upstream by running upstream's DomainBed.

    python tools/golden_from_upstream.py --upstream CHECKOUT

CHECKOUT is a clone of facebookresearch/DomainBed at commit b93c22a. The files contain only values
that its code computes. timm must be installed. The package wilds is not needed, because empty
modules replace it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision

SEED_HASH_ARGS: list[list[Any]] = [
    [0],
    [0, 0],
    [2, 5],
    [123, "lr"],
    ["PACS", "ERM", [0], 0, 0],
    ["PACS", "CARFT", [1, 3], 7, 2],
    ["naïve", 0.5, None, True],
]

SWEEPS: dict[str, dict[str, Any]] = {
    "leave_one_out": {
        "n_trials": 2,
        "dataset_names": ["Debug28", "PACS"],
        "algorithms": ["ERM", "CARFT"],
        "n_hparams_from": 0,
        "n_hparams": 2,
        "steps": None,
        "data_dir": "/data",
        "task": "domain_generalization",
        "holdout_fraction": 0.2,
        "single_test_envs": False,
        "hparams": None,
    },
    "single_test_envs": {
        "n_trials": 1,
        "dataset_names": ["DomainNet", "TerraIncognita"],
        "algorithms": ["CARFT"],
        "n_hparams_from": 3,
        "n_hparams": 5,
        "steps": 1001,
        "data_dir": "/my data/it's here/",
        "task": "domain_generalization",
        "holdout_fraction": 0.1,
        "single_test_envs": True,
        "hparams": '{"lr": 1e-05, "contexts": "a photo of a {}"}',
    },
}

HPARAMS_DATASETS = ("Debug28", "PACS", "DomainNet", "SVIRO", "SomeoneElsesData")
HPARAMS_SEEDS = ((1, 0), (1, 1), (2, 0), (19, 2))

# (items of each environment, test_envs, trial_seed, holdout_fraction, uda_holdout_fraction)
SPLITS: list[tuple[list[int], list[int], int, float, float]] = [
    ([16, 16, 16], [0], 0, 0.2, 0.0),
    ([7, 40, 33, 21], [1, 3], 2, 0.25, 0.5),
    ([2048, 2344, 1670, 3929], [2], 1, 0.2, 0.1),
]

# Name -> (shape of an input, hyperparameters that differ from the defaults)
NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mnist, 1 channel": ((1, 28, 28), {}),
    "mnist, 2 channels, nonlinear": ((2, 28, 28), {"nonlinear_classifier": True}),
    "resnet18": ((3, 224, 224), {"resnet18": True, "resnet50_augmix": False}),
    "resnet18, 5 channels": ((5, 224, 224), {"resnet18": True, "resnet50_augmix": False}),
    "resnet50": ((3, 224, 224), {"resnet50_augmix": False}),
    "resnet50_augmix": ((3, 224, 224), {}),
    "resnet50_augmix over resnet18": ((3, 224, 224), {"resnet18": True}),
}

# Networks trained by ERM for a few steps -> hyperparameters that differ from the defaults
STEPS: dict[str, dict[str, Any]] = {
    "mnist, 1 channel": {"weight_decay": 0.1},
    "mnist, 2 channels, nonlinear": {"lr": 0.01},
    "resnet18": {"freeze_bn": True},
}


@contextlib.contextmanager
def no_pretrained_weights() -> Iterator[None]:
    """Make the builders that upstream calls start from random weights."""
    timm = importlib.import_module("timm")

    def drop_pretrained(build: Any) -> Any:
        return lambda pretrained: build(weights=None)

    small, large = torchvision.models.resnet18, torchvision.models.resnet50
    create = timm.create_model
    with (
        mock.patch.object(torchvision.models, "resnet18", drop_pretrained(small)),
        mock.patch.object(torchvision.models, "resnet50", drop_pretrained(large)),
        mock.patch.object(timm, "create_model", lambda name, pretrained: create(name)),
    ):
        yield


def build_erm(name: str, **more: Any) -> Any:
    """Build upstream's ERM with one of the NETWORKS, from seed 0."""
    registry = importlib.import_module("domainbed.hparams_registry")
    algorithms = importlib.import_module("domainbed.algorithms")
    inputs = importlib.import_module("fixed_inputs")
    shape, changed = NETWORKS[name]
    dataset = "Debug28" if 28 in shape else "PACS"
    hparams = {**registry.default_hparams("ERM", dataset), **changed, **more}
    torch.manual_seed(0)
    with no_pretrained_weights():
        return algorithms.ERM(shape, inputs.CLASSES, 3, hparams)


def networks() -> dict[str, Any]:
    """Return parameter names and shapes, first random draws, and outputs of each network."""
    return {name: network(name) for name in NETWORKS}


def network(name: str) -> dict[str, Any]:
    inputs = importlib.import_module("fixed_inputs")
    algorithm = build_erm(name)
    following = torch.rand(1).item()
    shapes = {key: "x".join(map(str, value.shape)) for key, value in algorithm.state_dict().items()}
    pretrained = 224 in NETWORKS[name][0]
    drawn = algorithm.classifier if pretrained else algorithm.network
    result = {
        "input_shape": NETWORKS[name][0],
        "hparams": NETWORKS[name][1],
        "n_outputs": algorithm.featurizer.n_outputs,
        "shapes": {key: shape for key, shape in shapes.items() if not key.startswith("network.")},
        "all_names": inputs.digest_of_names(shapes),
        "drawn": [parameter.flatten()[0].item() for parameter in drawn.parameters()],
        "drawn_afterwards": following,
    }
    inputs.set_weights(algorithm.network)
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(inputs.normal("x", (2, *NETWORKS[name][0])))
    return {**result, "logits": logits.tolist()}


def erm_steps() -> dict[str, Any]:
    """Return the losses of a few steps of ERM, and the logits after them."""
    return {name: steps(name, more) for name, more in STEPS.items()}


def steps(name: str, more: dict[str, Any]) -> dict[str, Any]:
    inputs = importlib.import_module("fixed_inputs")
    shape = NETWORKS[name][0]
    algorithm = build_erm(name, **more)
    inputs.set_weights(algorithm.network)
    algorithm.train()
    losses = [algorithm.update(inputs.minibatches(shape, step))["loss"] for step in range(3)]
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(inputs.normal("x", (2, *shape)))
    return {"hparams": more, "losses": losses, "logits": logits.tolist()}


ROOT = Path(__file__).resolve().parent.parent
COMMIT = "b93c22a"


def sort_folder_listings() -> None:
    """Make os.listdir sort, as our reader does.

    Upstream reads a sweep's folders in the file system's order, and adds numbers in that order. If
    a mean ends in an exact half, the order decides the digit that is printed.
    """
    unsorted = os.listdir
    os.listdir = lambda path=".": sorted(unsorted(path))  # type: ignore[assignment]


def replace_missing_packages() -> None:
    """Replace packages that upstream imports without using them here by empty modules."""
    if importlib.util.find_spec("timm") is None:
        sys.exit("timm is not installed; upstream builds its networks with it")
    for name, cls in (("camelyon17", "Camelyon17Dataset"), ("fmow", "FMoWDataset")):
        module = types.ModuleType(f"wilds.datasets.{name}_dataset")
        setattr(module, cls, object)
        sys.modules[module.__name__] = module
    for name in ("wilds", "wilds.datasets"):
        sys.modules[name] = types.ModuleType(name)


def import_upstream(name: str) -> Any:
    """Import a module of the upstream checkout."""
    return importlib.import_module(f"domainbed.{name}")


def to_json(value: Any) -> Any:
    """Convert numpy scalars for JSON."""
    return value.item() if isinstance(value, np.generic) else value


def seed_hashes() -> list[dict[str, Any]]:
    misc = import_upstream("lib.misc")
    return [{"args": args, "hash": misc.seed_hash(*args)} for args in SEED_HASH_ARGS]


def hparams() -> dict[str, Any]:
    """Return ERM's hyperparameters, whose names every algorithm without own entries shares."""
    return _hparams("ERM")


def hparams_carft() -> dict[str, Any]:
    """Return CARFT's hyperparameters from upstream's registry, as added by our plugin."""
    return _hparams("CARFT")


def _hparams(algorithm: str) -> dict[str, Any]:
    registry, misc = import_upstream("hparams_registry"), import_upstream("lib.misc")
    result: dict[str, Any] = {}
    for dataset in HPARAMS_DATASETS:
        drawn = [
            {
                "seeds": seeds,
                "hparams": registry.random_hparams(algorithm, dataset, misc.seed_hash(*seeds)),
            }
            for seeds in HPARAMS_SEEDS
        ]
        for entry in drawn:
            entry["hparams"] = {k: to_json(v) for k, v in entry["hparams"].items()}
        default = registry.default_hparams(algorithm, dataset)
        result[dataset] = {"default": default, "random": drawn}
    return result


def jobs() -> dict[str, Any]:
    """Return the command lines of the SWEEPS in order."""
    sweep = import_upstream("scripts.sweep")
    result = {}
    for name, keywords in SWEEPS.items():
        all_jobs = [sweep.Job(args, "out dir") for args in sweep.make_args_list(**keywords)]
        result[name] = {"keywords": keywords, "commands": [job.command_str for job in all_jobs]}
    return result


class Stop(Exception):
    """Raised to end upstream's train as soon as it has made its loaders."""


def run_upstream_train(arguments: list[str], output_dir: str) -> str:
    """Run upstream's train in this process and return its output."""
    out, err = sys.stdout, sys.stderr
    printed = io.StringIO()
    argv = ["train", *arguments, "--output_dir", output_dir]
    try:
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(printed):
            runpy.run_module("domainbed.scripts.train", run_name="__main__", alter_sys=True)
    finally:
        # Upstream replaces both and does not restore them.
        sys.stdout, sys.stderr = out, err
    return printed.getvalue()


def splits() -> list[dict[str, Any]]:
    """Run upstream's train up to its loaders on numbered items, and return the loaders' items."""
    return [run_upstream_split(*case) for case in SPLITS]


def run_upstream_split(
    sizes: list[int], test_envs: list[int], trial_seed: int, holdout: float, uda: float
) -> dict[str, Any]:
    datasets, loaders = import_upstream("datasets"), import_upstream("lib.fast_data_loader")

    class Numbers(datasets.MultipleDomainDataset):  # type: ignore[misc, name-defined]
        ENVIRONMENTS = [str(index) for index in range(len(sizes))]

        def __init__(self, *_: Any) -> None:
            self.datasets = [[(number, 0) for number in range(size)] for size in sizes]

    evaluated: list[list[int]] = []

    def record_items(dataset: Any, **_: Any) -> None:
        evaluated.append([number for number, _ in dataset])

    arguments = ["--dataset", "Numbers", "--test_envs", *map(str, test_envs)]
    arguments += ["--trial_seed", str(trial_seed), "--holdout_fraction", str(holdout)]
    arguments += ["--uda_holdout_fraction", str(uda)]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(datasets, "Numbers", Numbers, create=True),
        mock.patch.object(loaders, "InfiniteDataLoader", lambda **_: iter(())),
        mock.patch.object(loaders, "FastDataLoader", record_items),
        mock.patch.object(import_upstream("algorithms"), "get_algorithm_class", side_effect=Stop),
        contextlib.suppress(Stop),
    ):
        run_upstream_train(arguments, folder)
    n = len(sizes)
    parts = {"in": evaluated[:n], "out": evaluated[n : 2 * n], "uda": evaluated[2 * n :]}
    return {
        "sizes": sizes,
        "test_envs": test_envs,
        "trial_seed": trial_seed,
        "holdout_fraction": holdout,
        "uda_holdout_fraction": uda,
        **{name: [shorten(part) for part in part_list] for name, part_list in parts.items()},
    }


def shorten(numbers: list[int]) -> Any:
    """Return a short list as it is, and the MD5 of the JSON text of a long one."""
    if len(numbers) <= 50:
        return numbers
    return hashlib.md5(json.dumps(numbers).encode()).hexdigest()


def train_run() -> dict[str, Any]:
    """Run upstream's train with an algorithm that does not learn or draw random numbers."""
    algorithms, datasets = import_upstream("algorithms"), import_upstream("datasets")

    class Still(algorithms.Algorithm):  # type: ignore[misc, name-defined]
        def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
            sizes = [len(x) for x, _ in minibatches]
            return {"loss": float(sum(sizes)), "domains": float(len(sizes))}

        def predict(self, x: Any) -> Any:
            flat = x.flatten(1)
            return torch.stack([flat[:, 0], flat[:, 1]], dim=1)

    arguments = ["--dataset", "Debug28", "--algorithm", "Still", "--test_envs", "1"]
    arguments += ["--steps", "8", "--seed", "5"]
    arguments += ["--checkpoint_freq", "3", "--trial_seed", "1", "--hparams", '{"batch_size": 4}']
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(algorithms, "Still", Still, create=True),
        mock.patch.object(datasets.MultipleDomainDataset, "N_WORKERS", 0),
    ):
        printed = run_upstream_train(arguments, folder)
        with open(Path(folder, "results.jsonl"), encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        files = sorted(path.name for path in Path(folder).iterdir())
        model = sorted(torch.load(Path(folder, "model.pkl"), weights_only=True))
    for record in records:
        del record["step_time"], record["args"]["output_dir"]
    header = next(line for line in printed.splitlines() if line.startswith("domains"))
    return {
        "arguments": arguments,
        "records": records,
        "header": header,
        "files": files,
        "model_keys": model,
    }


def selections(folder: Path) -> list[dict[str, Any]]:
    """Return the result of each selection rule for each group of records of a sweep."""
    reporting, selection = import_upstream("lib.reporting"), import_upstream("model_selection")
    methods = [
        selection.IIDAccuracySelectionMethod,
        selection.LeaveOneOutSelectionMethod,
        selection.OracleSelectionMethod,
    ]
    result = []
    for group in reporting.get_grouped_records(reporting.load_records(str(folder))):
        for method in methods:
            ranking = [
                [
                    records[0]["args"]["hparams_seed"],
                    to_json(acc["val_acc"]),
                    to_json(acc["test_acc"]),
                ]
                for acc, records in method.hparams_accs(group["records"])
            ]
            keys = ("trial_seed", "dataset", "algorithm", "test_env")
            entry = {**{key: group[key] for key in keys}, "method": method.name}
            accuracy = to_json(method.sweep_acc(group["records"]))
            result.append({**entry, "sweep_acc": accuracy, "ranking": ranking})
    return sorted(result, key=lambda entry: json.dumps(entry, sort_keys=True))


def tables(folder: Path, latex: bool) -> str:
    """Return the output of upstream's collect_results for a sweep's folder."""
    argv = ["collect_results", "--input_dir", str(folder), *(["--latex"] if latex else [])]
    printed, out = io.StringIO(), sys.stdout
    try:
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(printed):
            runpy.run_module("domainbed.scripts.collect_results", run_name="__main__")
    finally:
        sys.stdout = out
    return printed.getvalue()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def require_commit(checkout: Path) -> None:
    """Exit if `checkout` is not at the commit that defines the expected behaviour."""
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    if not commit.startswith(COMMIT):
        sys.exit(f"{checkout} is at {commit or 'no commit'}; expected a checkout of {COMMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "golden" / "upstream")
    args = parser.parse_args()
    require_commit(args.upstream)
    sys.path[:0] = [str(args.upstream.resolve()), str(ROOT / "tests" / "harness")]
    replace_missing_packages()
    sort_folder_listings()
    synthetic = importlib.import_module("synthetic_records")

    args.output.mkdir(parents=True, exist_ok=True)
    for compute in (
        seed_hashes,
        hparams,
        hparams_carft,
        jobs,
        splits,
        train_run,
        networks,
        erm_steps,
    ):
        write_json(args.output / f"{compute.__name__}.json", compute())
    for kind in synthetic.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write_sweep(Path(folder), kind)
            write_json(args.output / f"selections_{kind}.json", selections(Path(folder)))
            for latex, suffix in ((False, "txt"), (True, "tex")):
                path = args.output / f"tables_{kind}.{suffix}"
                path.write_text(tables(Path(folder), latex), encoding="utf-8")


if __name__ == "__main__":
    main()
