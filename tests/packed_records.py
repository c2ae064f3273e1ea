"""The packed records of peers-emoji, and what its jobs have, computed without our package."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ARCHIVE = Path(__file__).parents[1] / "benchmarks" / "records" / "peers-emoji.tar.xz"
# Variant -> words in the titles of its tables
SETTINGS = {
    "methods": "hparam wise_alpha default, hparam average default",
    "CARFT+WiSE-FT": "hparam wise_alpha 0.5",
    "CARFT+beta": '"beta"',
    "CARFT+ema": '"ema"',
    "CARFT+sma": '"sma"',
}


def unpack(folder: Path) -> None:
    """Unpack the sweep into ``folder``, where ``peers-emoji`` is its output folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


def selected_checkpoints(output: Path) -> pd.DataFrame:
    """A row for each job: its checkpoint by training-domain validation, and what it cost.

    Columns: variant, algorithm, target, trial, ``out`` and ``in`` (accuracies in percent),
    step_seconds and hours (of training).
    """
    return pd.DataFrame([_selected(path) for path in output.glob("*/*/results.jsonl")])


def _selected(path: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in path.open()]
    (target,) = records[0]["args"]["test_envs"]
    others = [env for env in range(4) if env != target]
    validation = [np.mean([record[f"env{env}_out_acc"] for env in others]) for record in records]
    best = records[int(np.argmax(validation))]

    counts = np.diff([-1, *(record["step"] for record in records)])
    seconds = np.array([record["step_time"] for record in records])
    later = slice(1, None) if len(records) > 1 else slice(None)
    return {
        "variant": path.parts[-3],
        "algorithm": records[0]["args"]["algorithm"],
        "target": target,
        "trial": records[0]["args"]["trial_seed"],
        "out": 100 * best[f"env{target}_in_acc"],
        "in": 100 * max(validation),
        "step_seconds": np.average(seconds[later], weights=counts[later]),
        "hours": (seconds * counts).sum() / 3600,
    }
