"""What was selected as a pandas frame: from here on, everything is grouped and joined by pandas."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection

# What names a cell of a table; each of its trials is a row.
CELL = ["algorithm", "dataset", "target"]
KEY = ["dataset", "target", "trial"]


def selected(runs: Iterable[Run], method: str) -> pd.DataFrame:
    """A row for each (data set, algorithm, target, trial) that ``method`` selects something for.

    Columns: these four, and ``accuracy`` in [0, 1]. Rows are in the order of DomainBed's groups, on
    which the last bit of a mean depends.
    """
    rows = [(*one[:4], one.outcome.accuracy) for one in selection.select(runs, method)]
    columns = ["dataset", "algorithm", "target", "trial", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def of_algorithm(frame: pd.DataFrame, algorithm: str) -> pd.Series[float]:
    """Accuracies in percent of one algorithm, by KEY."""
    rows = frame[frame["algorithm"] == algorithm]
    return 100 * rows.set_index(KEY)["accuracy"]
