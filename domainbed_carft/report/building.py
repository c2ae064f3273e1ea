"""``carft report``: from folders of records to the page and its figures."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import Run
from domainbed_carft.report import figures, frames, writing
from domainbed_carft.report.looks import Looks, looks_of
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import document, paired, published, selection, suites, tables
from domainbed_carft.results.document import Grid
from domainbed_carft.results.tables import Table
from domainbed_carft.text import shown

PAIR = ("CARFT", "CLIPFineTune")
_DRAWN_BY = ("matplotlib", "pandas", "numpy", "jinja2")
# Hparams that say which CLIP read which words.
_WORDS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


def run(arguments: argparse.Namespace) -> None:
    """``carft report``."""
    writing.require_place(arguments.output)  # before anything takes time
    page = build(
        arguments.folders, arguments.select, arguments.ignore, arguments.examples,
        0 if arguments.no_examples else max(0, arguments.n_examples), arguments.data_dir,
    )  # fmt: skip
    index = writing.write(arguments.output, page)
    for line in page["faults"]:
        print(shown(line), file=sys.stderr)
    if not page["complete"]:
        print("Some cells are incomplete; see the notes on the page.", file=sys.stderr)
    print(f"Report: {shown(str(index))}")


def build(
    folders: Sequence[Path], methods: Sequence[str] | None = None, ignored: Sequence[str] = (),
    asked: Sequence[str] | None = None, count: int = 4, data_dir: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Read everything; returns the page's content, by the names that its template uses.

    ``asked``: the algorithms to compare, by default PAIR if both are there; ``count``: examples of
    each direction. Raises CarftError as ``collecting.gather``, and for an ``asked`` without jobs.
    """
    collection = collecting.gather(folders, methods, ignored)
    method = collection.methods[0]
    groups = collection.groups
    runs = [run for group in groups for run in group.runs]
    algorithms = tables.algorithms(run.algorithm for run in runs)
    pair = _pair(algorithms, asked, method)
    show = None
    if pair and count:
        from domainbed_carft.report import examples  # which loads torch

        show = partial(examples.part, pair=pair, most=count, data_dir=data_dir)
    built = [tables.build(group, collection.methods) for group in groups]
    flat = [table for own in built for table in own]
    differences: list[dict[str, Any]] = []
    if pair:
        with contextlib.suppress(CarftError):  # they share no trial
            differences = paired.compare(groups, [method], *pair)
    known = {figure["dataset"] for figure in published.figures()} & {run.dataset for run in runs}
    compared = [published.compare(group, own) for group, own in zip(groups, built) if known]
    scores = [row for group in groups for row in suites.scores(group)]
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    looks, name = looks_of(algorithms), _names()
    return {
        "title": f"{', '.join(tables.labels(runs))}: {left_out} left out",
        "method": selection.METHODS[method].title,
        "sections": [
            _section(table, group.runs, group.title, looks, name, show)
            for group, own in zip(groups, built)
            for table in own
            if table.method == method and not table.averages
        ]
        + [_suite(rows, looks, name) for rows in suites.tabled(scores)],
        "averages": [
            document.table_grid(table)
            for table in flat
            if table.averages and len(table.columns) > 1
        ],
        "paired": paired.grid(differences, *pair) if pair and differences else None,
        "published": [
            published.grid([one for one in found if one["selection"] == method], remarks)
            for found, remarks in compared
        ]
        + suites.grids_with_published(scores),
        "captions": {
            "tables": (*document.CAPTION, *([suites.CAPTION] if scores else [])),
            "paired": [paired.CAPTION],
            "published": published.CAPTION,
        },
        "notes": [note for group in groups for note in group.notes],
        "complete": not any(table.incomplete for table in flat if table.method == method),
        "faults": records.describe_warnings(collection.warnings),
        "software": ", ".join(f"{name} {version(name)}" for name in _DRAWN_BY),
        "settings": _settings(runs),
        "digest": _digest(runs),
        # For a shell, with the arguments that were recorded.
        "commands": [replace(r.job, folder=Path("OUT", r.job.folder.name)).line for r in runs],
    }


def _pair(
    algorithms: Sequence[str], asked: Sequence[str] | None, method: str
) -> Sequence[str] | None:
    pair = asked or PAIR
    if method != selection.IN_DOMAIN and pair[0] != pair[1] and {*pair} <= {*algorithms}:
        return pair
    if asked:
        raise CarftError(
            f"--examples {' '.join(asked)}: expected two different algorithms of "
            f"{', '.join(algorithms)}, and a --select other than in-domain"
        )
    return None


def _settings(runs: Sequence[Run]) -> Grid:
    """Arguments, hparams and versions of the jobs; which CLIP they had, and which words it read."""
    parts: Counter[tuple[str, str]] = Counter()
    for run in runs:
        known = run.recorded
        words = {f"{n} on {run.dataset}": str(known[n]) for n in _WORDS if known.get(n)}
        parts.update({**run.setting, **words}.items())
    rows = [[part, value, str(count)] for (part, value), count in parts.items()]
    return Grid("Settings and versions", ["Setting", "Value", "Jobs"], rows, [])


def _digest(runs: Iterable[Run]) -> str:
    """SHA-256 of the records of all runs, file after file in the order of their folders."""
    folders = sorted({run.folder for run in runs}, key=os.fsencode)
    return hashlib.sha256(b"".join(Path(f, RECORDS).read_bytes() for f in folders)).hexdigest()


def _names() -> Callable[..., str]:
    """A maker of unique names for files and places on the page, from words."""
    given: Counter[str] = Counter()

    def name(*words: str) -> str:
        plain = (re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.")[:60] or "_" for word in words)
        stem = "-".join(plain)
        given[stem] += 1
        return stem if given[stem] == 1 else f"{stem}-{given[stem]}"

    return name


def _section(
    table: Table, runs: Sequence[Run], setting: str, looks: Looks,
    name: Callable[..., str], show: Callable[..., dict[str, Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    dataset, identity = table.dataset, name("data", table.dataset)
    runs = [run for run in runs if run.dataset == dataset]
    rows = frames.checkpoints(runs, table.method)
    chosen = rows[rows["selected"]].drop(columns="step")
    means = frames.over_targets(rows, frames.DRIFT)
    drawn: dict[str, list[figures.Figure | None]] = {
        "bars": [*figures.bars(table, looks, name)],
        "steps": [
            figures.curves(at, name(dataset, "over_steps", at), some, figures.ACCURACY, looks)
            for at, some in _places(table, rows)
        ],
        "robustness": [
            figures.marks(at, name(dataset, "robustness", at), some, looks)
            for at, some in _places(table, chosen)
        ],
        "drift": [
            figures.curves(dataset, name(dataset, "context_drift"), means, figures.DRIFT, looks)
        ],
    }
    # A part is of a kind that the template has title and text for, also where nothing is drawn.
    parts = [_part(kind, *found) for kind, found in drawn.items()]
    # Of means, what reads the same is as good.
    cells = [[*(cell.mean for cell in row.cells), row.average] for row in table.rows]
    printed = pd.DataFrame(cells, dtype=float).round(1)
    return {
        "id": identity,
        "title": "; ".join(filter(None, [dataset, setting])),
        "table": document.table_grid(table),
        "best": (printed == printed.max()).to_numpy().tolist(),
        "parts": [*parts, show(table, runs)] if show else parts,
    }


def _part(kind: str, *drawn: figures.Figure | None) -> dict[str, Any]:
    return {"kind": kind, "figures": list(filter(None, drawn)), "targets": ()}


def _suite(rows: Sequence[suites.Scores], looks: Looks, name: Callable[..., str]) -> dict[str, Any]:
    """The section of a suite: its table, and where it has shifts, the picture."""
    table, identity = suites.grid(rows), name("suite", rows[0].suite)
    drawn = figures.suite(table.title, identity, suites.points(rows), looks)
    parts = [_part("suite", drawn)] if drawn else []
    return {"id": identity, "title": table.title, "table": table, "best": None, "parts": parts}


def _places(table: Table, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and the rows of all environments together, then of each."""
    if (rows["target"] == frames.NOTHING).any():  # as in all of them
        yield "nothing left out", rows
        return
    if rows["target"].nunique() > 1:
        together = frames.over_targets(rows, ["in_domain", "out_of_domain"])
        if not together.empty:
            yield "mean over environments", together
    for target, label in enumerate(table.columns):
        mine = rows[rows["target"] == target]
        if not mine.empty:
            yield f"{label} left out", mine
