"""The packed records of peers-emoji, and numbers of its jobs computed without the package."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RECORDS = Path(__file__).parents[1] / "benchmarks" / "records"
# Variant -> part of the titles of its tables
SETTINGS = {
    "methods": "hparam wise_alpha default, hparam average default",
    "CARFT+WiSE-FT": "hparam wise_alpha 0.5",
    "CARFT+beta": '"beta"',
    "CARFT+ema": '"ema"',
    "CARFT+sma": '"sma"',
    "SWAD": '"swad"',
}
# Algorithms of several variants, whose rows name the variant
OF_SEVERAL_VARIANTS = ("CARFT", "CLIPFineTune", "CLIPMIRO")


def unpack(folder: Path, sweep: str = "peers-emoji") -> None:
    """Unpack a sweep into ``folder``, where its output folder has the sweep's name."""
    with tarfile.open(RECORDS / f"{sweep}.tar.xz") as archive:
        archive.extractall(folder, filter="data")


def selected_checkpoints(output: Path) -> pd.DataFrame:
    """Return a row for each job of the second stage: its selected checkpoint, and its cost.

    Columns: variant, algorithm, target, trial, lr, step (of the checkpoint), ``out`` and ``in``
    (accuracies in percent), step_seconds and hours (of training), device, folder. The checkpoint is
    selected by training-domain validation; with SWAD it is the last one.
    """
    paths = (path for variant in SETTINGS for path in output.glob(f"{variant}/*/results.jsonl"))
    return pd.DataFrame([_selected(path, path.parts[-3] == "SWAD") for path in paths])


def _selected(path: Path, is_swad: bool) -> dict[str, Any]:
    records = [json.loads(line) for line in path.open()]
    (target,) = records[0]["args"]["test_envs"]
    others = [env for env in range(4) if env != target]
    validation = [np.mean([record[f"env{env}_out_acc"] for env in others]) for record in records]
    chosen = -1 if is_swad else int(np.argmax(validation))

    counts = np.diff([-1, *(record["step"] for record in records)])
    seconds = np.array([record["step_time"] for record in records])
    later = slice(1, None) if len(records) > 1 else slice(None)
    return {
        "variant": path.parts[-3],
        "algorithm": records[0]["args"]["algorithm"],
        "target": target,
        "trial": records[0]["args"]["trial_seed"],
        "lr": records[0]["hparams"]["lr"],
        "step": records[chosen]["step"],
        "out": 100 * records[chosen][f"env{target}_in_acc"],
        "in": 100 * validation[chosen],
        "step_seconds": np.average(seconds[later], weights=counts[later]),
        "hours": (seconds * counts).sum() / 3600,
        "device": records[0]["device"],
        "folder": path.parent,
    }


def row_name(variant: str, algorithm: str) -> str:
    """Return the name of the row in `carft collect --by variant`."""
    return f"{algorithm} ({variant})" if algorithm in OF_SEVERAL_VARIANTS else algorithm
