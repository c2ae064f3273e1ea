"""A column of a table as an object: what it holds, how a cell is computed, how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.cells import Cell, ErrorKind, format_accuracy
from domainbed_carft.results.selection import Selected

NO_VALUE = "X"
NOT_DECLARED = "-"


@dataclass(frozen=True)
class RowRuns:
    """What the cells of a row are computed from: one algorithm on one data set, by one method.

    ``environments`` names the columns of ``cells``, the accuracies on each target, and ``average``
    is their mean in percent. ``selected``: what the method chose for each target and trial.
    ``candidates``: all runs that it chose from. ``error``: of the cells.
    """

    environments: Sequence[str]
    cells: Sequence[Cell]
    average: float | None
    selected: Sequence[Selected]
    candidates: Sequence[Run]
    error: ErrorKind

    @property
    def selected_runs(self) -> list[Run]:
        """The runs whose accuracies count, each once."""
        runs = [selected.outcome.run for selected in self.selected]
        return list({id(run): run for run in runs}.values())

    def on_device(self, device: str) -> RowRuns:
        """The row with only the runs on one device; its accuracies stay."""
        return replace(
            self,
            selected=[
                selected for selected in self.selected if selected.outcome.run.cost.device == device
            ],
            candidates=[run for run in self.candidates if run.cost.device == device],
        )


@dataclass(frozen=True)
class Column:
    """A column of a table.

    ``name``: as for ``--columns``, of a target ENVIRONMENTS; ``title``: the header; ``unit``: of
    the cells' means, such as "%" or "s"; ``explanation``: a sentence for captions, if it needs one.
    ``measure`` computes a row's cell, ``write`` makes its text, "" without a value. ``device``: of
    a cost, the device that it was measured on. ``placeholder``: the text of a cell that lacks
    nothing and has no value.
    """

    name: str
    title: str
    unit: str
    explanation: str
    measure: Callable[[RowRuns], Cell]
    write: Callable[[Cell], str]
    device: str = ""
    placeholder: str = NOT_DECLARED

    def text(self, cell: Cell, note_number: int | None = None) -> str:
        """The cell's text, with the number of the note that says what it lacks, if it does."""
        text = self.write(cell)
        if note_number is None:
            return text or self.placeholder
        return f"{text or NO_VALUE} [{note_number}]"


ENVIRONMENTS = "environments"
AVERAGE = "average"
DEFAULT_COLUMNS = (ENVIRONMENTS, AVERAGE)


def accuracy_text(cell: Cell) -> str:
    """An accuracy in percent with error and number of trials, and what it is of, if anything."""
    text = format_accuracy(cell.mean, cell.standard_error, cell.n)
    return f"{text} {cell.label}" if text and cell.label else text


def figure_text(cell: Cell) -> str:
    """A figure with three digits that count, or more before the point: 0.0214, 12.3, 1,234."""
    if cell.mean is None:
        return ""
    if cell.mean == 0:
        return "0"

    digits_before_point = math.floor(math.log10(abs(cell.mean))) + 1
    return f"{cell.mean:,.{max(0, 3 - digits_before_point)}f}"


def count_text(cell: Cell) -> str:
    """A whole number, or a mean of such with one decimal."""
    if cell.mean is None:
        return ""
    return f"{cell.mean:,.0f}" if cell.mean == int(cell.mean) else f"{cell.mean:,.1f}"


def candidate_runs(runs: Sequence[Run], method: str) -> list[Run]:
    """The runs that the method can choose from, each once."""
    if not selection.METHODS[method].leaves_out:
        return [run for run in runs if not run.test_envs]

    candidates: dict[int, Run] = {}
    for of_target in selection.candidates_by_target(runs):
        of_method = [*of_target.singles.values()]
        if method == selection.LEAVE_ONE_OUT:
            of_method += [run for pairs in of_target.pairs.values() for run in pairs.values()]
        candidates |= {id(run): run for run in of_method}
    return list(candidates.values())
