"""Runs on whole test sets: a row for each algorithm's weights, from the jobs' suites.jsonl."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.results import selection, tables
from domainbed_carft.results.document import PLUS_MINUS, Grid
from domainbed_carft.results.published import sources
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Cell
from domainbed_carft.suites import known, records
from domainbed_carft.suites.sets import Suite

CAPTION = (
    "Suites: accuracy in % on whole test sets (carft evaluate --suite), the mean over the classes "
    "where others report that, of the run that validation chose in each trial; mean ± standard "
    "error (n trials). *: a copy that is not complete, of which no mean is formed."
)


class Scores(NamedTuple):
    """One algorithm's weights on a suite; ``alpha``: WiSE-FT's, None for the weights themselves.

    ``cells``: the name of a set, or the key of a mean, -> its accuracies over trials; ``partial``:
    sets of which a trial had no complete copy.
    """

    suite: str
    setting: str
    dataset: str
    algorithm: str
    weights: str
    alpha: float | None
    backbone: str
    cells: Mapping[str, Cell]
    partial: frozenset[str]

    @property
    def label(self) -> str:
        """Algorithm, which of its weights unless the last, alpha."""
        kinds = {file: kind for kind, file in WEIGHTS.items()}
        which = kinds.get(self.weights, self.weights)
        words = [self.algorithm, *([which] if which != "last" else [])]
        return ", ".join([*words, *([] if self.alpha is None else [f"alpha {self.alpha:g}"])])

    def entry(self) -> dict[str, Any]:
        """For JSON."""
        cells = {
            name: {"mean": cell.mean, "standard_error": cell.error, "n": cell.n}
            for name, cell in self.cells.items()
        }
        return {**self._asdict(), "cells": cells, "partial": sorted(self.partial)}


def scores(group: Group) -> list[Scores]:
    """All of one group, suite by suite, in the tables' order of algorithms."""
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for one in selection.select(group.runs, selection.IN_DOMAIN):
        (run,) = one.outcome.runs
        for record in records.read(Path(run.folder)):
            clip = str(run.recorded.get("clip_backbone", ""))
            key = (one.dataset, one.algorithm, clip, *(record[name] for name in records.KEY))
            if record["suite"] in known.SUITES:
                found.setdefault(key, {})[one.trial] = record
    order = tables.algorithms(algorithm for _, algorithm, *_ in found)
    rows = [
        Scores(suite, group.title, dataset, algorithm, weights, alpha, clip, *_over(suite, trials))
        for (dataset, algorithm, clip, suite, weights, alpha), trials in found.items()
    ]
    return sorted(rows, key=lambda row: (
        row.suite, row.dataset, order.index(row.algorithm), row.weights,
        -1 if row.alpha is None else row.alpha,
    ))  # fmt: skip


def _over(
    suite: str, trials: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[str, Cell], frozenset[str]]:
    """The cells of the records of the trials, and the sets of which one is not complete."""
    accuracies: dict[str, dict[int, float]] = {name: {} for name in columns(known.get(suite))}
    partial = set()
    for trial, record in trials.items():
        for name, of_trial in accuracies.items():
            value = record.get(name)
            if (one := record["sets"].get(name)) is not None:
                value = one.get("mean_per_class", one["accuracy"])
                partial |= set() if one["complete"] else {name}
            if value is not None:
                of_trial[trial] = value
    cells = {name: tables.cell_of(found, ()) for name, found in accuracies.items() if found}
    return cells, frozenset(partial)


def tabled(rows: Iterable[Scores]) -> list[list[Scores]]:
    """The rows of each table: of one suite, training set and setting."""
    found: dict[tuple[str, str, str], list[Scores]] = {}
    for row in rows:
        found.setdefault((row.suite, row.dataset, row.setting), []).append(row)
    return list(found.values())


def grid(rows: Sequence[Scores]) -> Grid:
    """The table of rows that `tabled` put together."""
    first, names = rows[0], columns(known.get(rows[0].suite))
    cells = [[row.label, *(_word(row, name) for name in names)] for row in rows]
    of = "" if first.dataset == first.suite else f", trained on {first.dataset}"
    title = "; ".join(filter(None, [f"Suite {first.suite}{of}", first.setting]))
    mixed = any(row.alpha is not None for row in rows)
    notes = ["alpha: WiSE-FT's; 0 is the original CLIP, 1 the run."] if mixed else []
    return Grid(title, ["Algorithm", *names.values()], cells, notes)


class Published(NamedTuple):
    """Figures of a published method on a suite, in percent: the name of a set or mean -> figure."""

    method: str
    backbone: str
    cells: Mapping[str, float]
    source: str
    note: str


def published(suite: Suite) -> list[Published]:
    """What is known of others' models on a suite: zero-shot CLIPs, and on imagenet any others."""
    if suite.name != "imagenet":
        return [
            Published("zero-shot CLIP", clip, cells, suite.source, "")
            for clip, cells in suite.published.items()
        ]
    text = (ASSETS / "suites" / "published.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        method, backbone, source, note = map(row.pop, ("method", "backbone", "source", "note"))
        cells = {name: float(value) for name, value in row.items() if value}
        for name, mean in suite.means(cells).items():
            if mean is not None:
                cells.setdefault(name, mean)
        found.append(Published(method, backbone, cells, source, note))
    return found


def beside(rows: Sequence[Scores]) -> list[Grid]:
    """For each suite of ``rows`` a table of these, but for WiSE-FT's curves, and the published."""
    grids = []
    for name in dict.fromkeys(row.suite for row in rows):
        suite, others = known.get(name), published(known.get(name))
        if others:
            columns_of = columns(suite)
            cells = [
                [f"{row.label}, ours", row.backbone, *(_word(row, key) for key in columns_of)]
                for row in rows
                if row.suite == name and row.alpha is None
            ]
            cells += [
                [one.method, one.backbone, *(_figure(one.cells.get(key)) for key in columns_of)]
                for one in others
            ]
            header = ["Method", "CLIP", *columns_of.values()]
            title = f"Suite {name}, beside published figures"
            grids.append(Grid(title, header, cells, sources(others)))
    return grids


def columns(suite: Suite) -> dict[str, str]:
    """The names in ``Scores.cells`` of a suite's table -> its headers."""
    found = {
        one.name: one.name + ", in distribution" * (not one.shifted and len(suite.sets) > 1)
        for one in suite.sets
    }
    return found | suite.titles


def _word(row: Scores, name: str) -> str:
    cell = row.cells.get(name, Cell())
    if cell.mean is None:
        return "-"
    mark = "*" * (name in row.partial)
    return f"{cell.mean:.1f} {PLUS_MINUS} {cell.error:.1f} ({cell.n}){mark}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def points(rows: Iterable[Scores]) -> list[tuple[str, float | None, float, float]]:
    """Algorithm, alpha, accuracy in distribution and the mean of the shifts, of rows with both.

    Of an algorithm's weights only the first: a curve is between the CLIP and one of them.
    """
    found, first = [], dict[str, str]()
    for row in rows:
        if row.weights != first.setdefault(row.algorithm, row.weights):
            continue
        x, y = (row.cells.get(n, Cell()).mean for n in (known.get(row.suite).usual, "mean"))
        if x is not None and y is not None:
            found.append((row.algorithm, row.alpha, x, y))
    return found
