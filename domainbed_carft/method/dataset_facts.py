"""The hparam ``class_names`` that names a dataset."""

from __future__ import annotations

from typing import Any

DATASET_PREFIX = "dataset:"


def parse_dataset_name(class_names: Any) -> str | None:
    """Return NAME if the hparam ``class_names`` is "dataset:NAME", otherwise None."""
    if isinstance(class_names, str) and class_names.startswith(DATASET_PREFIX):
        return class_names.removeprefix(DATASET_PREFIX)
    return None
