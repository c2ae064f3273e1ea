"""Tables of means over trials and their errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.settings import Group

# DomainBed's order, ours after its; means over data sets depend on it in the last bit.
_ORDER = (
    "Debug28", "Debug224", "ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome",
    "TerraIncognita", "DomainNet", "SVIRO", "EmojiStyles", "EmojiUnseen",
)  # fmt: skip
# Our algorithms in the order of the README and of docs/peers.md.
OURS = (
    "CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot",
    "CLIPood", "CLIPWiSEFT", "CLIPLPFT", "CLIPL2SP", "CLIPFeatureDistillation", "LDIFS", "LipsumFT",
    "CLIPMIRO", "FLYP",
)  # fmt: skip
_UNDECLARED = "-: no job was declared for this cell; Avg is over the other cells."


class Cell(NamedTuple):
    """Accuracies of ``n`` trials in percent: mean, standard error, and what is missing.

    ``accuracies``: trial -> accuracy in [0, 1]. Mean and error are None if there is no trial.
    ``partial``: an average over some of the environments, or of a copy that is not complete.
    """

    mean: float | None = None
    error: float | None = None
    n: int = 0
    missing: tuple[str, ...] = ()
    accuracies: Mapping[int, float] = {}
    partial: bool = False

    @property
    def counts(self) -> bool:
        """Whether the cell should have a value."""
        return self.mean is not None or bool(self.missing)


class Row(NamedTuple):
    """An algorithm's cells, and their mean; None where a cell has none."""

    algorithm: str
    cells: Sequence[Cell]
    average: float | None


class Table(NamedTuple):
    """One data set's, or that of averages, whose columns are data sets, by one method and group.

    ``dataset_titles``: what the data sets are called, where that is not their name.
    """

    setting: str
    method: str
    dataset: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    averages: bool = False
    dataset_titles: Mapping[str, str] = {}

    @property
    def dataset_title(self) -> str:
        """What the data set is called: a user's own by its folder's name."""
        return self.dataset_titles.get(self.dataset, self.dataset)

    @property
    def headers(self) -> list[str]:
        """The columns as they are called."""
        titles = self.dataset_titles if self.averages else {}
        return [titles.get(column, column) for column in self.columns]

    @property
    def title(self) -> str:
        """Data set, selection method, and the group's setting."""
        parts = [self.dataset_title, selection.METHODS[self.method].title, self.setting]
        return "; ".join(filter(None, parts))

    @property
    def incomplete(self) -> int:
        """How many cells are incomplete."""
        return sum(bool(cell.missing) for row in self.rows for cell in row.cells)


def build(group: Group, methods: Sequence[str]) -> list[Table]:
    """All tables of one group."""
    gaps = Gaps(group.runs, group.planned)
    columns = labels(group.runs, group.planned, group.labels)
    titles = benchmarks.dataset_titles(columns)
    result = []
    for method in methods:
        leaves_out = selection.METHODS[method].leaves_out
        jobs = [job for job in gaps.keys if bool(job.test_envs) == leaves_out]
        names = {job.dataset for job in jobs}
        rows_of = algorithms((job.algorithm for job in jobs), group.declared)
        # In the order of DomainBed's groups, on which the last bit of a mean depends.
        selected: dict[tuple[str, str, int], dict[int, float]] = {}
        reached: dict[tuple[str, str], dict[int, list[float]]] = {}
        for dataset, algorithm, target, trial, outcome in selection.select(group.runs, method):
            selected.setdefault((algorithm, dataset, target), {})[trial] = outcome.accuracy
            trials = reached.setdefault((algorithm, dataset), {})
            trials.setdefault(trial, []).append(outcome.accuracy)
        tables = []
        for name in (name for name in columns if name in names):
            rows = []
            for algorithm in rows_of:
                cells = []
                for target in range(len(columns[name])):
                    lacks = gaps.of(name, algorithm, target, method, len(columns[name]))
                    accuracies = selected.get((algorithm, name, target), {})
                    cells.append(Cell() if lacks is None else cell_of(accuracies, lacks))
                rows.append(Row(algorithm, cells, _average(cells)))
            notes = [] if all(cell.counts for row in rows for cell in row.cells) else [_UNDECLARED]
            table = Table(
                setting=group.title, method=method, dataset=name, columns=columns[name],
                rows=rows, notes=notes, dataset_titles=titles,
            )  # fmt: skip
            tables.append(table)
        if leaves_out and tables:
            tables.append(_averages(group, method, tables, rows_of, reached))
        result += tables
    return result


def _averages(
    group: Group, method: str, tables: Sequence[Table], names: Sequence[str],
    reached: Mapping[tuple[str, str], Mapping[int, list[float]]],
) -> Table:  # fmt: skip
    """Means over each trial's mean over the targets that it has."""
    rows = []
    notes = []
    for number, algorithm in enumerate(names):
        cells = []
        for table in tables:
            own = dict(zip(table.columns, table.rows[number].cells, strict=True))
            without = ", ".join(label for label, cell in own.items() if not cell.counts)
            if not any(cell.counts for cell in own.values()):
                cells.append(Cell())
                continue
            if without:
                notes.append(
                    f"{algorithm} on {table.dataset_title}: no job declared for {without}."
                )
            trials = reached.get((algorithm, table.dataset), {})
            means = {trial: float(np.mean(trials[trial])) for trial in sorted(trials)}
            lacking = ", ".join(label for label, cell in own.items() if cell.missing)
            missing = [f"incomplete in {table.dataset_title}: {lacking}"] if lacking else []
            cells.append(cell_of(means, missing)._replace(partial=bool(without)))
        rows.append(Row(algorithm, cells, _average(cells)))
    columns = [table.dataset for table in tables]
    return Table(
        setting=group.title, method=method, dataset="Averages", columns=columns, rows=rows,
        notes=notes, averages=True, dataset_titles=tables[0].dataset_titles,
    )  # fmt: skip


def cell_of(accuracies: Mapping[int, float], missing: Sequence[str]) -> Cell:
    """The mean over the trials, of accuracies in [0, 1], and its error.

    As in DomainBed's collect_results, to the last bit: the error is the standard deviation with
    divisor n (numpy's ddof 0) over the root of n.
    """
    if not accuracies:
        return Cell(missing=tuple(missing or ["no accuracy recorded on this environment"]))
    values = np.array([*accuracies.values()])
    # Divided before, not after: the last bit decides how a half is rounded.
    shares = values / values.size**0.5
    return Cell(100 * values.mean(), 100 * shares.std(), values.size, tuple(missing), accuracies)


def _average(cells: Sequence[Cell]) -> float | None:
    """Of the cells that count, if all of these have a value."""
    means = [cell.mean for cell in cells if cell.counts]
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known and len(known) == len(means) else None


def labels(
    runs: Iterable[Run], planned: Iterable[Job] = (), listed: Mapping[str, Sequence[str]] = {}
) -> dict[str, tuple[str, ...]]:
    """Data set -> labels of its environments, in the order of the tables.

    The labels of a record, else of a manifest, else the known ones, if their number matches the
    accuracies of the record; else env0, env1, ...
    """
    recorded: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.dataset] = max(run.n_environments, counts.get(run.dataset, 0))
        if run.environments:
            recorded.setdefault(run.dataset, run.environments)
    known: Mapping[str, Sequence[str]] = {
        name: [environment.label for environment in benchmark.environments]
        for name, benchmark in benchmarks.BENCHMARKS.items()
    }
    ways: list[Mapping[str, Sequence[str]]] = [recorded, listed, known]
    for name in {job.key.dataset: None for job in planned}:
        counts.setdefault(name, len(listed.get(name, ()) or known.get(name, ())))
    found = {}
    for name in dict.fromkeys((*(name for name in _ORDER if name in counts), *counts)):
        numbered = [f"env{i}" for i in range(counts[name])]
        fitting = [tuple(way[name]) for way in ways if len(way.get(name, ())) == counts[name]]
        found[name] = next(iter(fitting), tuple(numbered))
    return found


def algorithms(names: Iterable[str], declared: Iterable[str] = ()) -> list[str]:
    """Each of these names once, in the order of rows, legends and bars.

    First those that a sweep ``declared``, in its order, then CARFT and our other algorithms in the
    order of the docs, then all others by name.
    """
    found = set(names)
    order = dict.fromkeys((*declared, *OURS, *sorted(found)))
    return [name for name in order if name in found]
