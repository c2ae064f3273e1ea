"""A cell of a table: a mean over trials, with its error, its text, and its completeness.

Importing this module loads no numpy, so that command lines start quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PLUS_MINUS = "±"
NO_VALUE = "X"
NOT_DECLARED = "-"
PARTIAL = "*"
PERCENT = 100.0

# Reasons that the captions explain, so that a cell has a star instead of a numbered note
NOT_ALL = "not over all environments"
INCOMPLETE_COPY = "on an incomplete copy of the test set"
_EXPLAINED_IN_CAPTIONS = {NOT_ALL, INCOMPLETE_COPY}


@dataclass(frozen=True)
class ErrorKind:
    """An uncertainty printed after a mean and the sign ±.

    Attributes:
        name: value of ``--error``.
        title: name in captions.
        definition: a sentence for captions.
        compute: computes the error from the values of two or more trials.
    """

    name: str
    title: str
    definition: str
    compute: Callable[[npt.NDArray[np.float64]], float]


def domainbed_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean with divisor n, equal to DomainBed's to the last bit."""
    # Divide before std(), as DomainBed does: the last bit decides how a half is rounded.
    return float((values / values.size**0.5).std())


def sample_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1) / values.size**0.5)


def sample_deviation(values: npt.NDArray[np.float64]) -> float:
    """Standard deviation of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1))


DOMAINBED = ErrorKind(
    "domainbed",
    "standard error",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, divisor n "
    "(numpy.std with ddof 0), as DomainBed computes it",
    domainbed_error,
)
SAMPLE = ErrorKind(
    "sample",
    "standard error",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, "
    "divisor n - 1 (numpy.std with ddof 1)",
    sample_error,
)
DEVIATION = ErrorKind(
    "std",
    "standard deviation",
    "Standard deviation over the n trials, divisor n - 1 (numpy.std with ddof 1)",
    sample_deviation,
)
ERROR_KINDS = {kind.name: kind for kind in (DOMAINBED, SAMPLE, DEVIATION)}


class Cell(NamedTuple):
    """A value of a table, whose row and column are its keys in `Table.rows`.

    Attributes:
        mean: mean over trials, in the unit of its column; None if there is no value.
        standard_error: of the kind chosen by ``--error``; None for a single trial.
        n: number of trials or jobs.
        missing: reasons why the value is incomplete.
        trials: trial -> its value in the unit of the mean.
        label: the environment of the value, or another description.
    """

    mean: float | None = None
    standard_error: float | None = None
    n: int = 0
    missing: tuple[str, ...] = ()
    trials: Mapping[int, float] = {}
    label: str = ""

    @property
    def is_complete(self) -> bool:
        """True if the value covers everything; other cells are marked and never ranked."""
        return not self.missing

    @property
    def is_expected(self) -> bool:
        """True if jobs were declared for the cell, so that it should have a value."""
        return self.mean is not None or bool(self.missing)

    @property
    def lacks_results(self) -> bool:
        """True if results of declared jobs, or evaluations that the value needs, are missing.

        Only such cells are called incomplete and counted. A mean that leaves out targets without
        declared jobs lacks nothing, although it is marked.
        """
        return any(reason != NOT_ALL for reason in self.missing)

    @property
    def needs_note(self) -> bool:
        """True if the captions do not explain what is missing, so that a numbered note does."""
        return not _EXPLAINED_IN_CAPTIONS.issuperset(self.missing)


def mean_over_trials(
    values: Iterable[tuple[int, float]],
    *,
    missing: Sequence[str] = (),
    error: ErrorKind = DOMAINBED,
    scale: float = PERCENT,
) -> Cell:
    """Average over the trials each trial's mean.

    Mean and error equal DomainBed's to the last bit, which depends on the order of the values. A
    single trial has no error.

    Args:
        values: (trial, value) pairs.
        missing: reasons why the mean is incomplete.
        error: kind of the error.
        scale: factor from the values to the unit of the cell.

    Returns:
        The cell; without a mean if there are no values.
    """
    import numpy as np

    values_by_trial: dict[int, list[float]] = {}
    for trial, value in values:
        values_by_trial.setdefault(trial, []).append(value)
    if not values_by_trial:
        return Cell(missing=tuple(missing))

    means = np.array([np.mean(values) for values in values_by_trial.values()])
    return Cell(
        mean=float(scale * means.mean()),
        standard_error=scale * error.compute(means) if means.size > 1 else None,
        n=means.size,
        missing=tuple(missing),
        trials=dict(zip(values_by_trial, (scale * means).tolist(), strict=True)),
    )


def mean_of_cells(cells: Iterable[Cell]) -> float | None:
    """Mean of the expected cells; None if one of them has no value."""
    import numpy as np

    means = [cell.mean for cell in cells if cell.is_expected]
    values = [mean for mean in means if mean is not None]
    if not values or len(values) < len(means):
        return None
    return float(np.mean(values))


def list_incomplete(cells: Mapping[str, Cell]) -> str:
    """List the names of the cells that lack results; empty if there are none."""
    return ", ".join(name for name, cell in cells.items() if cell.lacks_results)


# Texts


def accuracy_text(cell: Cell, digits: int = 1) -> str:
    """Format an accuracy, as ``96.8 ± 0.4 (3) photo``: its error, number of trials and label.

    Values that are None, ``n`` 0 and an empty label are omitted. The text is empty without a mean.
    """
    if cell.mean is None:
        return ""

    text = f"{cell.mean:.{digits}f}"
    if cell.standard_error is not None:
        text += f" {PLUS_MINUS} {cell.standard_error:.{digits}f}"
    if cell.n:
        text += f" ({cell.n})"
    return f"{text} {cell.label}" if cell.label else text


def format_accuracy(value: float | None, standard_error: float | None = None) -> str:
    """Format a percentage and its error, as ``96.8 ± 0.4``; empty without a value."""
    return accuracy_text(Cell(value, standard_error))


def score_text(cell: Cell) -> str:
    """Format a score like an accuracy, with three decimals."""
    return accuracy_text(cell, digits=3)


def cost_text(cell: Cell) -> str:
    """Cost with three significant digits and all digits before the point: 0.0214, 12.3, 1,234."""
    if cell.mean is None:
        return ""
    if cell.mean == 0:
        return "0"

    digits_before_point = math.floor(math.log10(abs(cell.mean))) + 1
    return f"{cell.mean:,.{max(0, 3 - digits_before_point)}f}"


def count_text(cell: Cell) -> str:
    """Integer, or mean of integers with one decimal."""
    if cell.mean is None:
        return ""
    return f"{cell.mean:,.0f}" if cell.mean == int(cell.mean) else f"{cell.mean:,.1f}"


# Ranks

BEST = 1
SECOND = 2
OTHER = 0


def rank_cells(cells: Iterable[Cell]) -> list[int]:
    """Rank the cells of a column in percent as BEST, SECOND or OTHER; incomplete ones are OTHER.

    Means with the same first decimal share a rank, so that there can be several of each. The lower
    of two means is the worst one, so it is not SECOND.
    """
    printed = [
        None if cell.mean is None or not cell.is_complete else float(f"{cell.mean:.1f}")
        for cell in cells
    ]
    values = [value for value in printed if value is not None]
    highest = sorted(set(values), reverse=True)
    rank_of_value = dict(zip(highest, (BEST, SECOND) if len(values) > 2 else (BEST,)))
    return [OTHER if value is None else rank_of_value.get(value, OTHER) for value in printed]
