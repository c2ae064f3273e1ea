"""Our figures beside the published ones of ``assets/published.csv``, each with its source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import labels, settings, tables
from domainbed_carft.results.document import PLUS_MINUS, Grid
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Cell, Row, Table

AVERAGE = "average"
_NONE = "No data set and algorithm of ours has a published figure."
BACKBONE = "ViT-B/16"

CAPTION = (
    f"Published: accuracy in % of CLIP {BACKBONE} with one domain left out, mean over the targets. "
    "The error is that of our mean, over trials; the published figures are single numbers without "
    "one. Within: whether they differ by no more than that error, which one trial does not have. "
    "The published figures come from several sources and protocols.",
)


COLUMNS = (
    "setting", "selection", "algorithm", "dataset", "ours", "standard_error", "n", "complete",
    "published", "difference", "within", "method", "source",
)  # fmt: skip


class Figure(NamedTuple):
    """One published accuracy, in percent; ``dataset`` may be AVERAGE, over the five."""

    method: str
    dataset: str
    accuracy: float
    source: str


class Comparison(NamedTuple):
    """One of our cells beside a published figure; differences in points."""

    setting: str
    selection: str
    algorithm: str
    dataset: str
    ours: float
    error: float
    n: int
    complete: bool
    published: Figure

    @property
    def difference(self) -> float:
        """Ours minus the published."""
        return self.ours - self.published.accuracy

    @property
    def within(self) -> bool | None:
        """Whether they differ by no more than our error; None where there is none."""
        return abs(self.difference) <= self.error if self.n > 1 else None


def figures(wanted: Sequence[str] = ()) -> list[Figure]:
    """Published figures in the order of the file; of the methods in ``wanted``, if any."""
    path = files("domainbed_carft") / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    rows = table if not wanted else table[table["method"].isin(wanted)]
    return [Figure(*row) for row in rows[list(Figure._fields)].itertuples(index=False)]


def counterpart(run: Run) -> str | None:
    """The published method that a run is an instance of, None for what has no figures."""
    hparams: dict[str, Any] = json.loads(run.hparams)
    if run.algorithm == "CLIPFineTune":
        start = "random" if hparams.get("head_init") == "random" else "zero-shot"
        return f"ERM, {start} head"
    return {
        "CARFT": "CAR-FT", "CLIPZeroShot": "zero-shot CLIP", "CLIPLinearProbe": "linear probe",
    }.get(run.algorithm)  # fmt: skip


def compare(group: Group, built: Iterable[Table]) -> tuple[list[Comparison], list[str]]:
    """Our averages over targets beside the published, and remarks on what is not comparable."""
    known = {(figure.method, figure.dataset): figure for figure in figures()}
    methods = _counterparts(group.runs)
    found: list[Comparison] = []
    uneven: list[str] = []
    for table in built:
        if not table.averages:
            continue
        for row in table.rows:
            cells = dict(zip(table.columns, row.cells, strict=True))
            cells.pop(AVERAGE, None)  # a data set may be called so
            same = _of_published(cells, known)
            cells |= _over_all(same)
            if (_only(methods, row.algorithm, AVERAGE), AVERAGE) in known and (
                why := _uneven(same)
            ):
                uneven.append(f"{row.algorithm}: no average by {table.method} is compared: {why}.")
            for dataset, cell in cells.items():
                figure = known.get((_only(methods, row.algorithm, dataset), dataset))
                if figure and cell.mean is not None and cell.error is not None:
                    found.append(_beside(table, row, dataset, cell, figure))
    averaged = dict.fromkeys(one.algorithm for one in found if one.dataset == AVERAGE)
    names = {dataset for _, dataset in known}
    mixed = settings.mixed(run for run in group.runs if run.test_envs and run.dataset in names)
    remarks = [
        f"{name}: the average is over data sets that differ in {mixed[name]}."
        for name in averaged
        if name in mixed
    ]
    return found, [*([] if found else [_NONE]), *uneven, *remarks, *_remarks(group)]


_Counterparts = dict[tuple[str, str], dict[str, None]]  # (algorithm, data set) -> methods


def _counterparts(runs: Iterable[Run]) -> _Counterparts:
    """The published methods that runs are instances of, on each data set and on all together."""
    found: _Counterparts = {}
    for run in runs:
        method = counterpart(run) or ""
        for dataset in (run.dataset, AVERAGE):
            found.setdefault((run.algorithm, dataset), {})[method] = None
    return found


def _only(methods: _Counterparts, algorithm: str, dataset: str) -> str:
    """The method that all of them are instances of, "" if there is no such."""
    found = list(methods.get((algorithm, dataset), ()))
    return found[0] if len(found) == 1 else ""


def _beside(table: Table, row: Row, dataset: str, cell: Cell, figure: Figure) -> Comparison:
    assert cell.mean is not None and cell.error is not None
    return Comparison(
        table.setting, table.method, row.algorithm, dataset, float(cell.mean),
        float(cell.error), cell.n, not (cell.missing or cell.undeclared), figure,
    )  # fmt: skip


def _of_published(cells: Mapping[str, Cell], known: Iterable[tuple[str, str]]) -> dict[str, Cell]:
    """Those of the published data sets, none unless there are all."""
    wanted = dict.fromkeys(dataset for _, dataset in known if dataset != AVERAGE)
    return {name: cells[name] for name in wanted} if wanted.keys() <= cells.keys() else {}


def _uneven(cells: Mapping[str, Cell]) -> str:
    """Which trials some data sets have and others lack."""
    trials = sorted({trial for cell in cells.values() for trial in cell.trials})
    lacking = {
        name: [str(trial) for trial in trials if trial not in cell.trials]
        for name, cell in cells.items()
    }
    return "; ".join(f"{name} lacks trial {', '.join(t)}" for name, t in lacking.items() if t)


def _over_all(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """The average over the published data sets, where a row has the same trials of all."""
    mine = cells.values()
    trials = pd.DataFrame([cell.trials for cell in mine])
    if trials.empty or trials.isna().any(axis=None):
        return {}
    means = trials.mean().sort_index()
    mean, error = tables.mean_and_error(means.to_numpy() / 100)
    missing = tuple(text for cell in mine for text in cell.missing)
    undeclared = tuple(label for cell in mine for label in cell.undeclared)
    return {AVERAGE: Cell(mean, error, len(means), missing, dict(means), undeclared)}


def _remarks(group: Group) -> list[str]:
    backbones: dict[str, dict[str, None]] = {}
    for run in group.runs:
        backbone = json.loads(run.hparams).get("clip_backbone")
        if counterpart(run) and backbone not in (BACKBONE, None):
            backbones.setdefault(str(backbone), {})[run.algorithm] = None
    remarks = [
        f"Not comparable: {', '.join(names)} used {backbone}, the published figures {BACKBONE}."
        for backbone, names in backbones.items()
    ]
    for (algorithm, dataset), methods in _counterparts(group.runs).items():
        if len(methods) > 1 and dataset != AVERAGE:
            remarks.append(
                f"No published figure: {algorithm} on {dataset}, whose runs are instances of "
                f"several: {', '.join(methods)}."
            )
    without = {run.algorithm for run in group.runs if counterpart(run) is None}
    if without:
        names = ", ".join(labels.algorithms(without))
        remarks.append(f"No published figure: {names}.")
    return remarks


def grid(found: Sequence[Comparison], remarks: Sequence[str]) -> Grid:
    """A row a comparison."""
    said = {True: "yes", False: "no", None: "one trial"}
    sources: dict[str, int] = {}
    rows = []
    for one in found:
        ours = f"{one.ours:.1f} {PLUS_MINUS} {one.error:.1f} ({one.n})"
        rows.append(
            [
                one.algorithm, one.selection, one.dataset,
                ours if one.complete else f"{ours}, incomplete",
                f"{one.published.accuracy:.1f}", f"{one.difference:+.1f}", said[one.within],
                f"{one.published.method} {_numbered(one.published.source, sources)}",
            ]
        )  # fmt: skip
    header = ["Algorithm", "Selection", "Data set", "Ours", "Published", "Difference", "Within"]
    setting = found[0].setting if found else ""
    title = "; ".join(filter(None, ["Beside published figures", setting]))
    notes = list(remarks) if found or _NONE in remarks else [_NONE, *remarks]
    return Grid(title, [*header, "Published as"], rows, [*notes, *_listed(sources)])


def overview(wanted: Sequence[str] = ()) -> Grid:
    """Published figures: a row a method, a column a data set; of methods in ``wanted``, if any."""
    shown = figures(wanted)
    columns = list(dict.fromkeys(figure.dataset for figure in shown))
    methods: dict[str, dict[str, Figure]] = {}
    for figure in shown:
        methods.setdefault(figure.method, {})[figure.dataset] = figure
    sources: dict[str, int] = {}
    rows = []
    for method, cells in methods.items():
        own = dict.fromkeys(_numbered(figure.source, sources) for figure in cells.values())
        numbers = [f"{cells[name].accuracy:.1f}" if name in cells else "" for name in columns]
        rows.append([f"{method} {' '.join(own)}", *numbers])
    return Grid(f"Published, CLIP {BACKBONE}", ["Method", *columns], rows, _listed(sources))


def _numbered(source: str, sources: dict[str, int]) -> str:
    """A mark for a source, the same wherever it stands."""
    return f"[{sources.setdefault(source, len(sources) + 1)}]"


def _listed(sources: dict[str, int]) -> list[str]:
    return [f"[{number}] {source}." for source, number in sources.items()]


def entries(found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """For JSON and CSV."""
    values = (
        (
            one.setting, one.selection, one.algorithm, one.dataset, one.ours, one.error, one.n,
            one.complete, one.published.accuracy, one.difference, one.within,
            one.published.method, one.published.source,
        )
        for one in found
    )  # fmt: skip
    return [dict(zip(COLUMNS, row, strict=True)) for row in values]
