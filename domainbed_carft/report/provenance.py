"""The provenance of a page: the commands, settings and versions that reproduce it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.results.formats import Grid

_OUTPUT = "OUT"  # placeholder for the folder of the sweeps
_SOFTWARE = ("matplotlib", "numpy", "jinja2")
# Values of data_dir in jobs whose datasets need no folder.
_NO_DATA_FOLDERS = (None, "", ".", "embedded")
# Recorded values that identify the CLIP model and its prompts.
_CLIP_AND_PROMPTS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


class JobCommand(NamedTuple):
    """The command of a job, as the page shows it.

    Attributes:
        place: HTML id on the page.
        folder: folder of the job below OUT.
        line: shell command.
    """

    place: str
    folder: str
    line: str


def list_software() -> str:
    """Return the packages that made a page, with their versions."""
    return ", ".join(f"{package} {version(package)}" for package in _SOFTWARE)


def list_settings(runs: Sequence[RecordedRun]) -> Grid:
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


def hash_records(runs: Iterable[RecordedRun]) -> str:
    """Return the SHA-256 of the concatenated record files, in the order of their folders."""
    folders = sorted({run.folder for run in runs}, key=os.fsencode)
    contents = [files.read_regular(Path(folder, RECORDS)) for folder in folders]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def list_commands(runs: Iterable[RecordedRun]) -> dict[str, JobCommand]:
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


def list_sweeps(folders: Iterable[Path]) -> list[tuple[str, str]]:
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
