"""The records in RUN/suites.jsonl: a line for each evaluation of weights on a suite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.jobs.records import NUMBERS, RecordWarning, parse_line

FILE = "suites.jsonl"
# "weights" and "weights_digest" are file name and SHA-256; for WiSE-FT, of the trained weights.
FIELDS = (
    "suite",
    "weights",
    "weights_digest",
    "step",
    "wise_ft_alpha",
    "algorithm",
    "sets",
    "mean",
    "mean_without_objectnet",
)
KEY = (
    "suite",
    "weights",
    "wise_ft_alpha",
)  # a later line replaces an earlier one with the same values


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Append a line with the FIELDS of ``record`` and the means of its suite's groups.

    Raises:
        CarftError: if the file cannot be written.
    """
    path = folder / FILE
    group_means = [key for key in record if key.startswith("mean_") and key not in FIELDS]
    try:
        files.append_line(path, json.dumps({key: record[key] for key in (*FIELDS, *group_means)}))
    except OSError as error:
        raise files.write_error(path, error) from error


def read(folder: Path, warnings: list[RecordWarning]) -> list[dict[str, Any]]:
    """Read the latest record of each evaluation, in the order of their first lines.

    Invalid lines are skipped, with a warning.
    """
    path = folder / FILE
    try:
        lines = files.read_regular(path).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        warnings.append(RecordWarning("unreadable", str(path), f"{error.strerror}; skipped"))
        return []

    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        record = parse_line(line)
        if _is_complete(record):
            latest[tuple(record[key] for key in KEY)] = record
        else:
            text = f"line {number} is not a complete record; skipped"
            warnings.append(RecordWarning("cut line", str(path), text))
    return list(latest.values())


def _is_complete(record: Any) -> bool:
    """Return True if a line has all values used by tables, with valid types."""
    try:
        names = [record["suite"], record["weights"]]
        sets = list(record["sets"].values())
        shares = [scores["accuracy"] for scores in sets]
        optional_shares = [
            record["wise_ft_alpha"],
            *(scores.get("mean_per_class") for scores in sets),
            *(value for key, value in record.items() if key.startswith("mean")),
        ]
        shares += [share for share in optional_shares if share is not None]
        return (
            all(type(name) is str for name in names)
            and all(type(scores["complete"]) is bool for scores in sets)
            and all(type(share) in NUMBERS and 0 <= share <= 1 for share in shares)
        )
    except (AttributeError, LookupError, TypeError):
        return False
