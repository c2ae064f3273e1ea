"""What changes over training steps: accuracy in and out of the domains, and context drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainbed_carft import text
from domainbed_carft.report import frames
from domainbed_carft.report.figures import drawn, style


class Panel(NamedTuple):
    """One pair of axes: a column, its title, what it is multiplied by, and digits to tell."""

    column: str
    title: str
    scale: float = 1.0
    digits: int = 1


ACCURACY = (
    Panel("out_of_domain", "out-of-domain accuracy (%)", 100),
    Panel("in_domain", "in-domain accuracy (%)", 100),
)
DRIFT = (
    Panel("loss_kl", "KL to the original (nats)", digits=3),
    Panel("context_agreement", "same most likely context (%)", 100),
)


def draw(
    name: str, what: str, rows: pd.DataFrame, panels: tuple[Panel, ...],
    looks: Mapping[str, style.Look],
) -> drawn.Drawn | None:  # fmt: skip
    """A panel above the other, each with a line an algorithm: mean and band over trials.

    ``what`` says in words whose curves they are. None where there is nothing to draw.
    """
    shown = [panel for panel in panels if rows[panel.column].notna().any()]
    if not shown:
        return None
    lines = {panel: dict(frames.over_trials(rows, panel.column)) for panel in shown}
    present = [a for a in looks if any(a in found for found in lines.values())]

    def onto(figure: Figure) -> None:
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        handles: dict[str, Line2D] = {}
        for place, panel in zip(axes, shown):
            handles |= _panel(place, panel, lines[panel], {name: looks[name] for name in present})
        axes[-1].set_xlabel("training step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        figure.legend(
            [handles[name] for name in present], [text.shown(name) for name in present],
            loc="outside lower center", ncols=2,
        )  # fmt: skip

    height = 0.8 + 1.75 * len(shown) + 0.2 * ((len(present) + 1) // 2)
    return drawn.draw(name, _alt(what, shown, lines, present), height, onto)


def _panel(
    axes: Axes, panel: Panel, lines: Mapping[str, pd.DataFrame], looks: Mapping[str, style.Look]
) -> dict[str, Line2D]:
    """The line of each algorithm that has one."""
    handles = {}
    for algorithm, look in looks.items():
        if algorithm not in lines:
            continue
        line = lines[algorithm] * panel.scale
        axes.fill_between(
            line.index, line["mean"] - line["error"], line["mean"] + line["error"],
            color=look.colour, alpha=0.18, linewidth=0,
        )  # fmt: skip
        (handles[algorithm],) = axes.plot(
            line.index, line["mean"], color=look.colour, marker=look.marker, ms=5, lw=1.8,
            linestyle=look.dash, mec=style.INK, mew=0.5,
            markevery=max(1, len(line) // 10),
        )  # fmt: skip
    axes.set_title(panel.title)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return handles


def _alt(
    what: str, panels: list[Panel], lines: Mapping[Panel, Mapping[str, pd.DataFrame]],
    algorithms: list[str],
) -> str:  # fmt: skip
    told = []
    for panel in panels:
        parts = []
        for algorithm in algorithms:
            line = lines[panel].get(algorithm)
            if line is not None:
                first, last = (line["mean"].iloc[i] * panel.scale for i in (0, -1))
                parts.append(
                    f"{algorithm} from {first:.{panel.digits}f} to {last:.{panel.digits}f}"
                )
        told.append(f"{panel.title}: {', '.join(parts)}")
    steps = [line.index for found in lines.values() for line in found.values()]
    span = f"{min(s.min() for s in steps):g} to {max(s.max() for s in steps):g}"
    return f"Lines over training steps {span}, {what}. {'. '.join(told)}."
