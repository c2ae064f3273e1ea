"""What ``carft report`` does: from folders of records to the page and its figures."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import Run
from domainbed_carft.report import sections, writing
from domainbed_carft.report.content import Wanted
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import document, labels, paired, published, selection, tables
from domainbed_carft.results.document import Grid
from domainbed_carft.text import counted, inflected, shown

PAIR = ("CARFT", "CLIPFineTune")
_DRAWN_BY = ("matplotlib", "pandas", "numpy", "jinja2")
# Hparams that say which CLIP read which words.
_WORDS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


def run(arguments: argparse.Namespace) -> None:
    """``carft report``."""
    if arguments.n_examples < 1:
        raise CarftError(
            f"--n_examples is {arguments.n_examples}, expected at least 1; --no_examples for none"
        )
    wanted = Wanted(
        arguments.folders, arguments.select, arguments.ignore, arguments.examples,
        None if arguments.no_examples else arguments.n_examples, arguments.data_dir,
    )  # fmt: skip
    writing.require_place(arguments.output)  # before anything takes time
    page = build(wanted)
    index = writing.write(arguments.output, page)
    for line in page["faults"]:
        print(shown(line), file=sys.stderr)
    if not page["complete"]:
        print("Some cells are incomplete; notes on the page say why.", file=sys.stderr)
    print(f"Report: {shown(str(index))}")


def build(wanted: Wanted) -> dict[str, Any]:
    """Read everything and say what the page says: what its template asks for, by name.

    Raises CarftError as ``collecting.gather`` does, for a method of selection that there are no
    jobs for, and for algorithms in ``pair`` that no job is of.
    """
    collection = collecting.gather(wanted.folders, ignored=wanted.ignored, also=wanted.select)
    method = wanted.select or collection.methods[0]
    groups = collection.groups
    runs = [run for group in groups for run in group.runs]
    pair = _pair(labels.algorithms(run.algorithm for run in runs), wanted.pair, method)
    built = [tables.build(group, collection.methods) for group in groups]
    flat = [table for own in built for table in own]
    averages = [table for table in flat if table.averages and sections.has_values(table)]
    differences: list[paired.Difference] = []
    if pair and method != selection.IN_DOMAIN:
        with contextlib.suppress(CarftError):  # they share no trial
            differences = paired.compare(groups, [method], *pair)
    known = {figure.dataset for figure in published.figures()}.intersection(r.dataset for r in runs)
    compared = [published.compare(group, own) for group, own in zip(groups, built) if known]
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    numbers = {
        "data set": len({run.dataset for run in runs}),
        "algorithm": len({run.algorithm for run in runs}),
        "trial": len({run.trial for run in runs}),
        "job": collection.jobs,
        "record": collection.records,
    }
    return {
        "title": f"{', '.join(labels.labels(runs))}: {left_out} left out",
        "method": selection.METHODS[method].title,
        "facts": [(f"{count:,}", inflected(count, word)) for word, count in numbers.items()],
        "findings": [_finding(one, *pair) for one in differences if pair],
        "sections": sections.build(groups, built, method, pair, wanted),
        "averages": [document.grid(table) for table in averages if len(table.columns) > 1],
        "paired": paired.grid(differences, *pair) if pair and differences else None,
        "published": [
            published.grid([one for one in found if one.selection == method], remarks)
            for found, remarks in compared
        ],
        "overview": published.overview(collection.compare_with) if known else None,
        "captions": {
            "tables": document.CAPTION,
            "paired": [paired.CAPTION],
            "published": published.CAPTION,
        },
        "notes": [note for group in groups for note in group.notes],
        "complete": not any(table.incomplete for table in flat if table.method == method),
        "faults": records.told(collection.faults),
        "command": _command(wanted),
        "software": ", ".join(f"{name} {version(name)}" for name in _DRAWN_BY),
        "settings": _settings(runs),
        "digest": _digest(runs),
        "commands": [_line(run) for run in runs],
    }


def _pair(
    algorithms: Sequence[str], asked: Sequence[str] | None, method: str
) -> Sequence[str] | None:
    """The two algorithms to compare, None if there are not both of ours and none were asked for."""
    if asked is None:
        return PAIR if set(PAIR) <= set(algorithms) else None
    if method == selection.IN_DOMAIN or asked[0] == asked[1] or not set(asked) <= set(algorithms):
        raise CarftError(
            f"--examples {' '.join(asked)}: expected two different algorithms of "
            f"{', '.join(algorithms)}, and a --select that leaves an environment out"
        )
    return asked


def _finding(one: paired.Difference, a: str, b: str) -> str:
    """A sentence on the one thing that a reader wants to know first; a table has the rest."""
    word = "above" if one.mean_difference >= 0 else "below"
    text = (
        f"{a} is {abs(one.mean_difference):.1f} points {word} {b} on the environments left out: "
        f"the mean over {counted(one.pairs, 'pair')} of (environment, trial)"
    )
    if one.low is not None and one.high is not None:
        text += f"; {paired.LEVEL}% interval {one.low:+.1f} to {one.high:+.1f}"
    return f"{one.setting}: {text}." if one.setting else f"{text}."


def _command(wanted: Wanted) -> str:
    words = ["carft", "report", *map(str, wanted.folders)]
    words += ["--select", wanted.select] if wanted.select else []
    words += ["--ignore", ",".join(wanted.ignored)] if wanted.ignored else []
    words += ["--examples", *wanted.pair] if wanted.pair else []
    words += ["--no_examples"] if wanted.examples is None else []
    words += ["--n_examples", str(wanted.examples)] if wanted.examples not in (None, 4) else []
    words += ["--data_dir", wanted.data_dir] if wanted.data_dir else []
    return shlex.join(words)


def _settings(runs: Sequence[Run]) -> Grid:
    """Arguments, hparams and versions of the jobs; which CLIP they had, and which words it read."""
    parts: Counter[tuple[str, str]] = Counter()
    for run in runs:
        told = {
            f"{n} on {run.dataset}": str(run.recorded[n]) for n in _WORDS if run.recorded.get(n)
        }
        parts.update({**run.setting, **told}.items())
    rows = [[part, value, str(count)] for (part, value), count in parts.items()]
    return Grid("Settings and versions", ["Setting", "Value", "Jobs"], rows, [])


def _digest(runs: Iterable[Run]) -> str:
    """SHA-256 of the records of all runs, file after file in the order of their folders."""
    whole = hashlib.sha256()
    for folder in sorted({run.folder for run in runs}, key=os.fsencode):
        whole.update(Path(folder, RECORDS).read_bytes())
    return whole.hexdigest()


def _line(run: Run) -> str:
    """A job's command, for a shell, with the arguments that were recorded."""
    return replace(run.job, folder=Path("OUT", run.job.folder.name)).line
