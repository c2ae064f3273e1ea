"""Published accuracies from ``assets/published.csv``, and checks of our averages against them.

A check reports if our average lies within MARGIN points of the published one, or the reason why
this cannot be checked.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.cells import Cell, ErrorKind, format_accuracy, mean_over_trials
from domainbed_carft.results.collection import Group
from domainbed_carft.results.comparisons import LEVEL, student_interval, welch_interval
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.selection import CLIPOOD, candidates_by_target
from domainbed_carft.results.tables import Table

AVERAGE = "average"
BACKBONE = "ViT-B/16"

MARGIN = 1.0  # points

CAPTION = (
    f"Published: accuracy in % of CLIP {BACKBONE} with one domain held out, mean over the targets, "
    "from several sources and protocols. assets/published.csv has the kind of each error over n "
    "trials. Selected on: the split on which checkpoint and hyperparameters were chosen; if this "
    "is the target, the numbers are not comparable.",
    f"Interval: {LEVEL}% of the difference, by Welch's t over our trials and the published ones; "
    "at least: by Student's t over our trials alone, because the published error is unknown. "
    f"Check: within, if the interval lies inside +-{MARGIN:g}; differs, if it lies outside; "
    "otherwise cannot tell. None if the published error is unknown, or if selection, steps, "
    "protocol or edition differ or are unknown.",
)

WITHIN = "within"
DIFFERS = "differs"
CANNOT_TELL = "cannot tell"
NO_CHECK = "none"

# Settings that must be equal in our runs; unknown ones are empty in published.csv.
_SETTING = ("selection", "steps", "protocol", "edition")
_UNKNOWN = ("", "unknown")
_ZERO_SHOT_STEPS = "0"  # of a number for which neither steps nor selection matter
# Kind of error -> the squared standard error of the mean of n trials, with divisor n - 1
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
# Hparams by which a run can differ from the published methods, with the published value
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

# Our algorithms except CLIPFineTune -> the published methods that they implement
_COUNTERPARTS = {
    "CARFT": "CAR-FT",
    "CLIPZeroShot": "zero-shot CLIP",
    "CLIPLinearProbe": "linear probe",
    "CLIPood": "CLIPood",
    "CLIPMIRO": "MIRO",
}


@dataclass(frozen=True)
class PublishedCheck:
    """The comparison of our mean with a published one.

    Attributes:
        name: WITHIN, DIFFERS, CANNOT_TELL or NO_CHECK.
        reason: reason for NO_CHECK; otherwise empty.
        low, high: interval of the difference in points; None for fewer than two trials.
        at_least: True if the interval contains only our error.
    """

    name: str
    reason: str
    low: float | None
    high: float | None
    at_least: bool


def read(name: str) -> list[dict[str, Any]]:
    """Read a file in ``assets``: numbers in percent, None for unknown ones, and texts."""
    with (ASSETS / name).open(encoding="utf-8") as file:
        return [
            {key: text if key in _TEXT_COLUMNS else _percent(text) for key, text in row.items()}
            for row in csv.DictReader(file)
        ]


def _percent(text: str) -> float | None:
    return float(text) if text else None


def read_numbers(methods: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read published accuracies in percent in the order of the file; only of ``methods``, if given.

    The columns of published.csv are the keys of an entry.
    """
    rows = [row for row in read("published.csv") if not methods or row["method"] in methods]
    return [row | {"n": row["n"] and int(row["n"])} for row in rows]


def counterpart(run: RecordedRun) -> str | None:
    """Return the published method that a run implements, or None."""
    if run.algorithm == "CLIPFineTune":
        start = "random" if run.recorded.get("head_init") == "random" else "zero-shot"
        return f"ERM, {start} head"
    return _COUNTERPARTS.get(run.algorithm)


def compare(
    group: Group, group_tables: Sequence[Table], further_tables: Sequence[Table] = ()
) -> list[dict[str, Any]]:
    """Compare our averages over targets with the published ones, as entries for JSON and CSV.

    Accuracies are in percent, differences in points.

    Args:
        group: the runs.
        group_tables: all tables of the group. If they contain the selection by which a number was
            published, only this one is compared with it.
        further_tables: tables of `further_methods`, only for numbers published by these methods.
    """
    tables = [table for table in (*group_tables, *further_tables) if table.averages]
    selections = {table.selection for table in tables}
    requested = {table.selection for table in group_tables}
    published_rows = {
        (published["method"], published["dataset"]): published for published in read_numbers()
    }
    datasets = dict.fromkeys(dataset for _, dataset in published_rows if dataset != AVERAGE)
    runs_by_cell: dict[tuple[str, str], list[RecordedRun]] = {}
    for run in group.runs:
        for dataset in (run.dataset, AVERAGE):
            runs_by_cell.setdefault((run.row, dataset), []).append(run)

    entries = []
    for table in tables:
        for row, row_cells in table.rows.items():
            cells = {column.of: row_cells[column] for column in table.accuracies}
            dataset_cells = [cells.get(name, Cell()) for name in datasets]
            cells[AVERAGE] = _over_all(dataset_cells, table.error)

            for dataset, cell in cells.items():
                runs = runs_by_cell.get((row, dataset), [])
                published = published_rows.get((_common_counterpart(runs), dataset))
                if not published or cell.mean is None:
                    continue
                if published["selection"] in selections:
                    is_compared = table.selection == published["selection"]
                else:
                    is_compared = table.selection in requested
                if is_compared:
                    reason = _reason_against(cell, table.selection, runs, published)
                    labels = {
                        "setting": table.setting,
                        "selection": table.selection,
                        "algorithm": row,
                        "dataset": dataset,
                    }
                    entries.append(
                        labels | _entry(cell, published, check_cell(cell, published, reason))
                    )
    return entries


def further_methods(group: Group, methods: Sequence[str]) -> list[str]:
    """Return CLIPOOD unless it is among ``methods``, is not needed, or cannot select.

    It is needed for rows whose numbers were published by CLIPood's protocol.
    """
    published_methods = {row["method"] for row in read_numbers() if row["selection"] == CLIPOOD}
    is_needed = any(counterpart(run) in published_methods for run in group.runs)
    has_choices = any(len(each.singles) > 1 for each in candidates_by_target(group.runs))
    return [CLIPOOD] if is_needed and not has_choices and CLIPOOD not in methods else []


def _entry(cell: Cell, published: Mapping[str, Any], check: PublishedCheck) -> dict[str, Any]:
    """Combine our mean, the published number and the check, in percent and points."""
    return {
        "ours": cell.mean,
        "standard_error": cell.standard_error,
        "n": cell.n,
        "complete": cell.is_complete,
        "published": published["accuracy"],
        "difference": (cell.mean or 0.0) - published["accuracy"],
        "low": check.low,
        "high": check.high,
        "at_least": check.at_least,
        "check": check.name,
        "reason": check.reason,
        "method": published["method"],
        "source": published["source"],
        "read_in": published["read_in"],
        "published_standard_error": published["standard_error"],
        "published_error_kind": published["error_kind"],
        "published_n": published["n"],
        "published_selection": published["selection"],
        "note": published["note"],
    }


def check_cell(cell: Cell, published: Mapping[str, Any], reason: str = "") -> PublishedCheck:
    """Check a cell that has a mean against ``published``, a row of published.csv.

    ``reason`` is the reason why they cannot be compared; empty if they can.
    """
    percent = [*cell.trials.values()]
    squared_error = _squared_error(published)
    if squared_error is None:
        low, high = student_interval([value - published["accuracy"] for value in percent])
    else:
        low, high = welch_interval(percent, published["accuracy"], squared_error, published["n"])

    at_least = squared_error is None
    if reason or at_least or low is None or high is None:
        return PublishedCheck(NO_CHECK, reason, low, high, at_least)
    if low >= -MARGIN and high <= MARGIN:
        return PublishedCheck(WITHIN, "", low, high, at_least)
    if low > MARGIN or high < -MARGIN:
        return PublishedCheck(DIFFERS, "", low, high, at_least)
    return PublishedCheck(CANNOT_TELL, "", low, high, at_least)


def _squared_error(published: Mapping[str, Any]) -> float | None:
    """Return the squared standard error of a published mean, divisor n - 1, or None if unknown."""
    kind = published["error_kind"]
    if kind not in _SQUARED_ERRORS or not published["n"]:
        return None
    return _SQUARED_ERRORS[kind](published["standard_error"], published["n"])


def _reason_against(
    cell: Cell, method: str, runs: Sequence[RecordedRun], published: Mapping[str, Any]
) -> str:
    """Return all reasons why our ``runs`` cannot be checked; empty if they can."""
    deviations = dict.fromkeys(name for run in runs for name in _deviations(run))
    reasons = []
    if deviations:
        names = f"{runs[0].row} has {', '.join(deviations)}"
        reasons.append(f"{names}, unlike the published {published['method']}")
    if not cell.is_complete:
        reasons.append("our average is incomplete")
    if cell.n < 2:
        reasons.append("a single trial has no interval")

    our_settings = {
        "selection": {method},
        "steps": {str(int(run.steps[-1]) + 1) for run in runs},
        "protocol": {run.recorded.get("protocol", "not recorded") for run in runs},
        "edition": {run.recorded.get("data_edition", "not recorded") for run in runs},
    }
    if published["steps"] == _ZERO_SHOT_STEPS:
        del our_settings["selection"], our_settings["steps"]

    unknown = []
    for name, values in our_settings.items():
        texts = {text.removeprefix("verified: ") for text in values}
        if published[name] in _UNKNOWN:
            unknown.append(name)
        elif texts != {published[name]}:
            reasons.append(f"{name}: {', '.join(sorted(texts))}, published: {published[name]}")
    if _squared_error(published) is None:
        unknown.append("error")
    if unknown:
        reasons.append(f"unknown for the published number: {', '.join(unknown)}")
    return "; ".join(reasons)


def _common_counterpart(runs: Iterable[RecordedRun]) -> str:
    """Return the published method that all runs implement; empty for none or several."""
    methods = {counterpart(run) for run in runs}
    return (methods.pop() or "") if len(methods) == 1 else ""


def _deviations(run: RecordedRun) -> list[str]:
    """List the settings of a run that its published method does not have."""
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
    """Return the average over the published datasets; empty unless all have the same trials."""
    if any(cell.trials.keys() != cells[0].trials.keys() for cell in cells):
        return Cell()

    return mean_over_trials(
        [(trial, cell.trials[trial]) for trial in sorted(cells[0].trials) for cell in cells],
        missing=list(dict.fromkeys(text for cell in cells for text in cell.missing)),
        error=error,
        scale=1,
    )


def grid(comparisons: Sequence[Mapping[str, Any]]) -> Grid:
    """Make the table of entries of `compare`, a row each."""
    header = ["Algorithm", "Selection", "Dataset", "Ours", "Published", "Difference"]
    header += [f"{LEVEL}% interval", "Check", "Published as", "Selected on"]

    reasons = dict.fromkeys(entry["reason"] for entry in comparisons if entry["reason"])
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    rows = [_comparison_row(entry, numbers.get(entry["reason"])) for entry in comparisons]
    notes = [f"[{number}] No check: {reason}." for reason, number in numbers.items()]

    settings = {comparison["setting"] for comparison in comparisons} - {""}
    title = "; ".join(["Compared with published numbers", *settings])
    return Grid(title, header, rows, [*notes, *sources(comparisons)])


def _comparison_row(comparison: Mapping[str, Any], note_number: int | None) -> list[str]:
    """Format a row; ``note_number`` is the note that gives the reason for NO_CHECK."""
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
    check = comparison["check"]
    return [
        comparison["algorithm"],
        comparison["selection"],
        comparison["dataset"],
        our_accuracy,
        published,
        f"{comparison['difference']:+.1f}",
        interval,
        f"{check} [{note_number}]" if note_number else check,
        comparison["method"],
        comparison["published_selection"],
    ]


def overview(methods: Sequence[str] = ()) -> Grid:
    """Make the table of published numbers: a row for each method, a column for each dataset."""
    entries = read_numbers(methods)
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
    """Return notes for a table: each source with its methods, then each remark with its methods.

    ``entries`` have the keys "method", "source" and "note".
    """
    methods: dict[str, dict[str, None]] = {}
    for key, entry in itertools.product(("source", "note"), entries):
        methods.setdefault(entry[key], {})[entry["method"]] = None
    return [f"{'; '.join(names)}: {text}." for text, names in methods.items() if text]
