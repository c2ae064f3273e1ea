"""RUN/suites.jsonl: a line for each evaluation of a job's weights on a suite."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.files import parsing

FILE = "suites.jsonl"
FIELDS = (
    "suite",
    "weights",
    "step",
    "wise_ft_alpha",
    "algorithm",
    "sets",
    "mean",
    "mean_without_objectnet",
)
KEY = ("suite", "weights", "wise_ft_alpha")  # of two lines with the same, the later counts


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Add a line with the FIELDS of ``record``, and the means of its suite's groups.

    Raises CarftError where it cannot be written.
    """
    path = folder / FILE
    group_means = [key for key in record if key.startswith("mean_") and key not in FIELDS]
    line = json.dumps({key: record[key] for key in (*FIELDS, *group_means)}).encode() + b"\n"
    try:
        with path.open("ab+", buffering=0) as file:  # at once: nobody sees half of it
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            # After a line that a full disk has cut off
            file.write(b"\n" + line if end and file.read(1) != b"\n" else line)
    except OSError as error:
        raise files.not_written(path, error) from error


def read(folder: Path) -> list[dict[str, Any]]:
    """The records that count, in the order of their first lines; none without the file.

    Lines that are cut off or another's are left out.
    """
    path = folder / FILE
    if not path.exists():
        return []

    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError):
            record = parsing.parse_json(line)
            latest[tuple(record[key] for key in KEY)] = record
    return list(latest.values())
