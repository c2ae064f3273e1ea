"""The style of each algorithm, the same in all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.algorithms import INK as INK
from domainbed_carft.jobs.algorithms import PAPER as PAPER
from domainbed_carft.jobs.algorithms import Style as Style

ZERO_SHOT = "CLIPZeroShot"
Styles = Mapping[str, Style]

# Algorithms that declare none, again in turn if there are more.
_STYLES_OF_OTHERS = (
    Style(0, "#57606a", "o", (0, (1, 1)), hollow=True),
    Style(0, "#0072B2", "s", (0, (3, 2)), hollow=True),
    Style(0, "#882255", "^", (0, (7, 1)), hollow=True),
    Style(0, "#117733", "D", (0, (4, 1, 1, 1)), hollow=True),
    Style(0, "#332288", "v", (0, (1, 2)), hollow=True),
    Style(0, "#7A5C00", "P", (0, (9, 2, 1, 2)), hollow=True),
    Style(0, "#AA4499", "X", (0, (5, 4)), hollow=True),
)


def styles_of(algorithms: Sequence[str]) -> dict[str, Style]:
    """Algorithm -> the style that it declares, else the next of the others' in the order given."""
    known = own_methods.known()
    styles = {}
    number = 0
    for name in algorithms:
        declaration = known.get(name)
        if declaration and declaration.style:
            styles[name] = declaration.style
        else:
            styles[name] = _STYLES_OF_OTHERS[number % len(_STYLES_OF_OTHERS)]
            number += 1
    return styles
