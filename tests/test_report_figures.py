"""Figures: colour is never the only sign, the same bytes each time."""

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


def test_each_environments_bars_are_a_figure_if_there_are_many():
    names = lambda *words: "-".join(words)  # noqa: E731
    rows = [Row(name, [Cell(50.0, 1.0, 2)] * 2, 50.0, shown=[]) for name in MANY]
    table = Table("", "oracle", "PACS", ["A", "C"], rows, [], shown=[])
    styles = styles_of(MANY)
    (single,) = figures.bars(table._replace(rows=rows[:6]), styles, names)

    assert (single.title, single.name) == ("PACS", "PACS-accuracy")

    many = figures.bars(table, styles, names)
    assert [(figure.title, figure.name) for figure in many] == [
        (f"PACS, {label}", f"PACS-accuracy-{label}") for label in ("A", "C", "average")
    ]

    for figure in many:  # which a printed page has room for
        height = float(figure.svg.split('height="')[1].split("pt")[0]) / 72
        assert height < 9 and figure.svg.count(">FLYP</text>") == 1


def draw_bars(label="$x_1$ & <b>"):
    rows = [Row(name, [Cell(50.0, 1.0, 2)], 50.0, shown=[]) for name in MANY[:4]]
    table = Table("", "oracle", "PACS", [label], rows, [], shown=[])
    (figure,) = figures.bars(table, styles_of(MANY), lambda *words: "name")
    return figure


def test_a_figure_is_the_same_each_time_and_its_names_are_text(recwarn):
    first = draw_bars()
    assert first == draw_bars()
    assert "> $x_1$ &amp; &lt;b&gt;</text>" in first.svg  # and no formula

    for label in ("漢字", "x" * 300, "\x1b\ud800\n"):
        assert draw_bars(label).png
    assert not list(recwarn)  # of letters that the font lacks, and of long names
