"""From the records of a sweep to selected accuracies. Built on pandas, no torch.

Tables are ``collect``'s, whose reading of records this shares; this is what plots are made from,
for which the algorithms' own means are kept as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from domainbed_carft.collect import records
from domainbed_carft.errors import CarftError

log = logging.getLogger(__name__)

RUN = ["dataset", "algorithm", "test_env", "trial_seed", "hparams_seed"]


class PairedDifference(NamedTuple):
    """Mean of a - b over (data set, target, trial), its standard error, and the pairs counted."""

    mean: float
    standard_error: float
    pairs: int


def load(folder: Path | str) -> pd.DataFrame:
    """Every checkpoint of every job with one test environment below ``folder``.

    Columns: RUN; ``step``; ``target``, the accuracy in [0, 1] on the target's in-split, which is
    what DomainBed reports; ``validation``, the mean accuracy on the training environments'
    out-splits, by which training-domain validation selects; and the means that the algorithm
    returned. A line that is no whole record is named in the log and skipped; of two records of one
    step of a job the later one counts.

    Raises CarftError, naming the folders, when two jobs differ only in what is not in RUN, such as
    ``--steps`` or ``--hparams``: their figures must not be mixed.
    """
    rows = [
        {**row, "folder": job.name}
        for job, record in _records(Path(folder))
        if (row := _row(record)) is not None
    ]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    for run, jobs in frame.groupby(RUN)["folder"].unique().items():
        if len(jobs) > 1:
            raise CarftError(
                f"{Path(folder)} has {len(jobs)} jobs of the same {', '.join(RUN)} = {run}: "
                f"{', '.join(jobs)}; expected one. Move those of another --steps or --hparams away"
            )
    return frame.drop_duplicates([*RUN, "step"], keep="last").reset_index(drop=True)


def select(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a (data set, algorithm, target, trial): training-domain validation.

    The checkpoint of the highest ``validation`` in each run, the earliest of equals; then the run
    of the highest over ``hparams_seed``, the last of equals. Both as DomainBed does
    (domainbed/model_selection.py at b93c22a, IIDAccuracySelectionMethod).
    """
    ordered = frame.sort_values([*RUN, "step"]).reset_index(drop=True)
    runs = ordered.loc[ordered.groupby(RUN)["validation"].idxmax()]
    backwards = runs.sort_values("hparams_seed", ascending=False).reset_index(drop=True)
    keys = [key for key in RUN if key != "hparams_seed"]
    best = backwards.groupby(keys)["validation"].idxmax()
    return backwards.loc[best].reset_index(drop=True)


def paired(selected: pd.DataFrame, a: str, b: str, column: str = "target") -> PairedDifference:
    """``column`` of algorithm ``a`` minus that of ``b``, over the pairs that both have.

    The standard error is that of the mean of the differences: their sample standard deviation
    (ddof 1) over the root of the number of pairs.
    """
    keys = ["dataset", "test_env", "trial_seed"]
    table = selected.pivot_table(index=keys, columns="algorithm", values=column)
    difference = (table[a] - table[b]).dropna()
    return PairedDifference(
        float(difference.mean()), float(difference.sem(ddof=1)), len(difference)
    )


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("*/results.jsonl")):
        found, faults = records.whole_records(str(path))
        for fault in faults:
            log.warning("%s, %s", fault.path, fault.text)
        for record in found:
            yield path.parent, record


def _row(record: dict[str, Any]) -> dict[str, Any] | None:
    arguments = record["args"]
    if len(arguments["test_envs"]) != 1:
        return None  # a job of leave-one-domain-out cross-validation
    target = arguments["test_envs"][0]
    outs = {k: v for k, v in record.items() if k.startswith("env") and k.endswith("_out_acc")}
    training = [v for k, v in outs.items() if k != f"env{target}_out_acc"]
    skipped = ("args", "hparams")
    return {
        **{k: v for k, v in record.items() if k not in skipped and not k.startswith("env")},
        "dataset": arguments["dataset"],
        "algorithm": arguments["algorithm"],
        "test_env": target,
        "trial_seed": arguments["trial_seed"],
        "hparams_seed": arguments["hparams_seed"],
        "target": record[f"env{target}_in_acc"],
        "validation": float(np.mean(training)),
    }
