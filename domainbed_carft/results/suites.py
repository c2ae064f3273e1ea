"""Runs on whole test sets: a row for each algorithm's weights, from the jobs' suites.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.results import published, selection, tables
from domainbed_carft.results.document import Grid, number
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Cell
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite

CAPTION = (
    "Suites: accuracy in % on whole test sets (carft evaluate --suite), the mean over the classes "
    "where others report that, of the run that validation chose in each trial; mean ± standard "
    "error (n trials). *: a copy that is not complete, of which no mean is formed."
)


class Scores(NamedTuple):
    """One algorithm's weights on a suite; ``alpha``: WiSE-FT's, None for the weights themselves.

    ``cells``: of sets, partial where a trial had no complete copy, and of means.
    """

    suite: str
    setting: str
    dataset: str
    algorithm: str
    weights: str
    alpha: float | None
    backbone: str
    cells: Mapping[str, Cell]

    @property
    def words(self) -> list[str]:
        """The cells of its row in the suite's table."""
        cells = [self.cells.get(name, Cell()) for name in columns(catalogue.get(self.suite))]
        return [(number(c.mean, c.error, c.n) or "-") + "*" * c.partial for c in cells]

    @property
    def label(self) -> str:
        """Algorithm, which of its weights unless the last, alpha."""
        which = {file: kind for kind, file in WEIGHTS.items()}.get(self.weights, self.weights)
        alpha = "" if self.alpha is None else f"alpha {self.alpha:g}"
        return ", ".join(filter(None, [self.algorithm, which * (which != "last"), alpha]))

    def entry(self) -> dict[str, Any]:
        """For JSON."""
        cells = {
            name: {"mean": cell.mean, "standard_error": cell.error, "n": cell.n}
            for name, cell in self.cells.items()
        }
        partial = sorted(name for name, cell in self.cells.items() if cell.partial)
        return {**self._asdict(), "cells": cells, "partial": partial}


def scores(group: Group) -> list[Scores]:
    """All of one group, suite by suite, in the tables' order of algorithms."""
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for one in selection.select(group.runs, selection.IN_DOMAIN):
        (run,) = one.outcome.runs
        for record in records.read(Path(run.folder)):
            clip = str(run.recorded.get("clip_backbone", ""))
            key = (one.dataset, one.algorithm, clip, *(record[name] for name in records.KEY))
            if record["suite"] in catalogue.SUITES:
                found.setdefault(key, {})[one.trial] = record
    order = tables.algorithms((algorithm for _, algorithm, *_ in found), group.declared)
    rows = [
        Scores(suite, group.title, dataset, algorithm, weights, alpha, clip, _over(suite, trials))
        for (dataset, algorithm, clip, suite, weights, alpha), trials in found.items()
    ]
    return sorted(rows, key=lambda row: (
        row.suite, row.dataset, order.index(row.algorithm), row.weights,
        -1 if row.alpha is None else row.alpha,
    ))  # fmt: skip


def _over(suite: str, trials: Mapping[int, Mapping[str, Any]]) -> dict[str, Cell]:
    """The cells of the records of the trials."""
    cells = {}
    for name in columns(catalogue.get(suite)):
        found, partial = {}, False
        for trial, record in trials.items():
            one = record["sets"].get(name)
            value = one.get("mean_per_class", one["accuracy"]) if one else record.get(name)
            partial |= bool(one and not one["complete"])
            if value is not None:
                found[trial] = value
        if found:
            cells[name] = tables.cell_of(found, ())._replace(partial=partial)
    return cells


def tabled(rows: Iterable[Scores]) -> list[list[Scores]]:
    """The rows of each table: of one suite, training set and setting."""
    found: dict[tuple[str, str, str], list[Scores]] = {}
    for row in rows:
        found.setdefault((row.suite, row.dataset, row.setting), []).append(row)
    return list(found.values())


def grid(rows: Sequence[Scores]) -> Grid:
    """The table of rows that `tabled` put together."""
    first, names = rows[0], columns(catalogue.get(rows[0].suite))
    title = f"Suite {first.suite}"
    if first.dataset != first.suite:
        title += f", trained on {benchmarks.dataset_title(first.dataset)}"
    title = "; ".join(filter(None, [title, first.setting]))
    mixed = any(row.alpha is not None for row in rows)
    notes = ["alpha: WiSE-FT's; 0 is the original CLIP, 1 the run."] * mixed
    cells = [[row.label, *row.words] for row in rows]
    return Grid(title, ["Algorithm", *names.values()], cells, notes)


def others(suite: Suite) -> list[dict[str, Any]]:
    """Rows of others' figures by set or mean, in percent: zero-shot CLIPs, on imagenet more."""
    if suite.name != "imagenet":
        about = {"method": "zero-shot CLIP", "source": suite.source, "note": ""}
        return [{**about, "backbone": clip, **row} for clip, row in suite.published.items()]
    rows = published.read("suites/published.csv")
    return [row | {k: v for k, v in suite.means(row).items() if row[k] is None} for row in rows]


def beside(rows: Sequence[Scores]) -> list[Grid]:
    """For each suite of ``rows`` a table of these, but for WiSE-FT's curves, and the published."""
    grids = []
    for name in dict.fromkeys(row.suite for row in rows):
        suite = catalogue.get(name)
        names = columns(suite)
        if theirs := others(suite):
            ours = [row for row in rows if row.suite == name and row.alpha is None]
            cells = [[f"{row.label}, ours", row.backbone, *row.words] for row in ours]
            cells += [
                [row["method"], row["backbone"], *(number(row.get(key)) for key in names)]
                for row in theirs
            ]
            title = f"Suite {name}, beside published figures"
            header = ["Method", "CLIP", *names.values()]
            grids.append(Grid(title, header, cells, published.sources(theirs)))
    return grids


def columns(suite: Suite) -> dict[str, str]:
    """The names in ``Scores.cells`` of a suite's table -> its headers."""
    inner = ", in distribution" * (len(suite.sets) > 1)
    return {s.name: s.name + inner * (not s.is_shifted) for s in suite.sets} | suite.mean_titles


def points(rows: Iterable[Scores]) -> list[tuple[str, float | None, float, float]]:
    """Algorithm, alpha, accuracy in distribution and mean of the shifts, of rows with both."""
    found, first = [], dict[str, str]()
    for row in rows:
        x, y = (
            row.cells.get(n, Cell()).mean
            for n in (catalogue.get(row.suite).in_distribution, "mean")
        )
        # A curve is between the CLIP and one file of weights.
        same = row.weights == first.setdefault(row.algorithm, row.weights)
        if same and x is not None and y is not None:
            found.append((row.algorithm, row.alpha, x, y))
    return found
