"""The table of ``carft diff``, as words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.sweep.differences import Comparison, comparable_text
from domainbed_carft.text import shortened

# Of more values, and of longer texts such as digests, the rest is cut off.
_MOST_VALUES = 10
_LONGEST_TEXT = 60
_MOST_NAMES = 3


def table_rows(comparison: Comparison) -> list[list[str]]:
    """A row for each difference: part, the jobs concerned, and the values of both sides.

    The second column is empty if all differences are of all jobs.
    """
    concerns_some = any(difference.rows for difference in comparison.differences)
    return [
        [
            difference.part,
            _rows_text(difference.rows) if concerns_some else "",
            _values_text(difference.part, difference.first, difference.second),
            _values_text(difference.part, difference.second, difference.first),
        ]
        for difference in comparison.differences
    ]


def _rows_text(rows: Iterable[tuple[str, str]]) -> str:
    """The algorithms on each data set, "all" for no rows."""
    algorithms: dict[str, list[str]] = {}
    for dataset, algorithm in rows:
        algorithms.setdefault(dataset, []).append(algorithm)

    phrases = [f"{_listing(names)} on {dataset}" for dataset, names in algorithms.items()]
    return "; ".join(phrases) or "all"


def _listing(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    excess = len(names) - _MOST_NAMES
    listing = ", ".join(names[:_MOST_NAMES])
    return f"{listing} and {excess:,} more" if excess > 0 else listing


def _values_text(part: str, values: Sequence[Any], other_values: Sequence[Any]) -> str:
    """The values for people; of many those that the other side has not, and how many both have."""
    listed_values = values
    if len(values) > _MOST_VALUES:
        other_texts = {comparable_text(value) for value in other_values}
        listed_values = [value for value in values if comparable_text(value) not in other_texts]

    texts = [_value_text(part, value) for value in listed_values[:_MOST_VALUES]]
    if len(listed_values) > _MOST_VALUES:
        texts.append(f"and {len(listed_values) - _MOST_VALUES:,} more")
    n_shared = len(values) - len(listed_values)
    if n_shared:
        texts.append(f"{n_shared:,} in both")
    return ", ".join(texts)


def _value_text(part: str, value: Any) -> str:
    """One value for people: words without quotes, and cut if it is long."""
    if isinstance(value, str):
        text = benchmarks.edition_label(value) if part == EDITION else value
    else:
        text = shortened(value) if isinstance(value, list) else comparable_text(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
