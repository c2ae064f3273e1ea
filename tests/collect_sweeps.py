"""Records for the tests of the collector."""

from __future__ import annotations

import itertools
import json
import random
import runpy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from domainbed_carft.jobs import job, manifest
from domainbed_carft.results.collect import collect as collect

REPO = Path(__file__).resolve().parents[1]

TOP_LEVEL = ("changed_hparams", "data_edition", "environments", "protocol")


def load_benchmark(name: str) -> SimpleNamespace:
    """Run a file of benchmarks/, which is not a package, and return its names."""
    return SimpleNamespace(**runpy.run_path(str(REPO / "benchmarks" / f"{name}.py")))


def write_job(
    folder: Path,
    name: str = "job",
    at: Sequence[int] = (0, 100, 200),
    done: bool = True,
    seed: int | None = None,
    **facts: Any,
) -> Path:
    """Write a job's folder with records ``at`` steps; ``facts`` are arguments or record keys."""
    record_facts = {key: facts.pop(key) for key in TOP_LEVEL if key in facts}
    recorded = facts.pop("recorded", {"lr": 0.1})
    args = {
        "dataset": "PACS",
        "algorithm": "ERM",
        "test_envs": [0],
        "trial_seed": 0,
        "hparams_seed": 0,
        "seed": 7,
        "holdout_fraction": 0.2,
        "uda_holdout_fraction": 0,
        "steps": None,
        "checkpoint_freq": None,
        "hparams": None,
        "task": "domain_generalization",
        "output_dir": name,
        **facts,
    }
    count = len(record_facts.get("environments", "ACPS"))
    draw = random.Random(f"{name} {seed}")
    lines = []

    for step in at:
        record: dict[str, Any] = {
            "step": step,
            "epoch": step / 10,
            "hparams": recorded,
            "args": args,
            **record_facts,
        }
        for env in range(count):
            record |= {f"env{env}_{s}_acc": draw.randint(6, 20) / 20 for s in ("in", "out")}
        lines.append(json.dumps(record, sort_keys=True) + "\n")

    job = Path(folder) / name
    job.mkdir(parents=True)
    (job / "results.jsonl").write_text("".join(lines))
    if done:
        (job / "done").write_text("done")
    return job


def change_records(job: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace each of a job's records by the result of ``change``."""
    path = job / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def write_sweep(
    folder: Path,
    algorithms: Sequence[str] = ("ERM", "Mixup"),
    trials: int = 2,
    choices: int = 2,
    pairs: bool = False,
    **facts: Any,
) -> None:
    """Write all jobs of PACS, in folders named by algorithm, targets, trial and choice."""
    recorded = facts.pop("recorded", {})
    targets = [[i] for i in range(4)]
    targets += [[i, j] for i in range(4) for j in range(i + 1, 4)] if pairs else []

    jobs = itertools.product(algorithms, targets, range(trials), range(choices))
    for algorithm, envs, trial, choice in jobs:
        write_job(
            folder,
            f"{algorithm}-{'-'.join(map(str, envs))}-{trial}-{choice}",
            algorithm=algorithm,
            test_envs=envs,
            trial_seed=trial,
            hparams_seed=choice,
            recorded={"lr": 0.1 / (1 + choice), **recorded},
            **facts,
        )


LABELS = {"PACS": "ACPS", "VLCS": "CLSV"}


def launch(
    folder: Path,
    algorithms: Sequence[str] = ("ERM",),
    targets: Iterable[int | list[int]] = range(4),
    run: Callable[[dict[str, Any]], bool] = lambda args: True,
    **options: Any,
) -> None:
    """Write the files of a launched sweep: its manifest, and the records of jobs that ``run``."""
    facts = {name: options.pop(name) for name in ("selection", "compare_with") if name in options}
    overrides = options.pop("hparams", ("",))
    datasets = options.pop("datasets", ("PACS",))
    jobs = []

    for combination in itertools.product(datasets, algorithms, targets, range(2), overrides):
        dataset, algorithm, target, trial, hparams = combination
        args = {
            "dataset": dataset,
            "algorithm": algorithm,
            "trial_seed": trial,
            "hparams_seed": 0,
            "test_envs": target if isinstance(target, list) else [target],
            "task": "t",
            "holdout_fraction": 0.2,
        }
        if hparams:
            args["hparams"] = hparams
        launched_job = job.Job(args, Path(folder) / job.get_folder_name(args))
        jobs.append(launched_job)
        if run(args):
            recorded = {"hparams": hparams or None, "environments": list(LABELS[dataset])}
            write_job(folder, launched_job.folder.name, **{**args, **recorded, **options})

    dataset_facts = {
        name: manifest.Dataset(tuple(LABELS[name]), None, 5001, 300) for name in datasets
    }
    sweep = manifest.Sweep(tuple(jobs), dataset_facts, algorithms=tuple(algorithms), **facts)
    manifest.add(Path(folder), sweep)


def cells(folder: Path, method: str, **options: Any) -> Any:
    """Collect the cells of PACS by a method, indexed by (setting, row, environment or average)."""
    frame = collect(folder, select=[method], **options).cells
    places = frame["of"].where(frame["of"] != "", frame["column"])
    frame = frame.assign(environment=places)[frame["dataset"] == "PACS"]
    return frame.set_index(["setting", "algorithm", "environment"])
