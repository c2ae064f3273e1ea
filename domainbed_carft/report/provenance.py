"""Where the numbers of a page come from, and how to get them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import Run
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.report import chosen_jobs
from domainbed_carft.results.document import Grid

_SOFTWARE = ("matplotlib", "pandas", "numpy", "jinja2")
# What jobs have as data_dir whose data sets need no folder.
_NO_DATA_FOLDERS = (None, "", ".", "embedded")
# Hparams that say which CLIP read which prompts.
_CLIP_AND_PROMPTS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


def describe(runs: Sequence[Run]) -> dict[str, Any]:
    """Software, settings, digest of the records, and commands, by their names in the template."""
    return {
        "software": ", ".join(f"{package} {version(package)}" for package in _SOFTWARE),
        "settings": _settings(runs),
        "digest": _digest(runs),
        "commands": chosen_jobs.commands(runs),
    }


@dataclass(frozen=True)
class DeclaredSweep:
    """A sweep that a file declares: the command that launches it, and the file's text."""

    command: str
    declaration: str


def sweeps(folders: Iterable[Path]) -> list[DeclaredSweep]:
    """The sweeps in these output folders that have a copy of their declaration."""
    declared = []
    for folder in folders:
        with contextlib.suppress(OSError, CarftError):
            text = files.read_small(folder / manifest.DECLARATION_FILE).decode(errors="replace")
            words = ["carft", "sweep", "launch", manifest.DECLARATION_FILE]
            words += ["--output_dir", "OUT"]
            launched = manifest.read(folder)
            jobs = launched.jobs if launched else ()
            if any(job.args.get("data_dir") not in _NO_DATA_FOLDERS for job in jobs):
                words += ["--data_dir", "DATA"]
            if launched and launched.skip_training_in_splits is False:
                words.append("--training_in_splits")
            declared.append(DeclaredSweep(" ".join(words), text))
    return declared


def _settings(runs: Sequence[Run]) -> Grid:
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
    recorded_values = [(entry, count) for entry, count in counts.items() if entry[1] != "None"]
    for (setting, value), count in sorted(recorded_values):
        text = benchmarks.edition_label(value) if setting == EDITION else value
        rows.append([setting, text, str(count)])
    return Grid("Settings and versions", ["Setting", "Value", "Jobs"], rows, notes=[])


def _digest(runs: Iterable[Run]) -> str:
    """SHA-256 of the records of all runs, file after file in the order of their folders."""
    folders = sorted({run.folder for run in runs}, key=os.fsencode)
    contents = [files.read_small(Path(folder, RECORDS)) for folder in folders]
    return hashlib.sha256(b"".join(contents)).hexdigest()
