"""Our figures beside the published ones of ``assets/published.csv``, each with its source."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import tables
from domainbed_carft.results.document import PLUS_MINUS, Grid
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Cell, Table

AVERAGE = "average"
BACKBONE = "ViT-B/16"

CAPTION = (
    f"Published: accuracy in % of CLIP {BACKBONE} with one domain left out, mean over the targets. "
    "The error is that of our mean over trials; the published figures come without errors, from "
    "several sources and protocols.",
)


class Figure(NamedTuple):
    """One published accuracy, in percent; ``dataset`` may be AVERAGE, over the five."""

    method: str
    dataset: str
    accuracy: float
    source: str


class Comparison(NamedTuple):
    """One of our cells beside a published figure, in percent and points: a row for JSON and CSV."""

    setting: str
    selection: str
    algorithm: str
    dataset: str
    ours: float
    standard_error: float
    n: int
    complete: bool
    published: float
    difference: float
    method: str
    source: str


def figures(wanted: Sequence[str] = ()) -> list[Figure]:
    """Published figures in the order of the file; of the methods in ``wanted``, if any."""
    path = files("domainbed_carft") / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Figure(row["method"], row["dataset"], float(row["accuracy"]), row["source"])
        for row in rows
        if not wanted or row["method"] in wanted
    ]


def counterpart(run: Run) -> str | None:
    """The published method that a run is an instance of; None if it has no published figures."""
    if run.algorithm == "CLIPFineTune":
        start = "random" if run.recorded.get("head_init") == "random" else "zero-shot"
        return f"ERM, {start} head"
    return {
        "CARFT": "CAR-FT", "CLIPZeroShot": "zero-shot CLIP", "CLIPLinearProbe": "linear probe",
    }.get(run.algorithm)  # fmt: skip


def compare(group: Group, built: Iterable[Table]) -> tuple[list[Comparison], list[str]]:
    """Our averages over targets beside the published ones, and remarks on incomparable runs."""
    known = {(figure.method, figure.dataset): figure for figure in figures()}
    wanted = dict.fromkeys(dataset for _, dataset in known if dataset != AVERAGE)
    # The published methods that our runs are instances of: one, or nothing can be compared.
    methods: dict[tuple[str, str], set[str | None]] = {}
    for run in group.runs:
        for dataset in (run.dataset, AVERAGE):
            methods.setdefault((run.algorithm, dataset), set()).add(counterpart(run))
    found = []
    for table in (table for table in built if table.averages):
        for row in table.rows:
            cells = dict(zip(table.columns, row.cells, strict=True))
            cells[AVERAGE] = _over_all([cells.get(name, Cell()) for name in wanted])
            for dataset, cell in cells.items():
                of = methods.get((row.algorithm, dataset), set())
                figure = known.get((str(*of), dataset)) if len(of) == 1 else None
                if figure and cell.mean is not None and cell.error is not None:
                    found.append(
                        Comparison(
                            table.setting, table.method, row.algorithm, dataset, float(cell.mean),
                            float(cell.error), cell.n, not (cell.missing or cell.partial),
                            figure.accuracy, float(cell.mean) - figure.accuracy, figure.method,
                            figure.source,
                        )
                    )  # fmt: skip
    backbones: dict[str, dict[str, None]] = {}
    for run in group.runs:
        backbone = run.recorded.get("clip_backbone")
        if counterpart(run) and backbone not in (BACKBONE, None):
            backbones.setdefault(str(backbone), {})[run.algorithm] = None
    return found, [
        f"Not comparable: {', '.join(names)} used {backbone}, the published figures {BACKBONE}."
        for backbone, names in backbones.items()
    ]


def _over_all(cells: Sequence[Cell]) -> Cell:
    """The average over the published data sets; empty unless all have the same trials."""
    if any(cell.accuracies.keys() != cells[0].accuracies.keys() for cell in cells):
        return Cell()
    means = {
        trial: float(np.mean([cell.accuracies[trial] for cell in cells]))
        for trial in sorted(cells[0].accuracies)
    }
    cell = tables.cell_of(means, [text for cell in cells for text in cell.missing])
    return cell._replace(partial=any(cell.partial for cell in cells))


def grid(found: Sequence[Comparison], remarks: Sequence[str]) -> Grid:
    """A row a comparison."""
    rows = [
        [
            one.algorithm, one.selection, one.dataset,
            f"{one.ours:.1f} {PLUS_MINUS} {one.standard_error:.1f} ({one.n})"
            + ("" if one.complete else ", incomplete"),
            f"{one.published:.1f}", f"{one.difference:+.1f}", one.method,
        ]
        for one in found
    ]  # fmt: skip
    header = ["Algorithm", "Selection", "Data set", "Ours", "Published", "Difference"]
    setting = found[0].setting if found else ""
    title = "; ".join(filter(None, ["Beside published figures", setting]))
    return Grid(title, [*header, "Published as"], rows, [*remarks, *_sources(found)])


def overview(wanted: Sequence[str] = ()) -> Grid:
    """Published figures: a row a method, a column a data set; of methods in ``wanted``, if any."""
    shown = figures(wanted)
    columns = list(dict.fromkeys(figure.dataset for figure in shown))
    methods: dict[str, dict[str, str]] = {}
    for figure in shown:
        methods.setdefault(figure.method, {})[figure.dataset] = f"{figure.accuracy:.1f}"
    rows = [[name, *(own.get(column, "") for column in columns)] for name, own in methods.items()]
    return Grid(f"Published, CLIP {BACKBONE}", ["Method", *columns], rows, _sources(shown))


def _sources(found: Iterable[Figure | Comparison]) -> list[str]:
    return list(dict.fromkeys(f"{one.method}: {one.source}." for one in found))
