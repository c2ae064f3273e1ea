"""Figures: colour is never the only sign, the same bytes each time."""

from domainbed_carft.report import figures
from domainbed_carft.results.tables import Cell, Row, Table

OURS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")
MANY = (*"ABCDEFG", *OURS)


def test_eleven_algorithms_differ_in_more_than_colour():
    looks = figures.looks(MANY)
    for sign in ("marker", "dash"):
        signs = [getattr(look, sign) for look in looks.values()]
        assert len(set(signs)) == len(MANY), sign
    assert {name: looks[name] for name in OURS} == figures.looks(OURS)


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
