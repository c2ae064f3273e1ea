"""Which rows of a column are the best and the second, as they read: for bold and underlined."""

from __future__ import annotations

from collections.abc import Sequence

from domainbed_carft.results.columns import AVERAGE, ENVIRONMENTS, Column

BEST = 1
SECOND = 2
OTHER = 0

# Columns of accuracies of the rows' own runs. Of the others the lower is better, or neither.
_RANKED_COLUMNS = (
    ENVIRONMENTS,
    AVERAGE,
    "out-of-domain",
    "worst",
    "in-domain",
    "per-class",
    "worst-class",
    "aligned",
    "unaligned",
)


def is_ranked(column: Column) -> bool:
    """Whether the highest value of the column is the best."""
    return column.name in _RANKED_COLUMNS


def ranks(means: Sequence[float | None]) -> list[int]:
    """BEST, SECOND or OTHER for each of a column's means in percent; None is OTHER.

    Means that read the same with one decimal share a rank, so that there may be several of each.
    """
    printed = [None if mean is None else float(f"{mean:.1f}") for mean in means]
    highest = sorted({value for value in printed if value is not None}, reverse=True)
    rank_of_value = dict(zip(highest, (BEST, SECOND)))
    return [OTHER if value is None else rank_of_value.get(value, OTHER) for value in printed]
