"""From a matplotlib figure to the files of it, the same bytes each time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from domainbed_carft.report.figures import style

DPI = 180  # of the PNG


class Drawn(NamedTuple):
    """A figure: the stem of its files' names, what it shows in words, and the files' contents.

    ``boxes``: characters that the font lacks, so that the PNG has boxes for them; ``crowded``:
    whether its names have left no room to lay it out.
    """

    name: str
    alt: str
    svg: str
    png: bytes
    boxes: frozenset[str] = frozenset()
    crowded: bool = False

    @property
    def dark_svg(self) -> str:
        """The same in the colours of a dark page."""
        dark = {light.lower(): colour for light, colour in style.DARK.items()}
        return re.sub("|".join(dark), lambda found: dark[found.group()], self.svg)


def draw(name: str, alt: str, height: float, onto: Callable[[Figure], None]) -> Drawn:
    """A figure ``height`` inches high, drawn by ``onto``."""
    with warnings.catch_warnings(record=True) as told, matplotlib.rc_context(style.RC):
        warnings.simplefilter("always")
        figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
        onto(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # it is laid out, which would be done anew for each file
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(raster, format="png", dpi=DPI, metadata={"Software": None})
    svg = _without_preamble(vector.getvalue())
    return Drawn(name, alt, svg, raster.getvalue(), *_understood(told))


def _understood(told: Iterable[warnings.WarningMessage]) -> tuple[frozenset[str], bool]:
    """What matplotlib warns of in its own words, for `Drawn`; other warnings go on."""
    boxes, crowded = set(), False
    for one in told:
        glyph = re.match(r"Glyph (\d+) .*missing from", str(one.message))
        if glyph:
            boxes.add(chr(int(glyph[1])))
        elif str(one.message).startswith("constrained_layout not applied"):
            crowded = True
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return frozenset(boxes), crowded


def _without_preamble(svg: str) -> str:
    """Without the document type, whose address would look like one to fetch."""
    return svg[svg.index("<svg") :]


def all_of(
    tasks: Sequence[tuple[Callable[..., Drawn | None], tuple[Any, ...]]], processes: int
) -> list[Drawn | None]:
    """What the functions give for their arguments, in order.

    ``processes``: they are forked, so more than one suits a process without threads.
    """
    if processes < 2 or len(tasks) < 2:
        return [function(*arguments) for function, arguments in tasks]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in tasks]
        return [future.result() for future in futures]
