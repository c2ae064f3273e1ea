"""The provenance of a page: the jobs of each cell, and the commands that reproduce them."""

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
from domainbed_carft.results.columns import ENVIRONMENTS, Column
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import BestHparams
from domainbed_carft.sweep import chosen_runs

_OUTPUT = "OUT"  # placeholder for the folder of the sweeps
_SOFTWARE = ("matplotlib", "pandas", "numpy", "jinja2")
# Values of data_dir in jobs whose datasets need no folder.
_NO_DATA_FOLDERS = (None, "", ".", "embedded")
# Recorded values that identify the CLIP model and its prompts.
_CLIP_AND_PROMPTS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


@dataclass(frozen=True)
class JobCommand:
    """The command of a job, as the page shows it."""

    place: str  # HTML id on the page
    folder: str  # below OUT
    line: str  # shell command


@dataclass(frozen=True)
class Provenance:
    """Everything that is needed to reproduce a page."""

    software: str  # packages with their versions
    settings: Grid
    digest: str  # SHA-256 of the records
    commands: Mapping[str, JobCommand]  # folder of a job -> its command
    sweeps: Sequence[tuple[str, str]]  # launch command and declaration of each declared sweep


def get_provenance(collection: Collection) -> Provenance:
    """Collect the provenance of a page on these runs."""
    runs = collection.runs
    return Provenance(
        software=", ".join(f"{package} {version(package)}" for package in _SOFTWARE),
        settings=_settings(runs),
        digest=_digest(runs),
        commands=_commands(runs),
        sweeps=_sweeps(collection.folders),
    )


def _settings(runs: Sequence[RecordedRun]) -> Grid:
    """List arguments, hparams and versions of the jobs, with their CLIP models and prompts."""
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
    """Return the SHA-256 of the concatenated record files, in the order of their folders."""
    folders = sorted({run.folder for run in runs}, key=os.fsencode)
    contents = [files.read_regular(Path(folder, RECORDS)) for folder in folders]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _commands(runs: Iterable[RecordedRun]) -> dict[str, JobCommand]:
    """Return folder of a job -> its shell command with the recorded arguments.

    The page shows folders relative to OUT, so that it does not reveal local paths.
    """
    jobs = {run.folder: run.job for run in runs}
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in jobs])

    commands = {}
    for number, (folder, job) in enumerate(jobs.items(), 1):
        label = os.path.join(_OUTPUT, os.path.relpath(os.path.abspath(folder), parent))
        line = replace(job, folder=Path(label)).line
        commands[folder] = JobCommand(f"job-{number}", label, line)
    return commands


def _sweeps(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """Return launch command and declaration of each sweep whose folder contains a declaration."""
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
                words.append("--training-in-splits")
            declared.append((" ".join(words), text))
    return declared


@dataclass(frozen=True)
class CellJobs:
    """The selected runs of one cell, one per trial."""

    place: str  # HTML id of their rows on the page
    algorithm: str
    environment: str  # the target; "" if all environments were trained on
    runs: Sequence[chosen_runs.ChosenRun]


@dataclass(frozen=True)
class TableJobs:
    """The jobs of all cells of one table."""

    cells: Sequence[CellJobs]
    shared: str  # hyperparameters with the same values in all of these jobs
    # For each row, the HTML ids of its cells' jobs without the first column; "" if there are none.
    places: Sequence[Sequence[str]]


def get_table_jobs(
    table: Table, entries: Sequence[BestHparams], make_name: Callable[..., str]
) -> TableJobs:
    """Collect the jobs of a table's cells.

    Args:
        table: the table.
        entries: the selected runs of the table.
        make_name: function that makes a unique HTML id from words.
    """
    runs, shared = chosen_runs.describe(entries)
    cells = []
    for (algorithm, environment), cell_runs in itertools.groupby(
        runs, key=lambda run: (run.entry.row, run.entry.environment or "")
    ):
        place = make_name("cell", table.dataset, algorithm, environment or "all")
        cells.append(CellJobs(place, algorithm, environment, list(cell_runs)))

    place_by_cell = {(cell.algorithm, cell.environment): cell.place for cell in cells}

    def get_place(row: str, column: Column) -> str:
        if column.name != ENVIRONMENTS:
            return ""
        without_target = place_by_cell.get((row, ""), "")
        return place_by_cell.get((row, column.of), without_target)

    places = [[get_place(row, column) for column in table.printed] for row in table.rows]
    return TableJobs(cells, shared, places)
