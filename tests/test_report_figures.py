"""Figures: colours that stand out and are never the only sign, the same bytes each time."""

import numpy as np

from domainbed_carft.report import figures
from domainbed_carft.results.tables import Cell, Row, Table

OURS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")
MANY = (*"ABCDEFG", *OURS)


def luminance(colour):
    """WCAG 2's relative luminance."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_eleven_algorithms_differ_in_more_than_colour_and_ours_stand_out_on_white():
    looks = figures.looks(MANY)
    for sign in ("marker", "dash"):
        signs = [getattr(look, sign) for look in looks.values()]
        assert len(set(signs)) == len(MANY), sign
    assert {name: looks[name] for name in OURS} == figures.looks(OURS)
    colours = [
        *((looks[name].colour, 3) for name in OURS),
        (figures.INK, 4.5),
        (figures.MUTED, 4.5),
    ]
    for colour, least in colours:
        assert 1.05 / (luminance(colour) + 0.05) >= least, colour


def drawn(label="$x_1$ & <b>"):
    rows = [Row(name, [Cell(50.0, 1.0, 2)], 50.0) for name in MANY]
    table = Table("", "oracle", "PACS", [label], rows, [])
    return figures.bars("name", table, figures.looks(MANY))


def test_a_figure_is_the_same_each_time_and_its_names_are_text(recwarn):
    first = drawn()
    assert first == drawn()
    assert "> $x_1$ &amp; &lt;b&gt;</text>" in first.svg  # and no formula
    for odd in ("漢字", "x" * 300, "\x1b\ud800\n"):
        assert drawn(odd).png
    assert not list(recwarn)  # of letters that the font lacks, and of long names
