"""Where the numbers of a page come from: the jobs of each cell, and how to get them again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.columns import ENVIRONMENTS, Cell
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import BestHparams
from domainbed_carft.sweep import chosen_runs

_OUTPUT = "OUT"  # stands for the folder of the sweeps
_SOFTWARE = ("matplotlib", "pandas", "numpy", "jinja2")
# What jobs have as data_dir whose datasets need no folder.
_NO_DATA_FOLDERS = (None, "", ".", "embedded")
# Hparams that say which CLIP read which prompts.
_CLIP_AND_PROMPTS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


@dataclass(frozen=True)
class JobCommand:
    """A job on the page: the name of its place there, its folder below OUT, its command line."""

    place: str
    folder: str
    line: str


@dataclass(frozen=True)
class Provenance:
    """How to get a page again.

    ``commands``: folder of a job -> its command; ``digest``: SHA-256 of the records; ``sweeps``: of
    each that a file declares, the command that launches it, and the file's text.
    """

    software: str
    settings: Grid
    digest: str
    commands: Mapping[str, JobCommand]
    sweeps: Sequence[tuple[str, str]]


def get_provenance(collection: Collection) -> Provenance:
    """The provenance of a page on these runs."""
    runs = collection.runs
    return Provenance(
        software=", ".join(f"{package} {version(package)}" for package in _SOFTWARE),
        settings=_settings(runs),
        digest=_digest(runs),
        commands=_commands(runs),
        sweeps=_sweeps(collection.folders),
    )


def _settings(runs: Sequence[RecordedRun]) -> Grid:
    """Arguments, hparams and versions of the jobs, their CLIPs and prompts."""
    counts: Counter[tuple[str, str]] = Counter()
    titles = benchmarks.dataset_titles(run.dataset for run in runs)
    for run in runs:
        settings = dict(run.setting)
        for name in _CLIP_AND_PROMPTS:
            value = run.recorded.get(name)
            if value:
                settings[f"{name} on {titles[run.dataset]}"] = str(value)
        counts.update(settings.items())

    rows = []
    for (setting, value), count in sorted(counts.items()):
        if value != "None":
            text = benchmarks.edition_label(value) if setting == EDITION else value
            rows.append([setting, text, str(count)])
    return Grid("Settings and versions", ["Setting", "Value", "Jobs"], rows, notes=[])


def _digest(runs: Iterable[RecordedRun]) -> str:
    """SHA-256 of the records of all runs, file after file in the order of their folders."""
    folders = sorted({run.folder for run in runs}, key=os.fsencode)
    contents = [files.read_regular(Path(folder, RECORDS)) for folder in folders]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _commands(runs: Iterable[RecordedRun]) -> dict[str, JobCommand]:
    """A job's folder -> its command for a shell, with the arguments that were recorded.

    The folders on the page are below OUT, so that it does not tell where the sweeps are here.
    """
    jobs = {run.folder: run.job for run in runs}
    above = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in jobs])

    commands = {}
    for number, (folder, job) in enumerate(jobs.items(), 1):
        label = os.path.join(_OUTPUT, os.path.relpath(os.path.abspath(folder), above))
        line = replace(job, folder=Path(label)).line
        commands[folder] = JobCommand(f"job-{number}", label, line)
    return commands


def _sweeps(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """Command and declaration of the sweeps in these output folders that have a copy of it."""
    declared = []
    for folder in folders:
        with contextlib.suppress(OSError, CarftError):
            text = files.read_regular(folder / manifest.DECLARATION_FILE).decode(errors="replace")
            words = ["carft", "sweep", "launch", manifest.DECLARATION_FILE]
            words += ["--output_dir", _OUTPUT]
            launched = manifest.read(folder)
            jobs = launched.jobs if launched else ()
            if any(job.args.get("data_dir") not in _NO_DATA_FOLDERS for job in jobs):
                words += ["--data_dir", "DATA"]
            if launched and launched.skip_training_in_splits is False:
                words.append("--training_in_splits")
            declared.append((" ".join(words), text))
    return declared


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

    ``shared``: the hyperparameters that were set or chosen alike for all of them; ``places``:
    for each row, and each column but the first, the place of the cell's jobs, "" for none.
    """

    cells: Sequence[CellJobs]
    shared: str
    places: Sequence[Sequence[str]]


def get_table_jobs(
    table: Table, entries: Sequence[BestHparams], name: Callable[..., str]
) -> TableJobs:
    """The jobs behind the cells of ``table``.

    ``entries``: what was chosen for the table; ``name(word, ...)``: makes unique names for places
    on the page.
    """
    runs, shared = chosen_runs.describe(entries)
    cells = []
    for (algorithm, environment), cell_runs in itertools.groupby(
        runs, key=lambda run: (run.entry.row, run.entry.environment or "")
    ):
        place = name("cell", table.dataset, algorithm, environment or "all")
        cells.append(CellJobs(place, algorithm, environment, list(cell_runs)))

    place_of = {(cell.algorithm, cell.environment): cell.place for cell in cells}

    def get_jobs_place(cell: Cell) -> str:
        if cell.column != ENVIRONMENTS:
            return ""
        of_all = place_of.get((cell.row, ""), "")  # of jobs that left nothing out
        return place_of.get((cell.row, cell.of), of_all)

    places = [[get_jobs_place(cell) for cell in row.printed_cells] for row in table.rows]
    return TableJobs(cells, shared, places)
