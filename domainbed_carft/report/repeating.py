"""What it takes to repeat a sweep: versions, settings, words, commands, and digests of records."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import domainbed_carft
from domainbed_carft import files
from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs import job, records, setting
from domainbed_carft.jobs.records import Run
from domainbed_carft.report.content import Digest, Repeat
from domainbed_carft.results import labels as environments
from domainbed_carft.results.document import Grid

_VERSION = setting.KINDS["versions"]
_IDENTITY = ("dataset", "algorithm", "trial_seed", "hparams_seed", "test_envs")
_DRAWN_BY = ("matplotlib", "pandas", "numpy", "jinja2")
# What decides the words that CLIP reads, and which CLIP it is.
_WORDS = ("clip_backbone", "contexts", "class_names", "prompts_digest")


def collect(folders: Sequence[Path], runs: Sequence[Run], command: str) -> Repeat:
    """Of all runs; ``command`` is that of the report, without where it is written."""
    sums = {run.folder: _sha256(os.path.join(run.folder, job_folder.RECORDS)) for run in runs}
    used = ", ".join(f"{name} {version(name)}" for name in _DRAWN_BY)
    return Repeat(
        command,
        f"domainbed-carft {domainbed_carft.__version__} with {used}",
        _versions(runs),
        _settings(runs),
        _words(runs),
        [digest(folder) for folder in folders],
        _jobs(runs, sums),
        [_command(run) for run in runs],
    )


def digest(folder: Path | str) -> Digest:
    """SHA-256 of what ``sha256sum`` prints of all results.jsonl, sorted by their paths' bytes.

    Its lines end with NUL (-z), for otherwise it escapes some names.
    """
    names = sorted(_found(str(folder)), key=os.fsencode)
    lines = [f"{_sha256(os.path.join(folder, name))}  {name}\0" for name in names]
    whole = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    command = (
        f"cd {shlex.quote(str(folder))} && find . -maxdepth {records.DEPTH + 1} "
        f"-name {job_folder.RECORDS} -xtype f -not -path '*/.*/*' -print0 "
        "| LC_ALL=C sort -z | xargs -0 sha256sum -z | sha256sum"
    )
    return Digest(str(folder), len(names), whole, command)


def _found(folder: str) -> Iterator[str]:
    """What ``find`` finds: no links to folders, but what lies within the folder of a job, too."""
    for here, folders, _ in os.walk(folder):
        inner = os.path.relpath(here, folder)
        depth = 0 if inner == os.curdir else inner.count(os.sep) + 1
        folders[:] = [n for n in folders if not n.startswith(".")] if depth < records.DEPTH else []
        if os.path.isfile(os.path.join(here, job_folder.RECORDS)):
            yield os.path.join(os.curdir, *([inner] if depth else []), job_folder.RECORDS)


def _sha256(path: str) -> str:
    try:
        return files.sha256(path)
    except OSError:
        return "unreadable"


def _versions(runs: Sequence[Run]) -> Grid:
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        for part, value in run.setting.items():
            if part.startswith(_VERSION):
                values = found.setdefault(part.removeprefix(_VERSION), {})
                values[value] = values.get(value, 0) + 1
    rows = [
        [name, value, str(count)]
        for name, values in found.items()
        for value, count in values.items()
    ]
    notes = [] if rows else ["No job has recorded any: they stand in out.txt, beside the records."]
    return Grid("Versions that the jobs ran with", ["Package", "Version", "Jobs"], rows, notes)


def _settings(runs: Sequence[Run]) -> Grid:
    """Parts of the settings but versions, with whose they are where they are not all runs'."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        for part, value in run.setting.items():
            if not part.startswith(_VERSION):
                who = found.setdefault(part, {}).setdefault(value, {})
                who[f"{run.algorithm} on {run.dataset}"] = None
    everybody = len({(run.algorithm, run.dataset) for run in runs})
    rows = [
        [part, value, "all" if len(who) == everybody else ", ".join(who)]
        for part, values in found.items()
        for value, who in values.items()
    ]
    return Grid("Settings", ["Setting", "Value", "Of"], rows, [])


def _words(runs: Sequence[Run]) -> Grid:
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for run in runs:
        hparams = json.loads(run.hparams)
        if "prompts_digest" in hparams:
            words = tuple(str(hparams.get(name, "")) for name in _WORDS)
            found.setdefault((run.dataset, *words), {})[run.algorithm] = None
    rows = [[*key, ", ".join(environments.algorithms(who))] for key, who in found.items()]
    header = ["Data set", "CLIP", "Contexts", "Class names", "Digest of the words", "Algorithms"]
    return Grid("CLIP and the words that it read", header, rows, [])


def _jobs(runs: Sequence[Run], sums: Mapping[str, str]) -> Grid:
    labels = environments.labels(runs)
    rows = [
        [
            Path(run.folder).name, run.dataset, run.algorithm,
            ", ".join((run.environments or labels[run.dataset])[i] for i in run.test_envs)
            or "nothing",
            str(run.trial), str(run.choice), str(run.seed), f"{max(run.steps):g}",
            "yes" if run.done else "no", sums[run.folder],
        ]
        for run in runs
    ]  # fmt: skip
    header = [
        "Folder", "Data set", "Algorithm", "Left out", "Trial", "hparams_seed", "Seed", "Last step",
        "Finished", "SHA-256 of results.jsonl",
    ]  # fmt: skip
    return Grid("Jobs", header, rows, [])


def _command(run: Run) -> str:
    """A line for a shell: the arguments that the job was described with, else those recorded."""
    recorded = dict(next(records.of_run(run), {"args": {}})["args"])
    described = _described(run.folder)
    # Of a folder that others have written to since, the description is another job's.
    given = described if all(described.get(k) == recorded.get(k) for k in _IDENTITY) else recorded
    return shlex.join(job.command({**given, "output_dir": f"OUT/{Path(run.folder).name}"}))


def _described(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, job_folder.DESCRIPTION)
    try:
        if not os.path.isfile(path):  # a named pipe would be waited for without an end
            return {}
        with open(path, encoding="utf-8") as file:
            found = json.load(file)["train_args"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
