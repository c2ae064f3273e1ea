"""Published figures, each with its source, and ours beside those of ``assets/published.csv``.

A verdict says whether ours lie within MARGIN points of a published figure, and if there is none,
why not.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.collection import Group
from domainbed_carft.results.columns import Cell, ErrorKind, format_accuracy, mean_cell
from domainbed_carft.results.comparisons import LEVEL, student_interval, welch_interval
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.tables import Table

AVERAGE = "average"
BACKBONE = "ViT-B/16"

MARGIN = 1.0  # points

CAPTION = (
    f"Published: accuracy in % of CLIP {BACKBONE} with one domain left out, mean over the targets, "
    "from several sources and protocols. The error over n trials is of the kind that "
    "assets/published.csv names. Selected on: what checkpoint and hyperparameters were chosen on; "
    "what was selected on the target is not comparable.",
    f"Interval: {LEVEL}% of the difference, by Welch's t over our trials and the published ones; "
    "at least: by Student's t over ours alone, because the published error is not known. Verdict: "
    f"within, if the interval lies inside +-{MARGIN:g}; differs, if it lies wholly outside; else "
    "cannot tell. None where the published error is not known, or where selection, steps, protocol "
    "or edition differ or are not known.",
)

WITHIN = "within"
DIFFERS = "differs"
CANNOT_TELL = "cannot tell"
NO_VERDICT = "none"

# What has to be the same in our runs; a published figure lacks what is not known.
_SETTING = ("selection", "steps", "protocol", "edition")
_UNKNOWN = ("", "unknown")
_ZERO_SHOT_STEPS = "0"  # of a figure for which neither steps nor selection matter
# Kind of error -> the squared standard error of the mean, with divisor n - 1, of n trials.
_SQUARED_ERRORS: dict[str, Callable[[float, int], float]] = {
    "standard error, n": lambda error, n: error**2 * n / (n - 1),
    "standard error, n - 1": lambda error, n: error**2,
    "deviation": lambda error, n: error**2 / n,
}
_TEXT_COLUMNS = (
    "method",
    "dataset",
    "backbone",
    "error_kind",
    *_SETTING,
    "read_in",
    "source",
    "note",
)
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


@dataclass(frozen=True)
class Verdict:
    """How our mean stands to a published one.

    ``name``: WITHIN, DIFFERS, CANNOT_TELL or NO_VERDICT; ``reason``: of NO_VERDICT, else "".
    ``low`` and ``high``: the interval of the difference in points, None for fewer than two trials;
    ``at_least``: the interval has only our error.
    """

    name: str
    reason: str
    low: float | None
    high: float | None
    at_least: bool


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


def compare(group: Group, group_tables: Iterable[Table]) -> list[dict[str, Any]]:
    """Our averages over targets beside the published ones: entries for JSON and CSV.

    ``group_tables``: all of the group. Accuracies are in percent, differences in points.
    """
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
                figure = published.get((_common_counterpart(runs), dataset))
                if figure and cell.mean is not None:
                    reason = _reason_against(cell, table.method, runs, figure)
                    labels = {
                        "setting": table.setting,
                        "selection": table.method,
                        "algorithm": row.algorithm,
                        "dataset": dataset,
                    }
                    entries.append(labels | _entry(cell, figure, judge(cell, figure, reason)))
    return entries


def _entry(cell: Cell, figure: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Our mean, the published figure and the verdict, in percent and points."""
    return {
        "ours": cell.mean,
        "standard_error": cell.standard_error,
        "n": cell.n,
        "complete": not (cell.missing or cell.partial),
        "published": figure["accuracy"],
        "difference": (cell.mean or 0.0) - figure["accuracy"],
        "low": verdict.low,
        "high": verdict.high,
        "at_least": verdict.at_least,
        "verdict": verdict.name,
        "reason": verdict.reason,
        "method": figure["method"],
        "source": figure["source"],
        "read_in": figure["read_in"],
        "published_standard_error": figure["standard_error"],
        "published_error_kind": figure["error_kind"],
        "published_n": figure["n"],
        "published_selection": figure["selection"],
        "note": figure["note"],
    }


def judge(cell: Cell, figure: Mapping[str, Any], reason: str = "") -> Verdict:
    """The verdict on a cell that has a mean, beside a published figure.

    ``figure``: a row of published.csv; ``reason``: why there can be no verdict, "" if there can.
    """
    percent = [100 * accuracy for accuracy in cell.accuracies.values()]
    squared_error = _squared_error(figure)
    if squared_error is None:
        low, high = student_interval([value - figure["accuracy"] for value in percent])
    else:
        low, high = welch_interval(percent, figure["accuracy"], squared_error, figure["n"])

    at_least = squared_error is None
    if reason or at_least or low is None or high is None:
        return Verdict(NO_VERDICT, reason, low, high, at_least)
    if low >= -MARGIN and high <= MARGIN:
        return Verdict(WITHIN, "", low, high, at_least)
    is_outside = low > MARGIN or high < -MARGIN
    return Verdict(DIFFERS if is_outside else CANNOT_TELL, "", low, high, at_least)


def _squared_error(figure: Mapping[str, Any]) -> float | None:
    """The squared standard error of a published mean, divisor n - 1; None if it is not known."""
    kind = figure["error_kind"]
    if kind not in _SQUARED_ERRORS or not figure["n"]:
        return None
    return _SQUARED_ERRORS[kind](figure["standard_error"], figure["n"])


def _reason_against(
    cell: Cell, method: str, runs: Sequence[RecordedRun], figure: Mapping[str, Any]
) -> str:
    """Why there is no verdict on our ``runs``, all reasons in a sentence; "" if there is one."""
    deviations = dict.fromkeys(name for run in runs for name in _deviations(run))
    reasons = []
    if deviations:
        names = f"{runs[0].row} has {', '.join(deviations)}"
        reasons.append(f"{names}, unlike the published {figure['method']}")
    if cell.missing or cell.partial:
        reasons.append("ours is incomplete")
    if cell.n < 2:
        reasons.append("one trial has no interval")

    ours = {
        "selection": {method},
        "steps": {str(int(run.steps[-1]) + 1) for run in runs},
        "protocol": {run.recorded.get("protocol", "not recorded") for run in runs},
        "edition": {run.recorded.get("data_edition", "not recorded") for run in runs},
    }
    if figure["steps"] == _ZERO_SHOT_STEPS:
        del ours["selection"], ours["steps"]

    unknown = []
    for name, values in ours.items():
        texts = {text.removeprefix("verified: ") for text in values}
        if figure[name] in _UNKNOWN:
            unknown.append(name)
        elif texts != {figure[name]}:
            reasons.append(f"{name}: {', '.join(sorted(texts))}, published: {figure[name]}")
    if _squared_error(figure) is None:
        unknown.append("error")
    if unknown:
        reasons.append(f"not known of the published one: {', '.join(unknown)}")
    return "; ".join(reasons)


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


def _over_all(cells: Sequence[Cell], error: ErrorKind) -> Cell:
    """The average over the published datasets; empty unless all have the same trials."""
    trials = sorted(cells[0].accuracies)
    if any(cell.accuracies.keys() != cells[0].accuracies.keys() for cell in cells):
        return Cell()

    means = {trial: float(np.mean([cell.accuracies[trial] for cell in cells])) for trial in trials}
    missing = [text for cell in cells for text in cell.missing]
    average = mean_cell(means, missing, error)
    return average._replace(partial=any(cell.partial for cell in cells))


def grid(comparisons: Sequence[Mapping[str, Any]]) -> Grid:
    """The table of the entries of `compare`, a row each."""
    header = ["Algorithm", "Selection", "Dataset", "Ours", "Published", "Difference"]
    header += [f"{LEVEL}% interval", "Verdict", "Published as", "Selected on"]

    reasons = dict.fromkeys(entry["reason"] for entry in comparisons if entry["reason"])
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    rows = [_comparison_row(entry, numbers.get(entry["reason"])) for entry in comparisons]
    notes = [f"[{number}] No verdict: {reason}." for reason, number in numbers.items()]

    settings = {comparison["setting"] for comparison in comparisons} - {""}
    title = "; ".join(["Beside published figures", *settings])
    return Grid(title, header, rows, [*notes, *sources(comparisons)])


def _comparison_row(comparison: Mapping[str, Any], note_number: int | None) -> list[str]:
    """The cells of a row; ``note_number``: of the note that says why there is no verdict."""
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
    interval = ""
    if comparison["low"] is not None:
        interval = f"{comparison['low']:+.1f} to {comparison['high']:+.1f}"
        interval = f"at least {interval}" if comparison["at_least"] else interval
    verdict = comparison["verdict"]
    return [
        comparison["algorithm"],
        comparison["selection"],
        comparison["dataset"],
        our_accuracy,
        published,
        f"{comparison['difference']:+.1f}",
        interval,
        f"{verdict} [{note_number}]" if note_number else verdict,
        comparison["method"],
        comparison["published_selection"],
    ]


def overview(methods: Sequence[str] = ()) -> Grid:
    """Published figures: a row a method, a column a dataset; only of ``methods``, if any."""
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
        labels = [method, first["selection"], str(first["n"] or ""), first["error_kind"]]
        rows.append([*labels, first["read_in"], *texts])

    header = ["Method", "Selected on", "n", "Error", "Read in", *columns]
    return Grid(f"Published, CLIP {BACKBONE}", header, rows, sources(entries))


def sources(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Notes for a table: each source with the methods that are from there, then such remarks.

    ``entries`` have the keys "method", "source" and "note".
    """
    methods: dict[str, dict[str, None]] = {}
    for key, entry in itertools.product(("source", "note"), entries):
        methods.setdefault(entry[key], {})[entry["method"]] = None
    return [f"{'; '.join(names)}: {text}." for text, names in methods.items() if text]
