"""The jobs behind each cell of a table: their settings, folders and commands, as the page links."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from domainbed_carft.jobs.records import Run
from domainbed_carft.results.columns import ENVIRONMENTS
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import BestHparams
from domainbed_carft.sweep import chosen_runs

_OUTPUT = "OUT"  # stands for the folder of the sweeps


@dataclass(frozen=True)
class JobCommand:
    """A job on the page: the name of its place there, its folder below OUT, its command line."""

    place: str
    folder: str
    line: str


@dataclass(frozen=True)
class CellJobs:
    """The runs that were chosen in one cell, one for each trial.

    ``place``: the name of their place on the page; ``environment``: the one left out, "" if none.
    """

    place: str
    algorithm: str
    environment: str
    runs: Sequence[chosen_runs.ChosenRun]


@dataclass(frozen=True)
class TableJobs:
    """The jobs behind the cells of one table.

    ``shared``: the hyperparameters that were set or chosen alike for all of them, in words; ``places``:
    for each row, and each column but the first, the place of the cell's jobs, "" for none.
    """

    cells: Sequence[CellJobs]
    shared: str
    places: Sequence[Sequence[str]]


def commands(runs: Iterable[Run]) -> dict[str, JobCommand]:
    """A job's folder -> its command for a shell, with the arguments that were recorded.

    The folders on the page are below OUT, so that it does not tell where the sweeps are here.
    """
    folders = {run.folder: run.job for run in runs}
    parents = [os.path.dirname(os.path.abspath(folder)) for folder in folders]
    above = os.path.commonpath(parents)

    job_commands = {}
    for number, (folder, job) in enumerate(folders.items(), 1):
        below = os.path.relpath(os.path.abspath(folder), above)
        label = os.path.join(_OUTPUT, below)
        line = replace(job, folder=Path(label)).line
        job_commands[folder] = JobCommand(f"job-{number}", label, line)
    return job_commands


def jobs_of_table(
    table: Table, entries: Sequence[BestHparams], name: Callable[..., str]
) -> TableJobs:
    """The jobs behind the cells of ``table``.

    ``entries``: of the table's setting, data set and method; ``name(word, ...)``: makes unique
    names for places on the page.
    """
    runs, shared = chosen_runs.describe(entries)
    cells = []
    place_of_cell: dict[tuple[str, str], str] = {}
    for (algorithm, environment), cell_runs in itertools.groupby(
        runs, key=lambda run: (run.entry.row, run.entry.environment or "")
    ):
        place = name("cell", table.dataset, algorithm, environment or "all")
        place_of_cell[algorithm, environment] = place
        cells.append(CellJobs(place, algorithm, environment, list(cell_runs)))
    return TableJobs(cells, shared, _places(table, place_of_cell))


def _places(table: Table, place_of_cell: Mapping[tuple[str, str], str]) -> list[list[str]]:
    """For each row and shown column the place of its jobs; of jobs that left nothing out, theirs.

    Columns that are of no single environment have none.
    """
    places = []
    for row in table.rows:
        of_all = place_of_cell.get((row.algorithm, ""), "")
        row_places = []
        for column in table.shown:
            of_environment = place_of_cell.get((row.algorithm, column.title), of_all)
            row_places.append(of_environment if column.name == ENVIRONMENTS else "")
        places.append(row_places)
    return places
