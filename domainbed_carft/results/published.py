"""Published figures, each with its source, and ours beside those of ``assets/published.csv``."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import tables
from domainbed_carft.results.document import Grid, number
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

_TEXTS = ("method", "dataset", "backbone", "selection", "source", "note")
# Hparams by which a run may differ from the published methods, and their value where it does not.
_SAME: dict[str, Any] = {
    "clip_backbone": BACKBONE, "average": "none", "wise_alpha": 1, "margin": 0, "lp_steps": 0,
    "sp_weight": 0, "fd_weight": 0, "ldifs_weight": 0, "lipsum_weight": 0, "miro_weight": 0,
}  # fmt: skip
_OWN = {"CLIPood": ("average", "margin"), "CLIPMIRO": ("miro_weight",)}


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file in ``assets``: figures in percent, None where unknown, and texts."""
    with (ASSETS / name).open(encoding="utf-8") as file:
        return [
            {key: text if key in _TEXTS else _percent(text) for key, text in row.items()}
            for row in csv.DictReader(file)
        ]


def _percent(text: str) -> float | None:
    return float(text) if text else None


def figures(wanted: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Published accuracies, of the methods in ``wanted``, if any, in the order of the file."""
    rows = [row for row in read("published.csv") if not wanted or row["method"] in wanted]
    return [row | {"n": row["n"] and int(row["n"])} for row in rows]


def counterpart(run: Run) -> str | None:
    """The published method that a run is an instance of; None if it has no published figures."""
    if run.algorithm == "CLIPFineTune":
        start = "random" if run.recorded.get("head_init") == "random" else "zero-shot"
        return f"ERM, {start} head"
    return {
        "CARFT": "CAR-FT", "CLIPZeroShot": "zero-shot CLIP", "CLIPLinearProbe": "linear probe",
        "CLIPood": "CLIPood", "CLIPMIRO": "MIRO",
    }.get(run.algorithm)  # fmt: skip


def compare(group: Group, built: Iterable[Table]) -> tuple[list[dict[str, Any]], list[str]]:
    """Our averages over targets beside the published ones, in percent and points; and remarks."""
    known = {(figure["method"], figure["dataset"]): figure for figure in figures()}
    wanted = dict.fromkeys(dataset for _, dataset in known if dataset != AVERAGE)
    # The published methods that our runs are instances of: one, or nothing can be compared.
    methods: dict[tuple[str, str], set[str | None]] = {}
    for run in group.runs:
        for dataset in (run.dataset, AVERAGE):
            methods.setdefault((run.algorithm, dataset), set()).add(counterpart(run))
    found = []
    for table, row in [(one, row) for one in built if one.averages for row in one.rows]:
        cells = dict(zip(table.columns, row.cells, strict=True))
        cells[AVERAGE] = _over_all([cells.get(name, Cell()) for name in wanted])
        for dataset, cell in cells.items():
            of = methods.get((row.algorithm, dataset), set())
            figure = known.get((str(*of), dataset)) if len(of) == 1 else None
            if figure and cell.mean is not None:
                found.append(
                    {
                        "setting": table.setting,
                        "selection": table.method,
                        "algorithm": row.algorithm,
                        "dataset": dataset,
                        "ours": cell.mean,
                        "standard_error": cell.error,
                        "n": cell.n,
                        "complete": not (cell.missing or cell.partial),
                        "published": figure["accuracy"],
                        "difference": cell.mean - figure["accuracy"],
                        "method": figure["method"],
                        "source": figure["source"],
                        "published_standard_error": figure["standard_error"],
                        "published_n": figure["n"],
                        "published_selection": figure["selection"],
                        "note": figure["note"],
                    }
                )
    return found, list(dict.fromkeys(filter(None, map(_deviation, group.runs))))


def _deviation(run: Run) -> str:
    """What a run has that the published method of its name has not, "" if nothing."""
    own, method = _OWN.get(run.algorithm, ()), counterpart(run)
    added = [
        f"{name} {run.recorded[name]}"
        for name, same in _SAME.items()
        if name not in own and run.recorded.get(name, same) not in (same, None)
    ]
    if run.algorithm == "CLIPMIRO":
        added.append("a head that starts zero-shot instead of random")
    if not (method and added):
        return ""
    return f"Not comparable: {run.algorithm} has {', '.join(added)}, unlike the published {method}."


def _over_all(cells: Sequence[Cell]) -> Cell:
    """The average over the published data sets; empty unless all have the same trials."""
    trials = sorted(cells[0].accuracies)
    if any(cell.accuracies.keys() != cells[0].accuracies.keys() for cell in cells):
        return Cell()
    means = {t: float(np.mean([cell.accuracies[t] for cell in cells])) for t in trials}
    cell = tables.cell_of(means, [text for cell in cells for text in cell.missing])
    return cell._replace(partial=any(cell.partial for cell in cells))


def grid(found: Sequence[Mapping[str, Any]], remarks: Sequence[str]) -> Grid:
    """A row a comparison."""
    rows = [
        [
            one["algorithm"], one["selection"], one["dataset"],
            number(one["ours"], one["standard_error"], one["n"])
            + ("" if one["complete"] else ", incomplete"),
            number(one["published"], one["published_standard_error"], one["published_n"]),
            f"{one['difference']:+.1f}", one["method"], one["published_selection"],
        ]
        for one in found
    ]  # fmt: skip
    header = ["Algorithm", "Selection", "Data set", "Ours", "Published", "Difference"]
    title = "; ".join(["Beside published figures", *{one["setting"] for one in found} - {""}])
    return Grid(title, [*header, "Published as", "Selected on"], rows, [*remarks, *sources(found)])


def overview(wanted: Sequence[str] = ()) -> Grid:
    """Published figures: a row a method, a column a data set; of methods in ``wanted``, if any."""
    shown = figures(wanted)
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    for one in shown:
        methods.setdefault(one["method"], {})[one["dataset"]] = one
    columns = list(dict.fromkeys(one["dataset"] for one in shown))
    rows = []
    for name, own in methods.items():
        first = next(iter(own.values()))
        cells = [own.get(column, {}) for column in columns]
        texts = [number(cell.get("accuracy"), cell.get("standard_error")) for cell in cells]
        rows.append([name, first["selection"], str(first["n"] or ""), *texts])
    header = ["Method", "Selected on", "n", *columns]
    return Grid(f"Published, CLIP {BACKBONE}", header, rows, sources(shown))


def sources(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line a source with the methods that are from there, then such lines of the notes."""
    methods: dict[str, dict[str, None]] = {}
    for key, one in itertools.product(("source", "note"), found):
        methods.setdefault(one[key], {})[one["method"]] = None
    return [f"{'; '.join(names)}: {text}." for text, names in methods.items() if text]
