"""Figures: colour is never the only sign, the same bytes each time."""

import matplotlib
import pandas as pd

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.report import plots

OTHERS = tuple("ABCDEFG")
MANY = (*OTHERS, *ALGORITHMS)


def test_twenty_algorithms_differ_in_more_than_colour():
    styles = plots.styles_of(MANY)
    for signs in (
        [(style.marker, style.hollow) for style in styles.values()],
        [style.dash for style in styles.values()],
        [styles[name].colour for name in ALGORITHMS],
    ):
        assert len(set(signs)) == len(signs)

    # Whatever is beside it, an algorithm keeps its style.
    for name in ALGORITHMS:
        assert plots.styles_of([name])[name] == styles[name]


def cells_of(names, error=1.0):
    accuracies = [50.0 + number for number in range(len(names))]
    return pd.DataFrame(
        {"algorithm": names, "accuracy": accuracies, "error": error, "n": 2, "incomplete": False}
    )


def test_dots_lie_on_an_axis_that_ends_near_them(monkeypatch):
    cells = cells_of(ALGORITHMS[:3])
    low, high = plots.dot_limits(cells)
    assert 48 < low < 49 and 53 < high < 54  # near the dots and their errors, not from 0

    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda canvas, *_: drawn.append(canvas.axes[0]))
    plots.dots("A", "name", cells, plots.styles_of(MANY), (low, high))
    assert drawn[0].get_xlim() == (low, high)


def test_a_figure_of_many_algorithms_fits_a_printed_page():
    figure = draw_dots(MANY)
    height = float(figure.svg.split('height="')[1].split("pt")[0]) / 72
    assert height < 9 and figure.svg.count(">FLYP</text>") == 1


def test_a_figures_csv_has_its_numbers():
    figure = draw_dots(["CARFT", "=A\x1b"])
    rows = [line.split(",") for line in figure.csv.splitlines()]
    assert rows == [
        ["algorithm", "accuracy", "error", "n", "incomplete"],
        ["CARFT", "50", "1", "2", "False"],
        [r"=A\x1b", "51", "1", "2", "False"],
    ]


def draw_dots(names, title="A"):
    cells = cells_of(names)
    with plots.figure_style():
        return plots.dots(title, "name", cells, plots.styles_of(names), plots.dot_limits(cells))


def test_a_figure_is_the_same_each_time_whatever_matplotlib_is_set_to(recwarn):
    first = draw_dots(MANY[:4])
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.fonttype": "path"}):
        assert draw_dots(MANY[:4]) == first

    for title in ("漢字", "x" * 300, "\x1b\ud800\n"):
        assert draw_dots(MANY[:4], title).png
    assert not list(recwarn)  # of letters that the font lacks, and of long names


def test_names_in_a_figure_are_text_and_no_formula():
    figure = draw_dots(["$x_1$ & <b>"])
    assert ">$x_1$ &amp; &lt;b&gt;</text>" in figure.svg


def test_axes_of_both_accuracies_are_not_compared_with_each_other():
    """In-domain pictures are augmented: no line of equal accuracies, and the axis says it."""
    points = pd.DataFrame(
        {"algorithm": ["A", "B"], "trial": 0, "in_domain": [40, 90], "out_of_domain": [40, 90]}
    )
    with plots.figure_style():
        svg = plots.robustness("title", "name", points, plots.styles_of(["A", "B"])).svg
    assert ">in-domain accuracy, augmented pictures (%)</text>" in svg
    assert "equal" not in svg and "stroke-dasharray: 2" not in svg
