"""Our figures beside the published ones of ``assets/published.csv``, each with its source."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection, tables
from domainbed_carft.results.document import PLUS_MINUS, Grid
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Cell, Table

AVERAGE = "average"
BACKBONE = "ViT-B/16"

CAPTION = (
    f"Published: accuracy in % of CLIP {BACKBONE} with one domain left out, mean over the targets, "
    "from several sources and protocols. The error is that of the mean "
    "over n trials, both where they were published. Selected on: what checkpoint and "
    "hyperparameters were chosen on; what was selected on the target is not comparable.",
)

# What may be added to an algorithm, and the value that adds nothing.
_ADDED: dict[str, Any] = {
    "average": "none", "wise_alpha": 1, "margin": 0, "lp_steps": 0,
    "sp_weight": 0, "fd_weight": 0, "ldifs_weight": 0, "lipsum_weight": 0, "miro_weight": 0,
}  # fmt: skip
_OWN = {"CLIPood": ("average", "margin"), "CLIPMIRO": ("miro_weight",)}


class Figure(NamedTuple):
    """One published accuracy, in percent; ``dataset`` may be AVERAGE, over the five.

    ``selection``: what it was selected on, as the file says it; error and n are None if unknown.
    """

    method: str
    dataset: str
    accuracy: float
    standard_error: float | None
    n: int | None
    selection: str
    source: str
    note: str


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
    published_standard_error: float | None
    published_n: int | None
    published_selection: str
    note: str


def figures(wanted: Sequence[str] = ()) -> list[Figure]:
    """Published figures in the order of the file; of the methods in ``wanted``, if any."""
    path = files("domainbed_carft") / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_figure(row) for row in rows if not wanted or row["method"] in wanted]


def _figure(row: Mapping[str, str]) -> Figure:
    error, n = row["standard_error"], row["n"]
    return Figure(
        row["method"], row["dataset"], float(row["accuracy"]), float(error) if error else None,
        int(n) if n else None, row["selection"], row["source"], row["note"],
    )  # fmt: skip


def counterpart(run: Run) -> str | None:
    """The published method that a run is an instance of; None if it has no published figures."""
    if run.algorithm == "CLIPFineTune":
        start = "random" if run.recorded.get("head_init") == "random" else "zero-shot"
        return f"ERM, {start} head"
    return {
        "CARFT": "CAR-FT", "CLIPZeroShot": "zero-shot CLIP", "CLIPLinearProbe": "linear probe",
        "CLIPood": "CLIPood", "CLIPMIRO": "MIRO",
    }.get(run.algorithm)  # fmt: skip


def compare(group: Group, built: Iterable[Table]) -> tuple[list[Comparison], list[str]]:
    """Our averages over targets beside the published ones, and remarks on incomparable runs."""
    known = {(figure.method, figure.dataset): figure for figure in figures()}
    wanted = dict.fromkeys(dataset for _, dataset in known if dataset in benchmarks.BENCHMARKS)
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
                            figure.source, figure.standard_error, figure.n, figure.selection,
                            figure.note,
                        )
                    )  # fmt: skip
    backbones: dict[str, dict[str, None]] = {}
    for run in group.runs:
        backbone = run.recorded.get("clip_backbone")
        if counterpart(run) and backbone not in (BACKBONE, None):
            backbones.setdefault(str(backbone), {})[run.algorithm] = None
    remarks = [
        f"Not comparable: {', '.join(names)} used {backbone}, the published figures {BACKBONE}."
        for backbone, names in backbones.items()
    ]
    return found, [*remarks, *dict.fromkeys(filter(None, map(_deviation, group.runs)))]


def _deviation(run: Run) -> str | None:
    """What a run has that the published method of its name has not."""
    method = counterpart(run)
    own = _OWN.get(run.algorithm, ())
    added = [
        f"{name} {run.recorded[name]}"
        for name, off in _ADDED.items()
        if name not in own and run.recorded.get(name, off) != off
    ]
    if run.algorithm == "CLIPMIRO":
        added.append("a head that starts zero-shot instead of random")
    if not (method and added):
        return None
    return f"Not the same method: {run.algorithm} has {', '.join(added)}, unlike {method}."


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
    """A row a comparison; our selection is a column where there are several, else in the title."""
    selections = dict.fromkeys(one.selection for one in found)
    many = len(selections) > 1
    rows = [
        [
            one.algorithm, *([one.selection] if many else []), one.dataset,
            f"{one.ours:.1f} {PLUS_MINUS} {one.standard_error:.1f} ({one.n})"
            + ("" if one.complete else ", incomplete"),
            _with_error(one.published, one.published_standard_error)
            + (f" ({one.published_n})" if one.published_n else ""),
            f"{one.difference:+.1f}", one.method, one.published_selection,
        ]
        for one in found
    ]  # fmt: skip
    header = ["Algorithm", *(["Selection"] if many else []), "Data set", "Ours", "Published"]
    header += ["Difference", "Published as", "Selected on"]
    about = [] if many else [selection.METHODS[name].title for name in selections]
    setting = found[0].setting if found else ""
    title = "; ".join(filter(None, ["Beside published figures", *about, setting]))
    return Grid(title, header, rows, [*remarks, *sources(found)])


def overviews(wanted: Sequence[str] = ()) -> list[Grid]:
    """Published figures: a row a method, a column a data set; of methods in ``wanted``, if any."""
    shown = figures(wanted)
    if not shown:
        return []
    columns = list(dict.fromkeys(figure.dataset for figure in shown))
    methods: dict[str, list[Figure]] = {}
    for figure in shown:
        methods.setdefault(figure.method, []).append(figure)
    rows = []
    for name, own in methods.items():
        cells = {one.dataset: _with_error(one.accuracy, one.standard_error) for one in own}
        about = [own[0].selection, str(own[0].n or "")]
        rows.append([name, *about, *(cells.get(column, "") for column in columns)])
    title = f"Published, CLIP {BACKBONE}"
    return [Grid(title, ["Method", "Selected on", "n", *columns], rows, sources(shown))]


def _with_error(accuracy: float, error: float | None) -> str:
    return f"{accuracy:.1f}" + ("" if error is None else f" {PLUS_MINUS} {error:.1f}")


def sources(found: Iterable[Any]) -> list[str]:
    """A line a source with the methods that are from there, then such lines of the notes."""
    sources: dict[str, dict[str, None]] = {}
    notes: dict[str, dict[str, None]] = {}
    for one in found:
        sources.setdefault(one.source, {})[one.method] = None
        if one.note:
            notes.setdefault(one.note, {})[one.method] = None
    every = [*sources.items(), *notes.items()]
    return [f"{'; '.join(methods)}: {text}." for text, methods in every]
