"""A cell of a table: the mean over its trials, the error of that mean, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PLUS_MINUS = "±"


@dataclass(frozen=True)
class ErrorKind:
    """What stands behind a mean, after the sign ±.

    ``name``: as for ``--error``; ``title``: in words; ``definition``: a sentence for captions;
    ``of``: computes it from the values of two or more trials.
    """

    name: str
    title: str
    definition: str
    of: Callable[[npt.NDArray[np.float64]], float]


def domainbed_error(values: npt.NDArray[np.float64]) -> float:
    """The standard error of the mean with divisor n, as DomainBed computes it, to the last bit."""
    # Divided before, not after: the last bit decides how a half is rounded.
    return float((values / values.size**0.5).std())


def sample_error(values: npt.NDArray[np.float64]) -> float:
    """The standard error of the mean of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1) / values.size**0.5)


def sample_deviation(values: npt.NDArray[np.float64]) -> float:
    """The standard deviation of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1))


def student_interval(
    values: Sequence[float], level: float
) -> tuple[float, float] | tuple[None, None]:
    """The interval of the mean by Student's t, at ``level`` percent; Nones for a single value."""
    if len(values) < 2:
        return None, None

    from scipy.special import stdtrit  # scipy.stats takes a second to load

    mean = float(np.mean(values))
    quantile = float(stdtrit(len(values) - 1, (1 + level / 100) / 2))
    half_width = quantile * sample_error(np.asarray(values))
    return mean - half_width, mean + half_width


DOMAINBED = ErrorKind(
    "domainbed",
    "standard error",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, divisor n "
    "(numpy.std with ddof 0), as DomainBed computes it",
    domainbed_error,
)
ERROR_KINDS = {
    kind.name: kind
    for kind in (
        DOMAINBED,
        ErrorKind(
            "sample",
            "standard error",
            "Standard error = s / sqrt(n), with s the standard deviation over the n trials, "
            "divisor n - 1 (numpy.std with ddof 1)",
            sample_error,
        ),
        ErrorKind(
            "std",
            "standard deviation",
            "Standard deviation over the n trials, divisor n - 1 (numpy.std with ddof 1)",
            sample_deviation,
        ),
    )
}


class Cell(NamedTuple):
    """A value of ``n`` trials or jobs: its mean, the error of that mean, and what is missing.

    Accuracies are in percent, other values in their column's unit. ``standard_error``: of the kind
    that the tables were made with; None for a single trial. The mean is None if there is no trial.
    ``accuracies``: trial -> accuracy in [0, 1]. ``partial``: an average over some of the
    environments, or of a copy that is not complete. ``label``: what the value is of, such as the
    worst environment.
    """

    mean: float | None = None
    standard_error: float | None = None
    n: int = 0
    missing: tuple[str, ...] = ()
    accuracies: Mapping[int, float] = {}
    partial: bool = False
    label: str = ""

    @property
    def is_expected(self) -> bool:
        """Whether the cell should have a value."""
        return self.mean is not None or bool(self.missing)


def cell_of(
    accuracies: Mapping[int, float], missing: Sequence[str], error: ErrorKind = DOMAINBED
) -> Cell:
    """The mean over the trials, of accuracies in [0, 1], and its ``error``.

    As in DomainBed's collect_results, to the last bit, but that one trial has no error.
    """
    if not accuracies:
        return Cell(missing=tuple(missing or ["no accuracy recorded on this environment"]))

    values = np.array([*accuracies.values()])
    return Cell(
        mean=100 * values.mean(),
        standard_error=100 * error.of(values) if values.size > 1 else None,
        n=values.size,
        missing=tuple(missing),
        accuracies=accuracies,
    )


def format_accuracy(
    value: float | None, standard_error: float | None = None, n: int | None = None
) -> str:
    """A percentage with its standard error and number of trials, as ``96.8 ± 0.4 (3)``.

    What is None (or ``n`` 0) is left out; without a value the text is empty.
    """
    if value is None:
        return ""

    text = f"{value:.1f}"
    if standard_error is not None:
        text += f" {PLUS_MINUS} {standard_error:.1f}"
    if n:
        text += f" ({n})"
    return text
