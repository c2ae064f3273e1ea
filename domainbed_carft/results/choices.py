"""Which values of a declared search were chosen: a table beside that of the accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from domainbed_carft.results import selection
from domainbed_carft.results.columns import NOT_DECLARED
from domainbed_carft.results.document import Grid
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.tables import Table

CAPTION = (
    "Chosen: the values of the search that the selection method chose, with the number of trials "
    "if not in all of them; Of: among how many members and draws in each.",
)


def grid(table: Table) -> Grid | None:
    """The chosen values of a table's cells as words; None if none of its rows had a search."""
    rows = []
    for row in table.rows:
        chosen = [row.chosen(target) for target in range(len(table.columns))]
        if any(chosen):
            all_chosen = [entry for of_cell in chosen for entry in of_cell]
            rows.append([row.algorithm, *map(_cell_text, chosen), _members_text(all_chosen)])
    if not rows:
        return None

    method = selection.METHODS[table.method].title
    title = "; ".join(filter(None, [f"{table.dataset_title}, chosen", method, table.setting]))
    return Grid(title, ["Algorithm", *table.columns, "Of"], rows, notes=[])


def _cell_text(trials: Sequence[Selected]) -> str:
    """``lr 0.001`` if all trials chose it, else ``lr 0.001 (2), lr 0.0003 (1)``."""
    counts = Counter(_values_text(selected) for selected in trials)
    if len(counts) < 2:
        return next(iter(counts), NOT_DECLARED)
    return ", ".join(f"{text} ({count})" for text, count in counts.most_common())


def _values_text(selected: Selected) -> str:
    return ", ".join(f"{name} {value}" for name, value in selected.outcome.values.items())


def _members_text(selections: Sequence[Selected]) -> str:
    """Among how many each was chosen, as ``3`` or ``2 to 3``."""
    numbers = [selected.outcome.members for selected in selections]
    fewest = min(numbers)
    most = max(numbers)
    return str(most) if fewest == most else f"{fewest} to {most}"
