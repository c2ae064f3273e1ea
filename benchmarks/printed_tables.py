"""The tables in the text that ``domainbed.scripts.collect_results`` prints, ours or upstream's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_HEADER = re.compile(r"-------- (?:Dataset: (.+?)|(Averages)), model selection method: (.+)")
METHODS = {
    "training-domain validation set": "training-domain",
    "leave-one-domain-out cross-validation": "leave-one-domain-out",
    "test-domain validation set (oracle)": "oracle",
}

Tables = dict[tuple[str, str], dict[str, list[str]]]


def read(text: str) -> Tables:
    """(method, data set or "Averages") -> algorithm -> cells as printed, their average last."""
    found: Tables = {}
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _HEADER.match(line):
            dataset, averages, method = match.groups()
            rows = found.setdefault((METHODS[method], dataset or averages), {})
        elif line and not line.startswith(("Algorithm ", "Total records")):
            label, *cells = re.split(r"\s{2,}", line.strip())
            rows[label] = cells
        elif not line:
            rows = {}
    return found


def of_json(tables: Iterable[Mapping[str, Any]]) -> Tables:
    """The same of the tables of ``carft collect --format json``, rounded as the text is."""
    return {
        (table["selection"], table["dataset"] or "Averages"): {
            row["algorithm"]: [*map(_cell, row["cells"]), _rounded(row["average"])]
            for row in table["rows"]
        }
        for table in tables
    }


def differences(one: Tables, other: Tables) -> Sequence[str]:
    """A line for each cell that is not the same text in both."""
    cells = [
        {
            (*table, algorithm, place): cell
            for table, rows in tables.items()
            for algorithm, row in rows.items()
            for place, cell in enumerate(row)
        }
        for tables in (one, other)
    ]
    return [
        f"{key}: {cells[0].get(key)} and {cells[1].get(key)}"
        for key in sorted({**cells[0], **cells[1]}, key=str)
        if cells[0].get(key) != cells[1].get(key)
    ]


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "X"
    error = cell["standard_error"] or 0.0  # the text has one of a single trial, too
    return f"{cell['mean']:.1f} +/- {error:.1f}"


def _rounded(value: float | None) -> str:
    return "X" if value is None else f"{value:.1f}"
