"""Figures of a joint table: accuracy over the hyperparameter that its rows differ in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from domainbed_carft.report import figures, frames
from domainbed_carft.report.canvas import Figure
from domainbed_carft.report.figures import Axis
from domainbed_carft.report.styles import styles_of
from domainbed_carft.results.cells import DOMAINBED, ErrorKind
from domainbed_carft.results.rows import JointRow

_VALUES = ("out_of_domain", "in_domain")
# Positive numbers that span as much have a logarithmic axis.
_LOGARITHMIC_RATIO = 8


def over_hparams(
    selected: pd.DataFrame,
    rows: Mapping[str, JointRow],
    title: str,
    name: Callable[..., str],
    error: ErrorKind = DOMAINBED,
) -> list[Figure]:
    """A figure for each name that rows differ in: accuracy over its values, a line an algorithm.

    ``selected``: of ``frames.checkpoints`` of one data set, only what was selected; its algorithms
    are names of ``rows``. ``name(word, ...)`` makes a figure's name; ``error``: what the bands are.
    """
    means = frames.over_targets(selected, list(_VALUES))
    names_with_means = {*means["algorithm"]}
    shown_rows = {name: row for name, row in rows.items() if name in names_with_means}
    names = dict.fromkeys(key for row in shown_rows.values() for key in row.values)

    drawn_figures = []
    for hparam in names:
        values = list(dict.fromkeys(_value(row, hparam) for row in shown_rows.values()))
        axis = _axis(hparam, values)
        line_names = dict.fromkeys(_line_name(row, hparam) for row in shown_rows.values())
        lines = means[means["algorithm"].isin(list(shown_rows))].copy()
        joint_rows = [rows[row] for row in lines["algorithm"]]
        lines["step"] = [_place(_value(row, hparam), values) for row in joint_rows]
        lines["algorithm"] = [_line_name(row, hparam) for row in joint_rows]

        figure = figures.curves(
            f"{title}, over {hparam}",
            name(title, "over", hparam),
            lines,
            figures.ACCURACY,
            styles_of(list(line_names)),
            over=axis,
            error=error,
            has_legend=True,
        )
        if figure and len(values) > 1:
            drawn_figures.append(figure)
    return drawn_figures


def _value(row: JointRow, hparam: str) -> Any:
    """The row's value of a name; a list as text, to be told from others."""
    value = row.values[hparam]
    return str(value) if isinstance(value, (list, dict)) else value


def _axis(hparam: str, values: Sequence[Any]) -> Axis:
    """An axis with a mark at each value, logarithmic for numbers that span as much."""
    marks = {
        _place(value, values): f"{value:g}" if _is_number(value) else str(value) for value in values
    }
    numbers = [float(value) for value in values if _is_number(value)]
    is_numeric = len(numbers) == len(values)
    is_spread = is_numeric and 0 < _LOGARITHMIC_RATIO * min(numbers) <= max(numbers)
    return Axis(hparam, is_logarithmic=is_spread, marks=marks)


def _place(value: Any, values: Sequence[Any]) -> float:
    """Numbers stand at their places; if any value is none, all stand side by side."""
    return float(value if all(map(_is_number, values)) else values.index(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _line_name(row: JointRow, hparam: str) -> str:
    """The algorithm, and the row's values of what else its rows differ in."""
    other_values = [f"{name} {value}" for name, value in row.values.items() if name != hparam]
    return f"{row.algorithm} ({', '.join(other_values)})" if other_values else row.algorithm
