"""Bars of the accuracy on each environment left out, with the published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from domainbed_carft.report.figures import drawn, style
from domainbed_carft.results.tables import Cell, Table
from domainbed_carft.text import shown

_ROW = 0.2  # inches a bar
_END = 110  # in percent, where the numbers behind bars begin at most
AVERAGE = "average"


class Bar(NamedTuple):
    """Percent; ``published`` is that of the counterpart, whose name is ``method``."""

    algorithm: str
    mean: float
    error: float | None
    n: int
    published: float | None = None
    method: str = ""


Titled = tuple[str, list[Bar]]


def draw(
    name: str, table: Table, averages: Mapping[str, Cell],
    published: Mapping[str, tuple[str, float]], looks: Mapping[str, style.Look],
) -> drawn.Drawn:  # fmt: skip
    """A group of bars an environment, and one of their averages.

    ``averages``: algorithm -> over each trial's mean over the environments; ``published``:
    algorithm -> (published method, its accuracy on the data set), which stand beside the averages.
    """
    groups = _groups(table, averages, published)
    rows = sum(len(bars) + 1.6 for _, bars in groups)

    def onto(figure: Figure) -> None:
        _bars(figure.subplots(), groups, looks)

    return drawn.draw(name, _alt(table, groups), 0.75 + _ROW * rows, onto)


def _groups(
    table: Table, averages: Mapping[str, Cell], published: Mapping[str, tuple[str, float]]
) -> list[Titled]:
    """Pairs, for an environment may be called as the averages are."""
    groups = [
        (
            column,
            [
                Bar(row.algorithm, cell.mean, cell.error, cell.n)
                for row in table.rows
                if (cell := row.cells[place]).mean is not None
            ],
        )
        for place, column in enumerate(table.columns)
    ]
    whole = {row.algorithm for row in table.rows if row.average is not None}
    over_all = [
        Bar(algorithm, cell.mean, cell.error, cell.n, *_beside(published.get(algorithm)))
        for algorithm, cell in averages.items()
        if cell.mean is not None and algorithm in whole
    ]
    return [(title, bars) for title, bars in [*groups, (AVERAGE, over_all)] if bars]


def _beside(published: tuple[str, float] | None) -> tuple[float | None, str]:
    return (published[1], published[0]) if published else (None, "")


def _bars(axes: Axes, groups: Sequence[Titled], looks: Mapping[str, style.Look]) -> None:
    place = 0.0
    names: dict[float, str] = {}
    marked = False
    for title, bars in groups:
        axes.text(0, place, f" {shown(title)}", va="center", weight="bold")
        for bar in bars:
            place += 1
            names[place] = shown(bar.algorithm)
            _bar(axes, place, bar, looks[bar.algorithm])
            marked |= bar.published is not None
        place += 1.6
    axes.set_yticks(list(names), list(names.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.7, -0.8)
    axes.set_xlim(0, _END + 12)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy (%)")
    if marked:
        axes.plot([], [], "d", color=style.INK, mfc=style.PAPER, label="published")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, handlelength=1)


def _bar(axes: Axes, place: float, bar: Bar, look: style.Look) -> None:
    axes.barh(
        place, bar.mean, 0.78, color=look.colour, hatch=look.hatch, edgecolor=style.INK,
        linewidth=0.6, xerr=bar.error if bar.n > 1 else None,
        error_kw={"ecolor": style.INK, "elinewidth": 1, "capsize": 2},
    )  # fmt: skip
    ours = f"{bar.mean:.1f}"
    if bar.published is None:
        end = bar.mean + ((bar.error or 0.0) if bar.n > 1 else 0.0)
        end = min(end, _END)  # a record may tell any number
        axes.text(end + 1.5, place, ours, va="center", fontsize=9)
        return
    # Each number beside what it is of: ours in the bar, the published one at its mark.
    box = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 1}
    axes.text(4, place, ours, va="center", fontsize=9, bbox=box)
    axes.plot(bar.published, place, "d", ms=6, color=style.INK, mfc=style.PAPER, mew=1.1, zorder=5)
    end = max(bar.published, bar.mean + (bar.error or 0.0))
    axes.text(
        end + 2, place, f"{bar.published:.1f}", va="center", fontsize=9, style="italic",
        color=style.MUTED,
    )  # fmt: skip


def _alt(table: Table, groups: Sequence[Titled]) -> str:
    """All of its numbers but the errors, which the table has."""
    told = "; ".join(
        f"{title}: "
        + ", ".join(f"{bar.algorithm} {bar.mean:.1f}" + _published(bar) for bar in bars)
        for title, bars in groups
    )
    return f"Bars of the accuracy in percent on {table.dataset}, by environment. {told}."


def _published(bar: Bar) -> str:
    return "" if bar.published is None else f" (published, {bar.method}: {bar.published:.1f})"
