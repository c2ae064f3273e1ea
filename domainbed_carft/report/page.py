"""``carft report``: from folders of records to the page and its figures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import RecordWarning, Run, describe_warnings
from domainbed_carft.jobs.setting import EDITION
from domainbed_carft.report import output_folder
from domainbed_carft.report.sections import SectionMaker, unique_names
from domainbed_carft.report.styles import styles_of
from domainbed_carft.results import collect, document, order, paired, published, selection, suites
from domainbed_carft.results import collection as collecting
from domainbed_carft.results.collect import Results
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.document import Grid

PAIR = ("CARFT", "CLIPFineTune")
_SOFTWARE = ("matplotlib", "pandas", "numpy", "jinja2")
# Hparams that say which CLIP read which prompts.
_CLIP_AND_PROMPTS = ("clip_backbone", "clip_digest", "contexts", "class_names", "prompts_digest")


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote: the page ``index``, with its figures beside it.

    ``is_complete``: whether no cell of the page's tables is incomplete; ``why_no_examples``: "" if
    the page shows example pictures; ``warnings``: about unusable files.
    """

    index: Path
    is_complete: bool
    why_no_examples: str
    warnings: Sequence[RecordWarning]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "index": str(self.index),
            "complete": self.is_complete,
            "no_examples": self.why_no_examples,
            "faults": [warning._asdict() for warning in self.warnings],
        }


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    single_source: bool = False,
    pair: Sequence[str] | None = None,
    n_examples: int = 4,
    data_dir: str | None = None,
) -> Report:
    """Write the report on sweeps in ``folders`` into the folder ``output``, as ``carft report``.

    ``methods``: of selection, by default those that the sweeps name; the figures show the first.
    ``ignored``: parts of a setting that may differ between runs that are averaged.
    ``single_source``: as of `collect`. ``pair``: the
    algorithms to compare, by default PAIR if both have jobs; ``n_examples``: pictures per
    environment, of each direction, 0 for none; ``data_dir``: where the data is now.

    Raises CarftError if ``output`` has other files, if there is no record, if a method or an
    algorithm of ``pair`` has no jobs, or if a job was run twice with different records.
    """
    output_folder.require_place(output)  # before anything takes time
    results = collect_for_page(
        folders, methods=methods, ignored=ignored, single_source=single_source, pair=pair
    )
    content = build(results, n_examples=n_examples, data_dir=data_dir)
    return Report(
        index=output_folder.write(output, content),
        is_complete=content["complete"],
        why_no_examples=content["no_examples"],
        warnings=results.warnings,
    )


def collect_for_page(
    folders: Sequence[Path],
    *,
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    single_source: bool = False,
    pair: Sequence[str] | None = None,
) -> Results:
    """The results that `build` shows; arguments and errors as of `write_report`."""
    collection = collecting.gather(folders, methods, ignored, single_source=single_source)
    chosen_pair = _pair(_algorithms(collection), pair, collection.methods[0])
    return collect.build(collection, chosen_pair, compare_published=True)


def build(results: Results, *, n_examples: int = 4, data_dir: str | None = None) -> dict[str, Any]:
    """The page's content, by the names that its template uses.

    ``n_examples``: pictures per environment, of each direction; ``data_dir``: where the data is
    now, by default as recorded.
    """
    groups = results.collection.groups
    runs = results.collection.runs
    method = results.collection.methods[0]
    algorithms = _algorithms(results.collection)
    example_part = _example_part(results.pair, n_examples, data_dir)

    make_section = SectionMaker(
        styles=styles_of(algorithms), name=unique_names(), example_part=example_part
    )
    sections = [
        make_section.of_table(table, group.runs)
        for group, group_tables in zip(groups, results.tables_of_groups, strict=True)
        for table in group_tables
        if table.method == method and not table.averages
    ]
    sections += [make_section.of_suite(rows) for rows in suites.rows_by_table(results.suite_scores)]

    tables = results.tables
    averages = [table for table in tables if table.averages and len(table.columns) > 1]
    no_examples = "" if example_part else _why_no_examples(algorithms, results.pair, method)
    content = {
        "title": _title(runs),
        "method": selection.METHODS[method].title,
        "sections": sections,
        "averages": [
            document.table_grid(table) for table in (*results.tables_of_sources, *averages)
        ],
        "no_examples": no_examples,
        "paired": _paired_grid(results.differences, method),
        "published": _published_grids(results, method),
        "captions": _captions(has_suites=bool(results.suite_scores)),
        "notes": [note for group in groups for note in group.notes],
        "complete": not any(table.n_incomplete for table in tables if table.method == method),
        "warnings": describe_warnings(results.warnings),
    }
    return content | _provenance(runs)


def _algorithms(collection: Collection) -> list[str]:
    """The algorithms that have runs, in the order of rows and legends."""
    names = [run.algorithm for run in collection.runs]
    return order.ordered_algorithms(names, collection.groups[0].declared)


def _title(runs: Sequence[Run]) -> str:
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    titles = benchmarks.dataset_titles(order.environment_labels(runs))
    return f"{', '.join(titles.values())}: {left_out} left out"


def _captions(has_suites: bool) -> dict[str, Sequence[str]]:
    table_captions = document.caption()
    if has_suites:
        table_captions.append(suites.caption())
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
) -> tuple[str, str] | None:
    """Two algorithms to compare; None without a request if the default ones have no jobs."""
    first, second = requested or PAIR
    if method != selection.IN_DOMAIN and first != second and {first, second} <= {*algorithms}:
        return first, second
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


def _paired_grid(differences: Sequence[Mapping[str, Any]], method: str) -> Grid | None:
    """The table of the pair's differences by ``method``; None if there are none."""
    by_method = [entry for entry in differences if entry["selection"] == method]
    return paired.grid(by_method) if by_method else None


def _published_grids(results: Results, method: str) -> list[Grid]:
    """Tables beside published figures: of each group, if its data sets have any, and of suites."""
    grids = []
    datasets = {run.dataset for run in results.collection.runs}
    if not datasets.isdisjoint(figure["dataset"] for figure in published.figures()):
        for comparison in results.comparisons:
            entries = [entry for entry in comparison.entries if entry["selection"] == method]
            grids.append(published.grid(entries, comparison.remarks))
    return grids + suites.grids_with_published(results.suite_scores)


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
