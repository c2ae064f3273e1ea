"""The results of `collect` as pandas data frames; pandas is loaded only for these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import document, selection
from domainbed_carft.results.collection import Group
from domainbed_carft.results.tables import Table

CELL_COLUMNS = (
    "setting",
    "selection",
    "dataset",
    "environment",
    "algorithm",
    "mean",
    "standard_error",
    "n",
    "missing",
)
COLUMN_COLUMNS = (
    "setting",
    "selection",
    "dataset",
    "one_setting",
    "algorithm",
    "column",
    "of",
    "device",
    "unit",
    "mean",
    "standard_error",
    "n",
    "missing",
)
RECORD_COLUMNS = (
    "setting",
    "folder",
    "dataset",
    "algorithm",
    "test_envs",
    "trial_seed",
    "hparams_seed",
    "step",
)


def cell_frame(entries: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row for each cell of the tables ``entries`` of a document; columns: CELL_COLUMNS.

    There is a column ``one_setting``, too, if a table shows one setting for all targets. ``mean``
    and ``standard_error`` are in percent, nan for a cell without a trial.
    """
    records = document.cell_records(entries)
    frame = pd.DataFrame(records, columns=list(records[0]) if records else list(CELL_COLUMNS))
    return frame.astype({"mean": float, "standard_error": float, "n": int})


def column_frame(tables: Iterable[Table]) -> pd.DataFrame:
    """A row for each row and shown column of the tables; columns: COLUMN_COLUMNS.

    ``mean`` and ``standard_error`` are in the column's unit, nan for a cell without a value.
    """
    frame = pd.DataFrame(document.column_records(tables), columns=list(COLUMN_COLUMNS))
    return frame.astype({"mean": float, "standard_error": float, "n": int})


def entry_frame(entries: Iterable[Any], entry_class: type) -> pd.DataFrame:
    """A row for each entry, an instance of a dataclass, with the fields of the class as columns."""
    names = [field.name for field in dataclasses.fields(entry_class)]
    return pd.DataFrame([dataclasses.asdict(entry) for entry in entries], columns=names)


def record_frame(groups: Iterable[Group]) -> pd.DataFrame:
    """A row for each record of the groups' runs; columns: RECORD_COLUMNS, then the accuracies.

    Accuracies are in [0, 1], in the columns ``env0_in_acc``, ``env0_out_acc``, ``env1_in_acc`` and
    so on, up to the largest number of environments of any run; nan where there is none.
    """
    rows: list[Mapping[str, Any]] = []
    n_environments = 0
    for group in groups:
        for run in group.runs:
            rows += _record_rows(run, group.title)
            n_environments = max(n_environments, run.n_environments)

    columns = [*RECORD_COLUMNS]
    for env in range(n_environments):
        columns += [f"env{env}_in_acc", f"env{env}_out_acc"]
    return pd.DataFrame(rows, columns=columns)


def _record_rows(run: Run, setting: str) -> Sequence[Mapping[str, Any]]:
    """A row for each checkpoint of a run: column -> value."""
    in_splits, out_splits = selection.accuracies(run)
    names = [
        f"env{env}_{split}_acc" for split in ("in", "out") for env in range(run.n_environments)
    ]
    accuracies = np.concatenate([in_splits, out_splits], axis=1).tolist()

    key = run.job.key
    job = {
        "setting": setting,
        "folder": run.folder,
        "dataset": key.dataset,
        "algorithm": run.row,
        "test_envs": run.test_envs,
        "trial_seed": key.trial,
        "hparams_seed": key.choice,
    }
    return [
        job | {"step": int(step)} | dict(zip(names, values, strict=True))
        for step, values in zip(run.steps, accuracies, strict=True)
    ]
