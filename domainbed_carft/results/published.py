"""Published figures, each with its source, and ours beside those of ``assets/published.csv``.

A verdict says whether our runs reproduce a published figure, and if there is none, why not.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.collection import Group
from domainbed_carft.results.columns import Cell, ErrorKind, cell_of, format_accuracy
from domainbed_carft.results.comparisons import LEVEL, student_interval
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.tables import Table

AVERAGE = "average"
BACKBONE = "ViT-B/16"

CAPTION = (
    f"Published: accuracy in % of CLIP {BACKBONE} with one domain left out, mean over the targets, "
    "from several sources and protocols. The error is that of the mean "
    "over n trials, both where they were published. Selected on: what checkpoint and "
    "hyperparameters were chosen on; what was selected on the target is not comparable.",
    f"Verdict: reproduced, if the published mean, to its last digit, lies in the {LEVEL}% interval "
    "of our mean, by Student's t distribution over our trials; above and below say where our mean "
    "lies otherwise. The spread of the published figure does not count.",
)

REPRODUCED = "reproduced"
ABOVE = "above"
BELOW = "below"
NOT_COMPARABLE = "not comparable"
ORACLE = "oracle"
# What a published checkpoint was chosen on, if it is also a selection method of ours.
_SELECTED_ON_METHODS = ("training-domain",)

_TEXT_COLUMNS = ("method", "dataset", "backbone", "selection", "source", "note")
# Hparams by which a run may differ from the published methods, and their value where it does not.
_PUBLISHED_HPARAMS: dict[str, Any] = {
    "clip_backbone": BACKBONE,
    "average": "none",
    "wise_alpha": 1,
    "margin": 0,
    "lp_steps": 0,
    "sp_weight": 0,
    "fd_weight": 0,
    "ldifs_weight": 0,
    "lipsum_weight": 0,
    "miro_weight": 0,
}
# Hparams that belong to the published method itself.
_HPARAMS_OF_METHOD = {"CLIPood": ("average", "margin"), "CLIPMIRO": ("miro_weight",)}

# Our algorithms, but for CLIPFineTune, and the published methods that they are.
_COUNTERPARTS = {
    "CARFT": "CAR-FT",
    "CLIPZeroShot": "zero-shot CLIP",
    "CLIPLinearProbe": "linear probe",
    "CLIPood": "CLIPood",
    "CLIPMIRO": "MIRO",
}

_NOT_COMPARABLE_REMARK = "Not comparable: {}."


@dataclass(frozen=True)
class GroupComparison:
    """A group's accuracies beside published ones.

    ``entries``: a dict for each comparison, for JSON and CSV, in percent and points; ``remarks``:
    how the group's runs differ from the published methods.
    """

    entries: list[dict[str, Any]]
    remarks: list[str]


@dataclass(frozen=True)
class Verdict:
    """How our mean stands to a published one.

    ``name``: REPRODUCED, ABOVE, BELOW or NOT_COMPARABLE; ``reason``: why it is not comparable, else
    "". ``low`` and ``high``: the interval of our mean in percent, None for fewer than two trials.
    """

    name: str
    reason: str
    low: float | None
    high: float | None


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file in ``assets``: figures in percent, None where unknown, and texts."""
    with (ASSETS / name).open(encoding="utf-8") as file:
        return [
            {key: text if key in _TEXT_COLUMNS else _percent(text) for key, text in row.items()}
            for row in csv.DictReader(file)
        ]


def _percent(text: str) -> float | None:
    return float(text) if text else None


def figures(methods: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Published accuracies in the order of the file; only those of ``methods``, if any are named.

    An entry has the columns of published.csv as keys, with accuracies in percent.
    """
    rows = [row for row in read("published.csv") if not methods or row["method"] in methods]
    return [row | {"n": row["n"] and int(row["n"])} for row in rows]


def counterpart(run: RecordedRun) -> str | None:
    """The published method that a run is of, whatever its row is called; None if it has none."""
    if run.algorithm == "CLIPFineTune":
        start = "random" if run.recorded.get("head_init") == "random" else "zero-shot"
        return f"ERM, {start} head"
    return _COUNTERPARTS.get(run.algorithm)


def compare(group: Group, group_tables: Iterable[Table]) -> GroupComparison:
    """Our averages over targets beside the published ones; ``group_tables``: all of the group."""
    published = {(figure["method"], figure["dataset"]): figure for figure in figures()}
    datasets = dict.fromkeys(dataset for _, dataset in published if dataset != AVERAGE)
    runs_of_cell: dict[tuple[str, str], list[RecordedRun]] = {}
    for run in group.runs:
        for dataset in (run.dataset, AVERAGE):
            runs_of_cell.setdefault((run.row, dataset), []).append(run)

    entries = []
    for table in group_tables:
        for row in table.rows if table.averages else ():
            cells = dict(zip(table.columns, row.cells, strict=True))
            cells_of_datasets = [cells.get(name, Cell()) for name in datasets]
            cells[AVERAGE] = _over_all(cells_of_datasets, table.error)

            for dataset, cell in cells.items():
                runs = runs_of_cell.get((row.algorithm, dataset), [])
                method = _common_counterpart(runs)
                figure = published.get((method, dataset))
                if figure and cell.mean is not None:
                    deviations = dict.fromkeys(name for run in runs for name in _deviations(run))
                    deviation = _clause(row.algorithm, list(deviations), method)
                    verdict = judge(cell, table.method, figure, deviation)
                    labels = {
                        "setting": table.setting,
                        "selection": table.method,
                        "algorithm": row.algorithm,
                        "dataset": dataset,
                    }
                    entries.append(labels | _entry(cell, figure, verdict))

    remarks = dict.fromkeys(_deviation_remark(run) for run in group.runs)
    return GroupComparison(entries, [remark for remark in remarks if remark])


def _entry(cell: Cell, figure: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Our mean, the published figure and the verdict, in percent and points."""
    return {
        "ours": cell.mean,
        "standard_error": cell.standard_error,
        "n": cell.n,
        "complete": not (cell.missing or cell.partial),
        "published": figure["accuracy"],
        "difference": (cell.mean or 0.0) - figure["accuracy"],
        "method": figure["method"],
        "source": figure["source"],
        "published_standard_error": figure["standard_error"],
        "published_n": figure["n"],
        "published_selection": figure["selection"],
        "note": figure["note"],
        "verdict": verdict.name,
        "reason": verdict.reason,
        "low": verdict.low,
        "high": verdict.high,
    }


def judge(cell: Cell, method: str, figure: Mapping[str, Any], deviation: str) -> Verdict:
    """The verdict on a cell that has a mean, beside a published figure.

    ``method``: our selection method; ``figure``: a row of published.csv; ``deviation``: a clause on
    what our runs have that the published method has not, "" if nothing.
    """
    low, high = student_interval([100 * accuracy for accuracy in cell.accuracies.values()])
    reason = deviation or _reason_against(cell, method, figure)
    if reason or low is None or high is None or cell.mean is None:
        return Verdict(NOT_COMPARABLE, reason or "one trial has no interval", low, high)

    rounding = _half_of_last_digit(figure["accuracy"])
    if low - rounding <= figure["accuracy"] <= high + rounding:
        name = REPRODUCED
    else:
        name = ABOVE if cell.mean > figure["accuracy"] else BELOW
    return Verdict(name, reason="", low=low, high=high)


def _reason_against(cell: Cell, method: str, figure: Mapping[str, Any]) -> str:
    """Why the two figures must not be compared; "" if nothing is known against it."""
    selected_on = figure["selection"]
    if cell.missing or cell.partial:
        return "ours is incomplete"
    if method == ORACLE:
        return "ours was selected on the target"
    if "target" in selected_on:
        return f"the published one was selected on: {selected_on}"
    if selected_on in _SELECTED_ON_METHODS and selected_on != method:
        return f"ours was selected by {method}, the published one by {selected_on}"
    return ""


def _half_of_last_digit(value: float) -> float:
    """Half a unit of the last digit that a published percentage has: 0.05 for 96.8."""
    _, _, decimals = str(value).partition(".")
    return float(0.5 * 10.0 ** -len(decimals))


def _common_counterpart(runs: Iterable[RecordedRun]) -> str:
    """The published method that all runs are of; "" if they are of several, or of none."""
    methods = {counterpart(run) for run in runs}
    return (methods.pop() or "") if len(methods) == 1 else ""


def _deviations(run: RecordedRun) -> list[str]:
    """What a run has that the published method of its name has not."""
    method_hparams = _HPARAMS_OF_METHOD.get(run.algorithm, ())
    deviations = []
    for name, published_value in _PUBLISHED_HPARAMS.items():
        value = run.recorded.get(name, published_value)
        if name not in method_hparams and value not in (published_value, None):
            deviations.append(f"{name} {value}")
    if run.algorithm == "CLIPMIRO":
        deviations.append("a head that starts zero-shot instead of random")
    return deviations


def _deviation_remark(run: RecordedRun) -> str:
    """The sentence on what a run has that the published method has not, "" if nothing."""
    deviations = _deviations(run)
    method = counterpart(run)
    if not (method and deviations):
        return ""
    return _NOT_COMPARABLE_REMARK.format(_clause(run.row, deviations, method))


def _clause(algorithm: str, deviations: Sequence[str], method: str) -> str:
    """In what an algorithm's runs deviate from the published method, "" if in nothing."""
    if not deviations:
        return ""
    return f"{algorithm} has {', '.join(deviations)}, unlike the published {method}"


def _over_all(cells: Sequence[Cell], error: ErrorKind) -> Cell:
    """The average over the published data sets; empty unless all have the same trials."""
    trials = sorted(cells[0].accuracies)
    if any(cell.accuracies.keys() != cells[0].accuracies.keys() for cell in cells):
        return Cell()

    means = {trial: float(np.mean([cell.accuracies[trial] for cell in cells])) for trial in trials}
    missing = [text for cell in cells for text in cell.missing]
    average = cell_of(means, missing, error)
    return average._replace(partial=any(cell.partial for cell in cells))


def grid(comparisons: Sequence[Mapping[str, Any]], remarks: Sequence[str]) -> Grid:
    """The table of a `GroupComparison`: a row for each entry; the remarks are notes."""
    header = ["Algorithm", "Selection", "Data set", "Ours", "Published", "Difference"]
    header += ["Verdict", "Published as", "Selected on"]

    reasons = dict.fromkeys(entry["reason"] for entry in comparisons if entry["reason"])
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    rows = [_comparison_row(entry, numbers.get(entry["reason"])) for entry in comparisons]

    numbered_remarks = [_NOT_COMPARABLE_REMARK.format(reason) for reason in numbers]
    notes = [f"[{number}] {remark}" for number, remark in enumerate(numbered_remarks, 1)]
    notes += [remark for remark in remarks if remark not in numbered_remarks]

    settings = {comparison["setting"] for comparison in comparisons} - {""}
    title = "; ".join(["Beside published figures", *settings])
    return Grid(title, header, rows, [*notes, *sources(comparisons)])


def _comparison_row(comparison: Mapping[str, Any], note_number: int | None) -> list[str]:
    """The cells of a row; ``note_number``: of the note that says why it is not comparable."""
    our_accuracy = format_accuracy(
        comparison["ours"], comparison["standard_error"], comparison["n"]
    )
    if not comparison["complete"]:
        our_accuracy += ", incomplete"

    published = format_accuracy(
        comparison["published"],
        comparison["published_standard_error"],
        comparison["published_n"],
    )
    verdict = comparison["verdict"]
    return [
        comparison["algorithm"],
        comparison["selection"],
        comparison["dataset"],
        our_accuracy,
        published,
        f"{comparison['difference']:+.1f}",
        f"{verdict} [{note_number}]" if note_number else verdict,
        comparison["method"],
        comparison["published_selection"],
    ]


def overview(methods: Sequence[str] = ()) -> Grid:
    """Published figures: a row a method, a column a data set; only of ``methods``, if any."""
    entries = figures(methods)
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        by_method.setdefault(entry["method"], {})[entry["dataset"]] = entry
    columns = list(dict.fromkeys(entry["dataset"] for entry in entries))

    rows = []
    for method, by_dataset in by_method.items():
        first = next(iter(by_dataset.values()))
        cells = [by_dataset.get(column, {}) for column in columns]
        texts = [
            format_accuracy(cell.get("accuracy"), cell.get("standard_error")) for cell in cells
        ]
        rows.append([method, first["selection"], str(first["n"] or ""), *texts])

    header = ["Method", "Selected on", "n", *columns]
    return Grid(f"Published, CLIP {BACKBONE}", header, rows, sources(entries))


def sources(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Notes for a table: each source with the methods that are from there, then such remarks.

    ``entries`` have the keys "method", "source" and "note".
    """
    methods: dict[str, dict[str, None]] = {}
    for key, entry in itertools.product(("source", "note"), entries):
        methods.setdefault(entry[key], {})[entry["method"]] = None
    return [f"{'; '.join(names)}: {text}." for text, names in methods.items() if text]
