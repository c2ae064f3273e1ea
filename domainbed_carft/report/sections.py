"""The sections of the page, one a data set and setting; what is missing in all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.report import figures, frames
from domainbed_carft.report.content import Part, Section, Wanted
from domainbed_carft.report.figures import Figure, Looks
from domainbed_carft.results import document, labels, selection
from domainbed_carft.results.document import Grid
from domainbed_carft.results.published import Comparison
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table

Name = Callable[..., str]  # of a file or a place on the page: made of words, and given once


def build(
    groups: Sequence[Group], built: Sequence[Sequence[Table]],
    compared: Sequence[Sequence[Comparison]], method: str, pair: Sequence[str] | None,
    wanted: Wanted,
) -> list[Section]:  # fmt: skip
    """A section for each data set of each group that has jobs for the method.

    ``built``, ``compared``: of each group the tables, and its cells beside published figures.
    ``pair``: the algorithms that are compared picture by picture; only this loads torch.
    """
    looks = figures.looks(labels.algorithms(run.algorithm for g in groups for run in g.runs))
    given: set[str] = set()

    def name(*words: str) -> str:
        plain = (re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.")[:60] or "_" for word in words)
        stem = free = "-".join(plain)
        count = 1
        while free in given:
            count += 1
            free = f"{stem}-{count}"
        given.add(free)
        return free

    found = []
    for group, own, beside in zip(groups, built, compared, strict=True):
        averages = next((t for t in own if t.averages and t.method == method), None)
        for table in own:
            if table.averages or table.method != method:
                continue
            dataset, identity = table.dataset, name("data", table.dataset)
            runs = [run for run in group.runs if run.dataset == dataset]
            known = {
                one.algorithm: one.published
                for one in beside
                if (one.dataset, one.selection) == (dataset, method)
            }
            shown = [*parts(table, averages, runs, known, looks, name)]
            if pair and wanted.examples is not None and method != selection.IN_DOMAIN:
                from domainbed_carft.report import examples

                shown.append(examples.part(table, runs, pair, wanted))
            title = "; ".join(filter(None, [dataset, group.title]))
            others = [
                document.grid(other)
                for other in own
                if other.dataset == dataset and other.method != method and not other.averages
                if has_values(other)
            ]
            grid = document.grid(table)
            found.append(Section(identity, title, grid, best(table), others, shown))
    return found


def best(table: Table) -> list[list[bool]]:
    """Whether each cell of the table's grid, without the label, is the highest of its column."""
    means = [[*(cell.mean for cell in row.cells), row.average] for row in table.rows]
    printed = pd.DataFrame(means, dtype=float).round(1)  # what reads the same is as good
    return (printed == printed.max()).to_numpy().tolist()


def missing(built: Iterable[Table], optional: Container[str]) -> tuple[Grid, int]:
    """What cells of a data set lack, each said once; how many of that are not of ``optional``."""
    found: dict[tuple[str, str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for table in (table for table in built if not table.averages):
        where = "; ".join(filter(None, [table.dataset, table.setting]))
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                for text in cell.missing:
                    columns, methods = found.setdefault((where, row.algorithm, text), ({}, {}))
                    columns[column] = methods[table.method] = None
    rows = [
        [*key, ", ".join(columns), ", ".join(selection.METHODS[name].title for name in methods)]
        for key, (columns, methods) in found.items()
    ]
    gaps = sum(any(name not in optional for name in methods) for _, methods in found.values())
    header = ["Data set", "Algorithm", "What", "Environments", "Tables by"]
    return Grid("Jobs that cells lack", header, rows, []), gaps


def parts(
    table: Table, averages: Table | None, runs: Sequence[Run], published: Mapping[str, float],
    looks: Looks, name: Name,
) -> Iterator[Part]:  # fmt: skip
    """Bars, curves, marks and drift; ``runs`` are those of the table's data set and setting.

    ``averages``: the table that has the data set's in a column. ``published``: algorithm ->
    published accuracy in percent.
    """
    dataset = table.dataset
    drawn: list[Figure | None] = []
    if has_values(table):
        drawn.append(figures.bars(name(dataset, "accuracy"), table, averages, published, looks))
    yield Part("bars", drawn)
    checkpoints = frames.checkpoints(runs, table.method)
    title = selection.METHODS[table.method].title
    lacking = f"No run could be selected by {title}: What is missing says why."
    lacking = "" if len(checkpoints) else lacking
    drawn = [
        figures.curves(place, name(dataset, "over_steps", place), rows, figures.ACCURACY, looks)
        for place, rows in _places(table, checkpoints)
    ]
    yield Part("steps", drawn, lacking=lacking)
    drawn = [
        figures.marks(place, name(dataset, "robustness", place), rows, looks)
        for place, rows in _places(table, frames.outcomes(runs, table.method))
    ]
    yield Part("robustness", drawn, lacking=lacking)
    rows = frames.over_targets(checkpoints, frames.DRIFT)
    drawn = [figures.curves(dataset, name(dataset, "context_drift"), rows, figures.DRIFT, looks)]
    yield Part("drift", drawn, lacking=lacking)


def has_values(table: Table) -> bool:
    """Whether any cell has one."""
    return any(cell.mean is not None for row in table.rows for cell in row.cells)


def _places(table: Table, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and the rows of all environments together, then of each."""
    if rows.empty:
        return
    if (rows["target"] == frames.NOTHING).all():
        yield "nothing left out", rows
        return
    together = frames.over_targets(rows, ["in_domain", "out_of_domain"])
    if rows["target"].nunique() > 1 and not together.empty:
        yield "mean over environments", together
    for target, label in enumerate(table.columns):
        mine = rows[rows["target"] == target]
        if not mine.empty:
            yield f"{label} left out", mine
