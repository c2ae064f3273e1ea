"""Figures: colours that stand out and are never the only sign, the same bytes each time."""

import re

import numpy as np
import pytest

from domainbed_carft.report.figures import bars, style
from domainbed_carft.results.tables import Cell, Row, Table

OURS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")
MANY = (*"ABCDEFG", *OURS)


def luminance(colour):
    """WCAG 2's relative luminance."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_eleven_algorithms_differ_in_more_than_colour():
    looks = style.looks(MANY)
    for sign in ("marker", "dash", "hatch"):
        signs = [getattr(look, sign) for look in looks.values()]
        expected = len(MANY) if sign != "hatch" else len(MANY) - 1  # two of ours are plain
        assert len(set(signs)) == expected, sign


def test_ours_keep_their_looks_whatever_stands_beside_them():
    assert {name: style.looks(MANY)[name] for name in OURS} == style.looks(OURS)
    assert len({look.colour for look in style.looks(OURS).values()}) == len(OURS)


@pytest.mark.parametrize("dark", [False, True])
def test_ours_and_all_letters_stand_out(dark):
    def shown(colour):
        return style.DARK.get(colour, colour) if dark else colour

    for look in style.looks(OURS).values():
        assert contrast(shown(look.colour), shown(style.PAPER)) >= 3, look.colour
    for ink in (style.INK, style.MUTED):
        assert contrast(shown(ink), shown(style.PAPER)) >= 4.5


def drawn():
    rows = [Row(name, [Cell(50.0, 1.0, 2)], 50.0) for name in MANY]
    table = Table("", "oracle", "PACS", ["$x_1$ & <b>"], rows, [])
    return bars.draw("name", table, {}, {}, style.looks(MANY))


def test_a_figure_is_the_same_each_time_and_its_names_are_text():
    first, second = drawn(), drawn()
    assert first == second
    assert "> $x_1$ &amp; &lt;b&gt;</text>" in first.svg  # and no formula


def test_in_the_dark_every_colour_is_another():
    figure = drawn()
    for light, dark in style.DARK.items():
        assert light.lower() not in figure.dark_svg
        assert (light.lower() in figure.svg) == (dark in figure.dark_svg), light
    plain = re.sub("#[0-9a-f]{6}", "", figure.svg)
    assert re.sub("#[0-9a-f]{6}", "", figure.dark_svg) == plain
