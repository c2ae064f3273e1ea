"""Compute the golden files of tests/golden/upstream by running upstream's DomainBed.

    python tools/golden_from_upstream.py --upstream CHECKOUT

CHECKOUT is a clone of facebookresearch/DomainBed at commit b93c22a. Only values that its code
computes are kept. timm has to be installed; the package wilds, which plays no part here, has not:
empty modules stand in for it.
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
from pathlib import Path
from typing import Any
from unittest import mock

import golden_cases as cases
import golden_models as models
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "b93c22a"


def list_folders_in_order() -> None:
    """Let os.listdir sort, as our reader does.

    Upstream reads a sweep's folders in the file system's order, and adds numbers in that order;
    where a mean ends in an exact half, the order decides the digit that is printed.
    """
    unsorted = os.listdir
    os.listdir = lambda path=".": sorted(unsorted(path))  # type: ignore[assignment]


def stand_in_for_missing_packages() -> None:
    """Put empty modules where upstream imports packages that nothing here uses."""
    if importlib.util.find_spec("timm") is None:
        sys.exit("timm is needed: upstream's networks are built with it")
    for name, cls in (("camelyon17", "Camelyon17Dataset"), ("fmow", "FMoWDataset")):
        module = types.ModuleType(f"wilds.datasets.{name}_dataset")
        setattr(module, cls, object)
        sys.modules[module.__name__] = module
    for name in ("wilds", "wilds.datasets"):
        sys.modules[name] = types.ModuleType(name)


def upstream(name: str) -> Any:
    """Import a module of the upstream checkout."""
    return importlib.import_module(f"domainbed.{name}")


def plain(value: Any) -> Any:
    """Turn numpy scalars into what JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def seed_hashes() -> list[dict[str, Any]]:
    misc = upstream("lib.misc")
    return [{"args": args, "hash": misc.seed_hash(*args)} for args in cases.SEED_HASH_ARGS]


def hparams() -> dict[str, Any]:
    """ERM's hyperparameters, whose names are those of any algorithm without entries of its own."""
    return _hparams("ERM")


def hparams_carft() -> dict[str, Any]:
    """CARFT's on upstream's registry, to which this package's plugin has added them."""
    return _hparams("CARFT")


def _hparams(algorithm: str) -> dict[str, Any]:
    registry, misc = upstream("hparams_registry"), upstream("lib.misc")
    result: dict[str, Any] = {}
    for dataset in cases.HPARAMS_DATASETS:
        drawn = [
            {
                "seeds": seeds,
                "hparams": registry.random_hparams(algorithm, dataset, misc.seed_hash(*seeds)),
            }
            for seeds in cases.HPARAMS_SEEDS
        ]
        for entry in drawn:
            entry["hparams"] = {k: plain(v) for k, v in entry["hparams"].items()}
        default = registry.default_hparams(algorithm, dataset)
        result[dataset] = {"default": default, "random": drawn}
    return result


def jobs() -> dict[str, Any]:
    """Folders and command lines of the cases' sweeps, in the order of the list."""
    sweep = upstream("scripts.sweep")
    result = {}
    for name, keywords in cases.SWEEPS.items():
        made = [sweep.Job(args, "out dir") for args in sweep.make_args_list(**keywords)]
        result[name] = {"keywords": keywords, "commands": [job.command_str for job in made]}
    return result


class Stop(Exception):
    """Raised where upstream's train has done what is wanted of it."""


def run_upstream_train(arguments: list[str], output_dir: str) -> str:
    """Run upstream's train in this process; return what it printed."""
    out, err = sys.stdout, sys.stderr
    printed = io.StringIO()
    argv = ["train", *arguments, "--output_dir", output_dir]
    try:
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(printed):
            runpy.run_module("domainbed.scripts.train", run_name="__main__", alter_sys=True)
    finally:
        # Upstream replaces both for good.
        sys.stdout, sys.stderr = out, err
    return printed.getvalue()


def splits() -> list[dict[str, Any]]:
    """Run upstream's train up to its loaders, on numbered items, and look at what they get."""
    return [split_by_upstream(*case) for case in cases.SPLITS]


def split_by_upstream(
    sizes: list[int], test_envs: list[int], trial_seed: int, holdout: float, uda: float
) -> dict[str, Any]:
    datasets, loaders = upstream("datasets"), upstream("lib.fast_data_loader")

    class Numbers(datasets.MultipleDomainDataset):  # type: ignore[misc, name-defined]
        ENVIRONMENTS = [str(index) for index in range(len(sizes))]

        def __init__(self, *_: Any) -> None:
            self.datasets = [[(number, 0) for number in range(size)] for size in sizes]

    evaluated: list[list[int]] = []

    def look(dataset: Any, **_: Any) -> None:
        evaluated.append([number for number, _ in dataset])

    arguments = ["--dataset", "Numbers", "--test_envs", *map(str, test_envs)]
    arguments += ["--trial_seed", str(trial_seed), "--holdout_fraction", str(holdout)]
    arguments += ["--uda_holdout_fraction", str(uda)]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(datasets, "Numbers", Numbers, create=True),
        mock.patch.object(loaders, "InfiniteDataLoader", lambda **_: iter(())),
        mock.patch.object(loaders, "FastDataLoader", look),
        mock.patch.object(upstream("algorithms"), "get_algorithm_class", side_effect=Stop),
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
        **{name: [digest_if_long(part) for part in part_list] for name, part_list in parts.items()},
    }


def digest_if_long(numbers: list[int]) -> Any:
    """Keep short lists, and of long ones the MD5 of their JSON text."""
    if len(numbers) <= 50:
        return numbers
    return hashlib.md5(json.dumps(numbers).encode()).hexdigest()


def train_run() -> dict[str, Any]:
    """Run upstream's train with an algorithm that learns nothing and draws no random number."""
    algorithms, datasets = upstream("algorithms"), upstream("datasets")

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
    """What each selection method makes of each group of records in a sweep's folder."""
    reporting, selection = upstream("lib.reporting"), upstream("model_selection")
    methods = [
        selection.IIDAccuracySelectionMethod,
        selection.LeaveOneOutSelectionMethod,
        selection.OracleSelectionMethod,
    ]
    result = []
    for group in reporting.get_grouped_records(reporting.load_records(str(folder))):
        for method in methods:
            ranking = [
                [records[0]["args"]["hparams_seed"], plain(acc["val_acc"]), plain(acc["test_acc"])]
                for acc, records in method.hparams_accs(group["records"])
            ]
            keys = ("trial_seed", "dataset", "algorithm", "test_env")
            entry = {**{key: group[key] for key in keys}, "method": method.name}
            accuracy = plain(method.sweep_acc(group["records"]))
            result.append({**entry, "sweep_acc": accuracy, "ranking": ranking})
    return sorted(result, key=lambda entry: json.dumps(entry, sort_keys=True))


def tables(folder: Path, latex: bool) -> str:
    """What upstream's collect_results prints for a sweep's folder."""
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
    """Leave the program if `checkout` is not at the commit whose behaviour is the contract."""
    found = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    if not found.startswith(COMMIT):
        sys.exit(f"{checkout} must be a checkout of {COMMIT}, not of {found or 'no commit'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "golden" / "upstream")
    args = parser.parse_args()
    require_commit(args.upstream)
    sys.path[:0] = [str(args.upstream.resolve()), str(ROOT / "tests" / "harness")]
    stand_in_for_missing_packages()
    list_folders_in_order()
    synthetic = importlib.import_module("synthetic_records")

    args.output.mkdir(parents=True, exist_ok=True)
    of_models = (models.networks, models.erm_steps)
    for compute in (seed_hashes, hparams, hparams_carft, jobs, splits, train_run, *of_models):
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
