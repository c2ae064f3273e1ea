"""Figures: colours that stand out and are never the only sign, the same bytes each time."""

import re

import numpy as np
import pytest

from domainbed_carft.report import figures
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


def test_eleven_algorithms_differ_in_more_than_colour_and_ours_keep_their_looks():
    looks = figures.looks(MANY)
    for sign in ("marker", "dash", "hatch"):
        signs = [getattr(look, sign) for look in looks.values()]
        expected = len(MANY) if sign != "hatch" else len(MANY) - 1  # two of ours are plain
        assert len(set(signs)) == expected, sign
    assert {name: looks[name] for name in OURS} == figures.looks(OURS)


@pytest.mark.parametrize("dark", [False, True])
def test_ours_and_all_letters_stand_out(dark):
    def shown(colour):
        return figures.DARK.get(colour, colour) if dark else colour

    for look in figures.looks(OURS).values():
        assert contrast(shown(look.colour), shown(figures.PAPER)) >= 3, look.colour
    for ink in (figures.INK, figures.MUTED):
        assert contrast(shown(ink), shown(figures.PAPER)) >= 4.5


def drawn(label="$x_1$ & <b>"):
    rows = [Row(name, [Cell(50.0, 1.0, 2)], 50.0) for name in MANY]
    table = Table("", "oracle", "PACS", [label], rows, [])
    return figures.bars("name", table, None, {}, figures.looks(MANY))


def test_a_figure_is_the_same_each_time_and_its_names_are_text(recwarn):
    first = drawn()
    assert first == drawn()
    assert "> $x_1$ &amp; &lt;b&gt;</text>" in first.svg  # and no formula
    for odd in ("漢字", "x" * 300, "\x1b\ud800\n"):
        assert drawn(odd).png
    assert not list(recwarn)  # of letters that the font lacks, and of long names


def test_in_the_dark_every_colour_is_another():
    figure = drawn()
    for light, dark in figures.DARK.items():
        assert light.lower() not in figure.dark.svg
        assert (light.lower() in figure.svg) == (dark in figure.dark.svg), light
    plain = re.sub("#[0-9a-f]{6}", "", figure.svg)
    assert re.sub("#[0-9a-f]{6}", "", figure.dark.svg) == plain
