"""Declared searches on PACS, and records of their jobs with random accuracies."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from domainbed_carft.jobs.job import Job
from domainbed_carft.sweep import declaration_file
from domainbed_carft.sweep.declaration import Declaration

LABELS = ["art_painting", "cartoon", "photo", "sketch"]

SEARCH = """
name: x
datasets: [PACS]
algorithms: [CARFT, CLIPFineTune, CLIPZeroShot]
trials: 2
steps: 201
search:
  values: {lr: [1e-5, 1e-4, 1e-3]}
overrides:
  - algorithms: [CLIPZeroShot]
    search: {values: {lr: []}}
"""
STAGES = SEARCH.replace(
    "[1e-5, 1e-4, 1e-3]}", "[1e-5, 1e-4, 1e-3]}\n  choose_on: {trials: {from: 5, n: 1}}"
)


def parse(text: str) -> Declaration:
    return declaration_file.parse(text, "x.yaml")


def write_results(
    job: Job,
    steps: Sequence[int] = (0, 100, 200),
    accuracies: Callable[[int], Sequence[float]] | None = None,
) -> None:
    """Write the records of a job, with random accuracies by default.

    ``accuracies(step)`` returns 8 numbers, in-splits first.
    """
    draw = random.Random(str(job))
    job.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in steps:
        drawn = [draw.randint(6, 20) / 20 for _ in range(8)]
        values = accuracies(step) if accuracies else drawn
        record: dict[str, Any] = {"step": step, "hparams": {}, "environments": LABELS}
        record["args"] = {"steps": None, "hparams": None, **job.args}
        for env in range(4):
            record |= {f"env{env}_in_acc": values[env], f"env{env}_out_acc": values[4 + env]}
        lines.append(json.dumps(record) + "\n")
    (job.folder / "results.jsonl").write_text("".join(lines))
    (job.folder / "done").touch()


def read_records(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.folder / "results.jsonl").read_text().splitlines()]


def validation(job: Job) -> float:
    """Return the training-domain validation: the highest mean out-accuracy of the sources."""
    sources = [env for env in range(4) if env not in job.args["test_envs"]]
    return max(
        sum(record[f"env{env}_out_acc"] for env in sources) / len(sources)
        for record in read_records(job)
    )
