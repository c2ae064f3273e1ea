"""Published accuracies from ``assets/published.csv``, and comparisons of our averages with them.

A comparison reports if our average lies within MARGIN points of the published one, or the reason
why they cannot be compared.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.facts import CHANGED_HPARAMS
from domainbed_carft.jobs.job import parse_overrides
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import FOLLOWS_JOB, NOT_RECORDED, SCHEDULE
from domainbed_carft.results.cells import (
    DOMAINBED,
    Cell,
    ErrorKind,
    accuracy_text,
    mean_over_trials,
)
from domainbed_carft.results.columns import Column
from domainbed_carft.results.comparisons import (
    LEVEL,
    smallest_welch_half_width,
    student_interval,
    welch_interval,
)
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.groups import Group
from domainbed_carft.results.selection import CLIPOOD, candidates_by_target
from domainbed_carft.results.tables import Table, build

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
    f"Comparison: within, if the interval lies inside +-{MARGIN:g}; differs, if it lies outside; "
    "error too large, if the published error alone makes the interval wider than that, with any "
    "number of our trials; otherwise cannot tell. None if the published error is unknown, or if "
    "hyperparameters, selection, steps, protocol or edition differ or are unknown.",
)

WITHIN = "within"
DIFFERS = "differs"
CANNOT_TELL = "cannot tell"
ERROR_TOO_LARGE = "error too large"
NO_COMPARISON = "none"

# Conditions that must be equal in our runs; unknown ones are empty in published.csv.
_CONDITIONS = ("selection", "steps", "protocol", "edition")
_UNKNOWN = ("", "unknown")
_ZERO_SHOT_STEPS = "0"  # of a number for which neither steps nor selection matter
# Kind of error -> the squared standard error of the mean of n trials, with divisor n - 1
_SQUARED_ERRORS: dict[str, Callable[[float, int], float]] = {
    "standard error, n": lambda error, n: error**2 * n / (n - 1),
    "standard error, n - 1": lambda error, n: error**2,
    "deviation": lambda error, n: error**2 / n,
}
# Hparams that are compared as conditions, or follow from one
_COMPARED_AS_CONDITIONS = ("protocol", "data_edition", "total_steps")

# Our algorithms -> the published methods that they implement
_COUNTERPARTS = {
    "CARFT": "CAR-FT",
    "CLIPZeroShot": "zero-shot CLIP",
    "CLIPLinearProbe": "linear probe",
    "CLIPood": "CLIPood",
    "CLIPMIRO": "MIRO",
}
# Algorithms of plain fine-tuning -> the hparam with their initial head, "zero-shot" or "random",
# by which they are compared with "ERM, zero-shot head" or "ERM, random head"
_HEAD_HPARAMS = {"CLIPFineTune": "head_init", "ERM": "clip_head"}
# Values of DomainBed's ERM, which has no such hparams.
_ERM_VALUES = {"lr_schedule": "constant", "grad_clip": 0}


class PublishedAccuracy(NamedTuple):
    """A published accuracy; texts are empty if they are unknown.

    Attributes:
        method: name of the published method.
        dataset: name of the dataset, or AVERAGE; for suites of the test set or mean.
        accuracy: in percent.
        standard_error: in points; None if unknown.
        error_kind: kind of the error, of which _SQUARED_ERRORS are known.
        n: number of trials; None if unknown.
        selection: split on which checkpoint and hyperparameters were chosen.
        steps, protocol, edition: the setting of the runs.
        read_in: where the number was read, such as the paper.
        source: the source.
        note: a remark.
        hparams: known hyperparameters of the published runs, by the names of ``--hparams``; in the
            file a JSON object, or empty. A run is compared with the number if it has the same, and
            otherwise the defaults of its algorithm. List all values that the source or its code
            gives, also those that equal a default. Leave it empty for AVERAGE, whose runs are
            compared with the hparams of their datasets. All numbers are of BACKBONE.
    """

    method: str
    dataset: str
    accuracy: float
    standard_error: float | None = None
    error_kind: str = ""
    n: int | None = None
    selection: str = ""
    steps: str = ""
    protocol: str = ""
    edition: str = ""
    read_in: str = ""
    source: str = ""
    note: str = ""
    hparams: Mapping[str, Any] = MappingProxyType({})

    @property
    def cell(self) -> Cell:
        """The accuracy as a cell of a table."""
        return Cell(self.accuracy, self.standard_error, self.n or 0)

    @property
    def squared_error(self) -> float | None:
        """The squared standard error of the mean with divisor n - 1, or None if it is unknown."""
        if self.error_kind not in _SQUARED_ERRORS or not self.n or self.standard_error is None:
            return None
        return _SQUARED_ERRORS[self.error_kind](self.standard_error, self.n)

    @property
    def is_precise_enough(self) -> bool:
        """True if the interval of a difference from the accuracy can be narrower than the margins.

        Otherwise no number and no spread of our trials makes it so.
        """
        if self.squared_error is None or self.n is None:
            return False
        return smallest_welch_half_width(self.squared_error, self.n) <= MARGIN


@dataclass(frozen=True)
class PublishedComparison:
    """Our mean next to the published one.

    Attributes:
        setting, selection, algorithm, dataset: place of our mean in the tables.
        ours: our mean in percent.
        published: the published accuracy.
        reason: reason why they cannot be compared; otherwise empty.
    """

    setting: str
    selection: str
    algorithm: str
    dataset: str
    ours: Cell
    published: PublishedAccuracy
    reason: str

    @property
    def difference(self) -> float:
        """Our mean minus the published one, in points."""
        assert self.ours.mean is not None
        return self.ours.mean - self.published.accuracy

    @cached_property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """Interval of the difference in points; Nones for fewer than two trials.

        It contains the published error, if this is known, by Welch's t.
        """
        trials = [*self.ours.trials.values()]
        published = self.published
        if published.squared_error is None or published.n is None:
            return student_interval([value - published.accuracy for value in trials])
        return welch_interval(trials, published.accuracy, published.squared_error, published.n)

    @property
    def comparison(self) -> str:
        """WITHIN, DIFFERS, ERROR_TOO_LARGE, CANNOT_TELL or NO_COMPARISON."""
        low, high = self.interval
        if self.reason or self.published.squared_error is None or low is None or high is None:
            return NO_COMPARISON
        if low >= -MARGIN and high <= MARGIN:
            return WITHIN
        if low > MARGIN or high < -MARGIN:
            return DIFFERS
        return CANNOT_TELL if self.published.is_precise_enough else ERROR_TOO_LARGE

    def as_dict(self) -> dict[str, Any]:
        """Return an entry for JSON and CSV."""
        low, high = self.interval
        return {
            "setting": self.setting,
            "selection": self.selection,
            "algorithm": self.algorithm,
            "dataset": self.dataset,
            "ours": self.ours.mean,
            "standard_error": self.ours.standard_error,
            "n": self.ours.n,
            "complete": self.ours.is_complete,
            "difference": self.difference,
            "low": low,
            "high": high,
            "at_least": self.published.squared_error is None,
            "comparison": self.comparison,
            "reason": self.reason,
            **{
                f"published_{name}": value
                for name, value in self.published._asdict().items()
                if name not in ("dataset", "hparams")
            },
            "published_hparams": dict(self.published.hparams),
        }


def read_accuracies(methods: Sequence[str] = ()) -> list[PublishedAccuracy]:
    """Read published accuracies in the order of the file; only of ``methods``, if given."""
    return [
        PublishedAccuracy(
            method=row["method"],
            dataset=row["dataset"],
            accuracy=float(row["accuracy"]),
            standard_error=float(row["standard_error"]) if row["standard_error"] else None,
            error_kind=row["error_kind"],
            n=int(row["n"]) if row["n"] else None,
            **{name: row[name] for name in (*_CONDITIONS, "read_in", "source", "note")},
            hparams=json.loads(row["hparams"] or "{}"),
        )
        for row in read_rows("published.csv")
        if not methods or row["method"] in methods
    ]


def read_rows(name: str) -> list[dict[str, str]]:
    """Read the rows of a CSV file in ``assets``."""
    with (ASSETS / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counterpart(run: RecordedRun) -> str | None:
    """Return the published method that a run implements, or None."""
    if run.algorithm in _HEAD_HPARAMS:
        start = run.recorded.get(_HEAD_HPARAMS[run.algorithm])
        return f"ERM, {start} head" if start in ("random", "zero-shot") else None
    return _COUNTERPARTS.get(run.algorithm)


def compare(
    group: Group, group_tables: Sequence[Table], error: ErrorKind = DOMAINBED
) -> list[PublishedComparison]:
    """Compare our averages over targets with the published ones.

    Args:
        group: the runs.
        group_tables: all tables of the group. If they contain the selection by which a number was
            published, only this one is compared with it. Numbers published by CLIPood's protocol
            are compared with it even without such tables.
        error: kind of error of our averages.
    """
    requested = {table.selection for table in group_tables}
    further_tables = build(group, _further_rules(group, requested), error=error)
    tables = [table for table in (*group_tables, *further_tables) if table.averages]
    selections = {table.selection for table in tables}
    published_by_place = _find_counterparts(group.runs)
    datasets = dict.fromkeys(entry.dataset for entry in read_accuracies())
    del datasets[AVERAGE]

    comparisons = []
    for table in tables:
        for row, row_cells in table.rows.items():
            cells = {column.of: row_cells[column] for column in table.accuracies}
            cells[AVERAGE] = _average_datasets(
                table, [cells.get(name, Cell()) for name in datasets]
            )
            for dataset, cell in cells.items():
                if cell.mean is None or (row, dataset) not in published_by_place:
                    continue
                runs, published = published_by_place[row, dataset]
                has_table = published.selection in selections
                if table.selection in ({published.selection} if has_table else requested):
                    comparison = PublishedComparison(
                        setting=table.setting,
                        selection=table.selection,
                        algorithm=row,
                        dataset=dataset,
                        ours=cell,
                        published=published,
                        reason=_reason_against(cell, table.selection, runs, published),
                    )
                    comparisons.append(comparison)
    return comparisons


def _find_counterparts(
    runs: Iterable[RecordedRun],
) -> dict[tuple[str, str], tuple[list[RecordedRun], PublishedAccuracy]]:
    """Map (row, dataset) to its runs and the accuracy published for the method of all of them.

    The runs of AVERAGE are those on all datasets.
    """
    runs_by_place: dict[tuple[str, str], list[RecordedRun]] = {}
    for run in runs:
        for dataset in (run.dataset, AVERAGE):
            runs_by_place.setdefault((run.row, dataset), []).append(run)

    entries: dict[tuple[str | None, str], PublishedAccuracy] = {
        (entry.method, entry.dataset): entry for entry in read_accuracies()
    }
    counterparts = {}
    for (row, dataset), place_runs in runs_by_place.items():
        methods = {counterpart(run) for run in place_runs}
        entry = entries.get((methods.pop(), dataset)) if len(methods) == 1 else None
        if entry:
            counterparts[row, dataset] = (place_runs, entry)
    return counterparts


def _further_rules(group: Group, requested: Collection[str]) -> list[str]:
    """Return CLIPOOD unless it is among the ``requested`` rules, is not needed, or cannot select.

    It is needed for rows whose numbers were published by CLIPood's protocol.
    """
    published_methods = {entry.method for entry in read_accuracies() if entry.selection == CLIPOOD}
    is_needed = any(counterpart(run) in published_methods for run in group.runs)
    has_choices = any(len(each.singles) > 1 for each in candidates_by_target(group.runs))
    return [CLIPOOD] if is_needed and not has_choices and CLIPOOD not in requested else []


def _reason_against(
    cell: Cell, rule: str, runs: Sequence[RecordedRun], published: PublishedAccuracy
) -> str:
    """Return all reasons why our ``runs`` cannot be compared; empty if they can."""
    deviations = dict.fromkeys(
        deviation for run in runs for deviation in _deviations(run, published.method)
    )
    reasons = []
    if deviations:
        names = f"{runs[0].row} has {', '.join(deviations)}"
        reasons.append(f"{names}, unlike the published {published.method}")
    if not cell.is_complete:
        reasons.append("our average is incomplete")
    if cell.n < 2:
        reasons.append("a single trial has no interval")

    our_settings = {
        "selection": {rule},
        "steps": {str(int(run.steps[-1]) + 1) for run in runs},
        "protocol": {run.recorded.get("protocol", NOT_RECORDED) for run in runs},
        "edition": {run.recorded.get("data_edition", NOT_RECORDED) for run in runs},
    }
    if published.steps == _ZERO_SHOT_STEPS:
        del our_settings["selection"], our_settings["steps"]

    unknown = []
    for name, values in our_settings.items():
        texts = {text.removeprefix("verified: ") for text in values}
        published_value = getattr(published, name)
        if published_value in _UNKNOWN:
            unknown.append(name)
        elif texts != {published_value}:
            reasons.append(f"{name}: {', '.join(sorted(texts))}, published: {published_value}")
    if published.squared_error is None:
        unknown.append("error")
    if unknown:
        reasons.append(f"unknown for the published number: {', '.join(unknown)}")
    return "; ".join(reasons)


def _deviations(run: RecordedRun, method: str) -> list[str]:
    """List the hparams of a run in which it differs from the published runs of ``method``.

    They are compared with the published hparams on the run's dataset, and must otherwise have the
    defaults of the algorithm.
    """
    published_hparams = {
        "clip_backbone": BACKBONE,
        **_published_hparams().get((method, run.dataset), {}),
    }
    recorded = {**(_ERM_VALUES if run.algorithm == "ERM" else {}), **run.recorded}
    deviations = []
    for name, published_value in published_hparams.items():
        value = recorded.get(name, NOT_RECORDED)
        if value != published_value:
            deviations.append(f"{name} {value} instead of {published_value}")

    compared = {*published_hparams, *_COMPARED_AS_CONDITIONS, _HEAD_HPARAMS.get(run.algorithm)}
    changed = run.recorded.get(CHANGED_HPARAMS)
    if not isinstance(changed, list):  # not recorded: all that were set can differ
        changed = [*parse_overrides(run.job.args)]
        if run.job.key.choice:
            deviations.append("drawn hparams")
    deviations += [
        f"{name} {run.recorded.get(name, NOT_RECORDED)}" for name in changed if name not in compared
    ]

    schedule = run.setting.get(SCHEDULE, FOLLOWS_JOB)
    if schedule != FOLLOWS_JOB:
        deviations.append(f"total_steps {schedule}")
    return deviations


@functools.cache
def _published_hparams() -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(entry.method, entry.dataset): entry.hparams for entry in read_accuracies()}


def _average_datasets(table: Table, cells: Sequence[Cell]) -> Cell:
    """Average over the published datasets; empty unless all of them have the same trials."""
    if any(cell.trials.keys() != cells[0].trials.keys() for cell in cells):
        return Cell()

    return mean_over_trials(
        [(trial, cell.trials[trial]) for trial in sorted(cells[0].trials) for cell in cells],
        missing=list(dict.fromkeys(text for cell in cells for text in cell.missing)),
        error=table.error,
        scale=1,
    )


def grid(comparisons: Sequence[PublishedComparison]) -> Grid:
    """Make the table of comparisons, a row each."""
    header = ["Algorithm", "Selection", "Dataset", "Ours", "Published", "Difference"]
    header += [f"{LEVEL}% interval", "Comparison", "Published as", "Selected on"]

    reasons = dict.fromkeys(entry.reason for entry in comparisons if entry.reason)
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    rows = [_comparison_row(entry, numbers.get(entry.reason)) for entry in comparisons]
    notes = [f"[{number}] No comparison: {reason}." for reason, number in numbers.items()]
    notes += list_sources(entry.published for entry in comparisons)

    settings = {comparison.setting for comparison in comparisons} - {""}
    title = "; ".join(["Compared with published numbers", *settings])
    return Grid(title, header, rows, notes)


def _comparison_row(comparison: PublishedComparison, note_number: int | None) -> list[str]:
    """Format a row; ``note_number`` is the note that gives the reason for NO_COMPARISON."""
    ours = comparison.ours
    published = comparison.published
    our_accuracy = accuracy_text(ours)
    if not ours.is_complete:
        our_accuracy += ", incomplete"

    low, high = comparison.interval
    interval = ""
    if low is not None:
        interval = f"{low:+.1f} to {high:+.1f}"
        interval = f"at least {interval}" if published.squared_error is None else interval
    result = comparison.comparison
    return [
        comparison.algorithm,
        comparison.selection,
        comparison.dataset,
        our_accuracy,
        accuracy_text(published.cell),
        f"{comparison.difference:+.1f}",
        interval,
        f"{result} [{note_number}]" if note_number else result,
        published.method,
        published.selection,
    ]


def build_overview(methods: Sequence[str] = ()) -> Table:
    """Build the table of published accuracies: a row per method, a column per dataset."""
    accuracies = read_accuracies(methods)
    columns = [Column(name, name, "%") for name in dict.fromkeys(a.dataset for a in accuracies)]
    details = {
        entry.method: {
            "Selected on": entry.selection,
            "Error": entry.error_kind,
            "Read in": entry.read_in,
        }
        for entry in reversed(accuracies)  # the first entry of a method describes all of them
    }
    return Table(
        name=f"Published, CLIP {BACKBONE}",
        rows=make_rows(accuracies, columns),
        accuracies=columns,
        printed=columns,
        notes=list_sources(accuracies),
        details=details,
        printed_details=("Selected on", "Error", "Read in"),
    )


def make_rows(
    accuracies: Iterable[PublishedAccuracy], columns: Sequence[Column]
) -> dict[str, dict[Column, Cell]]:
    """Map each method to its cell in each of the ``columns``, which have the names of datasets."""
    column_of = {column.name: column for column in columns}
    rows: dict[str, dict[Column, Cell]] = {}
    for entry in accuracies:
        row = rows.setdefault(entry.method, dict.fromkeys(columns, Cell()))
        row[column_of[entry.dataset]] = entry.cell
    return rows


def list_sources(accuracies: Iterable[PublishedAccuracy]) -> list[str]:
    """Return notes for a table: each source with its methods, then each remark with its methods."""
    methods: dict[str, dict[str, None]] = {}
    for name, entry in itertools.product(("source", "note"), accuracies):
        methods.setdefault(getattr(entry, name), {})[entry.method] = None
    return [f"{'; '.join(names)}: {text}." for text, names in methods.items() if text]
