"""``carft report``: from folders of records to the page and its figures."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import Run
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.report import output_folder
from domainbed_carft.report.sections import SectionMaker, unique_names
from domainbed_carft.report.styles import styles_of
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import document, order, paired, published, selection, suites, tables
from domainbed_carft.results.document import Grid
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table
from domainbed_carft.text import shown

PAIR = ("CARFT", "CLIPFineTune")
_SOFTWARE = ("matplotlib", "pandas", "numpy", "jinja2")
# Hparams that say which CLIP read which prompts.
_CLIP_AND_PROMPTS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


def run(arguments: argparse.Namespace) -> None:
    """Run ``carft report``: read the records, write the page, print what is incomplete."""
    output_folder.require_place(arguments.output)  # before anything takes time
    page = build(
        arguments.folders,
        methods=arguments.select,
        ignored=arguments.ignore,
        requested_pair=arguments.examples,
        n_examples=0 if arguments.no_examples else max(0, arguments.n_examples),
        data_dir=arguments.data_dir,
    )
    index = output_folder.write(arguments.output, page)

    for line in page["faults"]:
        print(shown(line), file=sys.stderr)
    if page["no_examples"]:
        print(f"No example pictures: {shown(page['no_examples'])}", file=sys.stderr)
    if not page["complete"]:
        print("Some cells are incomplete; see the notes on the page.", file=sys.stderr)
    print(f"Report: {shown(str(index))}")


def build(
    folders: Sequence[Path],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    requested_pair: Sequence[str] | None = None,
    n_examples: int = 4,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Read everything; returns the page's content, by the names that its template uses.

    ``methods``: of selection, by default those that the sweeps name; the figures show the first.
    ``requested_pair``: the algorithms to compare, by default PAIR if both have jobs;
    ``n_examples``: of each direction. Raises CarftError if there is no record, if a method or an
    algorithm of ``requested_pair`` has no jobs, or if a job was run twice with different records.
    """
    collection = collecting.gather(folders, methods, ignored)
    method = collection.methods[0]
    groups = collection.groups
    runs = collection.runs
    algorithms = order.ordered_algorithms((run.algorithm for run in runs), groups[0].declared)
    pair = _pair(algorithms, requested_pair, method)

    tables_of_groups = [tables.build(group, collection.methods) for group in groups]
    all_tables = [table for group_tables in tables_of_groups for table in group_tables]
    scores = [row for group in groups for row in suites.scores(group)]

    example_part = _example_part(pair, n_examples, data_dir)
    make_section = SectionMaker(
        styles=styles_of(algorithms), name=unique_names(), example_part=example_part
    )
    sections = [
        make_section.of_table(table, group.runs)
        for group, group_tables in zip(groups, tables_of_groups)
        for table in group_tables
        if table.method == method and not table.averages
    ]
    sections += [make_section.of_suite(rows) for rows in suites.tabled(scores)]
    averages = [table for table in all_tables if table.averages and len(table.columns) > 1]

    content = {
        "title": _title(runs),
        "method": selection.METHODS[method].title,
        "sections": sections,
        "averages": [document.table_grid(table) for table in averages],
        "no_examples": "" if example_part else _why_no_examples(algorithms, pair, method),
        "paired": _paired_grid(groups, method, pair) if pair else None,
        "published": _published_grids(groups, tables_of_groups, method)
        + suites.grids_with_published(scores),
        "captions": _captions(has_suites=bool(scores)),
        "notes": [note for group in groups for note in group.notes],
        "complete": not any(table.incomplete for table in all_tables if table.method == method),
        "faults": records.describe_warnings(collection.warnings),
    }
    return content | _provenance(runs)


def _title(runs: Sequence[Run]) -> str:
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    titles = benchmarks.dataset_titles(order.environment_labels(runs))
    return f"{', '.join(titles.values())}: {left_out} left out"


def _captions(has_suites: bool) -> dict[str, Sequence[str]]:
    table_captions = [*document.CAPTION]
    if has_suites:
        table_captions.append(suites.CAPTION)
    return {"tables": table_captions, "paired": [paired.CAPTION], "published": published.CAPTION}


def _provenance(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page says about where its numbers come from, and how to get them again."""
    return {
        "software": ", ".join(f"{package} {version(package)}" for package in _SOFTWARE),
        "settings": _settings(runs),
        "digest": _digest(runs),
        "commands": _commands(runs),
    }


def _pair(
    algorithms: Sequence[str], requested: Sequence[str] | None, method: str
) -> Sequence[str] | None:
    """Two algorithms to compare; None without a request if the default ones have no jobs."""
    pair = requested or PAIR
    if method != selection.IN_DOMAIN and pair[0] != pair[1] and {*pair} <= {*algorithms}:
        return pair
    if requested:
        raise CarftError(
            f"--examples {' '.join(requested)}: expected two different algorithms of "
            f"{', '.join(algorithms)}, and a --select other than in-domain"
        )
    return None


def _why_no_examples(algorithms: Sequence[str], pair: Sequence[str] | None, method: str) -> str:
    """Why the page shows no example pictures, and how to get some.

    ``pair``: the algorithms that could be compared, None without a paired comparison.
    """
    if pair:
        return "they were switched off. For pictures, omit --no_examples and --n_examples 0."
    if method == selection.IN_DOMAIN:
        return "these jobs left no environment out, so there are no pictures of an unseen one."
    if len(algorithms) < 2:
        return f"they compare two algorithms, and these jobs are all of {algorithms[0]}."

    missing = " and ".join(name for name in PAIR if name not in algorithms)
    return (
        f"by default they compare {' and '.join(PAIR)}, and there are no jobs of {missing}. For "
        f"pictures and a paired comparison, add --examples A B, with two of "
        f"{', '.join(algorithms)}, such as --examples {algorithms[0]} {algorithms[1]}."
    )


def _example_part(
    pair: Sequence[str] | None, n_examples: int, data_dir: str | None
) -> Callable[..., dict[str, Any]] | None:
    """What makes the examples of a table and its runs; None if none are to be shown."""
    if not (pair and n_examples):
        return None
    from domainbed_carft.report import examples  # which loads torch

    return partial(examples.part, pair=pair, count=n_examples, data_dir=data_dir)


def _paired_grid(groups: Sequence[Group], method: str, pair: Sequence[str]) -> Grid | None:
    """The table of the pair's differences; None if the two share no trial."""
    first, second = pair
    try:
        comparisons = paired.compare(groups, [method], first, second)
    except CarftError:
        return None
    return paired.grid(comparisons, first, second)


def _published_grids(
    groups: Sequence[Group], tables_of_groups: Sequence[Sequence[Table]], method: str
) -> list[Grid]:
    """A table of each group beside published figures, if its data sets have any."""
    datasets = {run.dataset for group in groups for run in group.runs}
    if datasets.isdisjoint(figure["dataset"] for figure in published.figures()):
        return []

    grids = []
    for group, group_tables in zip(groups, tables_of_groups):
        comparisons, remarks = published.compare(group, group_tables)
        by_method = [comparison for comparison in comparisons if comparison["selection"] == method]
        grids.append(published.grid(by_method, remarks))
    return grids


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
    for (setting, value), count in counts.items():
        text = benchmarks.edition_label(value) if setting == EDITION else value
        rows.append([setting, text, str(count)])
    return Grid("Settings and versions", ["Setting", "Value", "Jobs"], rows, notes=[])


def _digest(runs: Iterable[Run]) -> str:
    """SHA-256 of the records of all runs, file after file in the order of their folders."""
    folders = sorted({run.folder for run in runs}, key=os.fsencode)
    contents = [Path(folder, RECORDS).read_bytes() for folder in folders]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _commands(runs: Iterable[Run]) -> list[str]:
    """The command lines of the jobs for a shell, with the arguments that were recorded."""
    lines = []
    for run in runs:
        folder = Path("OUT", run.job.folder.name)
        lines.append(replace(run.job, folder=folder).line)
    return lines
