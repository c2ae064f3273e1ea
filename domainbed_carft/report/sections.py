"""The sections of the page, one a data set and setting."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.report import figures, frames
from domainbed_carft.report.content import Part, Section, Wanted
from domainbed_carft.report.figures import Looks
from domainbed_carft.results import document, labels, selection
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table

Name = Callable[..., str]  # of a file or a place on the page: made of words, and given once


def build(
    groups: Sequence[Group], built: Sequence[Sequence[Table]], method: str,
    pair: Sequence[str] | None, wanted: Wanted,
) -> list[Section]:  # fmt: skip
    """A section for each data set of each group that has jobs for the method.

    ``built``: the tables of each group. ``pair``: the algorithms that are compared picture by
    picture; only this loads torch.
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
    for group, own in zip(groups, built, strict=True):
        for table in (t for t in own if t.method == method and not t.averages):
            dataset, identity = table.dataset, name("data", table.dataset)
            runs = [run for run in group.runs if run.dataset == dataset]
            parts = [*_parts(table, runs, looks, name)]
            if pair and wanted.examples is not None and method != selection.IN_DOMAIN:
                from domainbed_carft.report import examples

                parts.append(examples.part(table, runs, pair, wanted))
            title = "; ".join(filter(None, [dataset, group.title]))
            others = [
                document.grid(other)
                for other in own
                if (other.dataset, other.averages) == (dataset, False) and has_values(other)
                if other.method != method
            ]
            found.append(
                Section(identity, title, document.grid(table), _best(table), others, parts)
            )
    return found


def _best(table: Table) -> list[list[bool]]:
    """Whether each cell of the table's grid, without the label, is the highest of its column."""
    means = [[*(cell.mean for cell in row.cells), row.average] for row in table.rows]
    printed = pd.DataFrame(means, dtype=float).round(1)  # what reads the same is as good
    return (printed == printed.max()).to_numpy().tolist()


def _parts(table: Table, runs: Sequence[Run], looks: Looks, name: Name) -> Iterator[Part]:
    """Bars, curves, marks and drift; ``runs`` are those of the table's data set and setting."""
    dataset = table.dataset
    bars = [figures.bars(name(dataset, "accuracy"), table, looks)] if has_values(table) else []
    yield Part("bars", bars)
    rows = frames.checkpoints(runs, table.method)
    curves = [
        figures.curves(place, name(dataset, "over_steps", place), some, figures.ACCURACY, looks)
        for place, some in _places(table, rows)
    ]
    yield Part("steps", curves)
    marks = [
        figures.marks(place, name(dataset, "robustness", place), some, looks)
        for place, some in _places(table, frames.outcomes(runs, table.method))
    ]
    yield Part("robustness", marks)
    rows = frames.over_targets(rows, frames.DRIFT)
    drift = figures.curves(dataset, name(dataset, "context_drift"), rows, figures.DRIFT, looks)
    yield Part("drift", [drift])


def has_values(table: Table) -> bool:
    """Whether any cell has one."""
    return any(cell.mean is not None for row in table.rows for cell in row.cells)


def _places(table: Table, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and the rows of all environments together, then of each."""
    if (rows["target"] == frames.NOTHING).any():  # as in all of them
        yield "nothing left out", rows
        return
    if rows["target"].nunique() > 1:
        together = frames.over_targets(rows, ["in_domain", "out_of_domain"])
        if not together.empty:
            yield "mean over environments", together
    for target, label in enumerate(table.columns):
        mine = rows[rows["target"] == target]
        if not mine.empty:
            yield f"{label} left out", mine
