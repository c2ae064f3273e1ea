"""Figures: colour is never the only sign, the same bytes each time."""

import pytest

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.report import figures
from domainbed_carft.report.styles import styles_of
from domainbed_carft.results.tables import Cell, Row, Table

OTHERS = tuple("ABCDEFG")
MANY = (*OTHERS, *ALGORITHMS)


def test_twenty_algorithms_differ_in_more_than_colour():
    styles = styles_of(MANY)
    for signs in (
        [(style.marker, style.hollow) for style in styles.values()],
        [style.dash for style in styles.values()],
        [styles[name].colour for name in ALGORITHMS],
    ):
        assert len(set(signs)) == len(signs)

    # Whatever is beside it, an algorithm keeps its style.
    for name in ALGORITHMS:
        assert styles_of([name])[name] == styles[name]


def table_of(names, columns=("A", "C"), error=1.0):
    rows = [
        Row(name, [Cell(50.0 + number, error, 2)] * len(columns), 50.0 + number, shown=[])
        for number, name in enumerate(names)
    ]
    return Table("", "oracle", "PACS", list(columns), rows, [], shown=[])


def join(*words):
    return "-".join(words)


def test_each_environment_is_a_figure_with_one_axis_for_all():
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", lambda canvas, *_: drawn.append(canvas.axes[0]))
        figures.dots(table_of(ALGORITHMS[:3]), styles_of(MANY), join)

    limits = [axes.get_xlim() for axes in drawn]
    assert len(limits) == 2 and len({*limits}) == 1
    low, high = limits[0]
    assert 48 < low < 49 and 53 < high < 54  # near the dots and their errors, not from 0

    many = figures.dots(table_of(MANY), styles_of(MANY), join)
    assert [(figure.title, figure.name) for figure in many] == [
        ("A", "PACS-accuracy-A"),
        ("C", "PACS-accuracy-C"),
    ]
    for figure in many:  # which a printed page has room for
        height = float(figure.svg.split('height="')[1].split("pt")[0]) / 72
        assert height < 9 and figure.svg.count(">FLYP</text>") == 1


def test_a_figures_csv_has_its_numbers():
    names = ["CARFT", "=A\x1b"]
    figure = figures.dots_of_averages(table_of(names), styles_of(names), join)
    rows = [line.split(",") for line in figure.csv.splitlines()]
    assert rows[0] == ["algorithm", "accuracy", "error", "n"]
    assert [row[:2] for row in rows[1:]] == [["CARFT", "50"], [r"=A\x1b", "51"]]


def draw_dots(label="$x_1$ & <b>"):
    (figure,) = figures.dots(table_of(MANY[:4], [label]), styles_of(MANY), lambda *words: "name")
    return figure


def test_a_figure_is_the_same_each_time_and_its_names_are_text(recwarn):
    first = draw_dots()
    assert first == draw_dots()
    odd = table_of(["$x_1$ & <b>"])
    (figure, _) = figures.dots(odd, styles_of(["$x_1$ & <b>"]), join)
    assert ">$x_1$ &amp; &lt;b&gt;</text>" in figure.svg  # and no formula

    for label in ("漢字", "x" * 300, "\x1b\ud800\n"):
        assert draw_dots(label).png
    assert not list(recwarn)  # of letters that the font lacks, and of long names
