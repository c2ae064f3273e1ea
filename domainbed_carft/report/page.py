"""``carft report``: from folders of records to the page and its figures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordWarning, Run, describe_warnings
from domainbed_carft.paths import AnyPath, as_path, as_paths, as_text
from domainbed_carft.report import output_folder, page_tables, provenance, summary
from domainbed_carft.report.legend import make_legend
from domainbed_carft.report.sections import SectionMaker, unique_names
from domainbed_carft.report.styles import styles_of
from domainbed_carft.results import (
    collect,
    document,
    rows,
    selection,
    suites,
)
from domainbed_carft.results import collection as collecting
from domainbed_carft.results.collect import Results
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.table_options import DEFAULT_OPTIONS, TableOptions
from domainbed_carft.results.top import BestHparams, best_hparams

PAIR = ("CARFT", "CLIPFineTune")
_NAMED_ALGORITHMS = 4  # in the page's title


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


@dataclass(frozen=True)
class PageTables:
    """Which tables a page has, as the options of ``carft collect`` say.

    ``options``: as `table_options.by_name` makes them; ``by`` and ``against``: as of `collect`;
    ``power_difference``: as its ``power``.
    """

    options: TableOptions = DEFAULT_OPTIONS
    by: Sequence[str] = ()
    against: str | None = None
    power_difference: float | None = None


DEFAULT_TABLES = PageTables()


def write_report(
    folders: AnyPath | Iterable[AnyPath],
    output: AnyPath,
    *,
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    pair: Sequence[str] | None = None,
    tables: PageTables = DEFAULT_TABLES,
    n_examples: int = 4,
    data_dir: AnyPath | None = None,
) -> Report:
    """Write the report on sweeps in ``folders`` into the folder ``output``, as ``carft report``.

    ``folders``: one output folder of a sweep, or several. ``methods``: of selection, by default
    those that the sweeps name; the figures show the first. ``ignored``: parts of a setting that may
    differ between runs that are averaged. ``pair``: the
    algorithms to compare, by default PAIR if both have jobs; ``tables``: which tables there are;
    ``n_examples``: pictures per environment, of each direction, 0 for none; ``data_dir``: where the
    data is now.

    Raises CarftError if ``output`` has other files, if there is no record, if a method or an
    algorithm of ``pair`` has no jobs, or if a job was run twice with different records.
    """
    folders = as_paths(folders)
    output = as_path(output)
    output_folder.require_place(output)  # before anything takes time
    results = collect_for_page(
        folders,
        methods=methods,
        ignored=ignored,
        pair=pair,
        tables=tables,
    )
    content = build(results, n_examples=n_examples, data_dir=as_text(data_dir))
    content["sweeps"] = provenance.sweeps(folders)
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
    pair: Sequence[str] | None = None,
    tables: PageTables = DEFAULT_TABLES,
) -> Results:
    """The results that `build` shows; arguments and errors as of `write_report`."""
    collection = collecting.gather(folders, methods, ignored, by=tables.by)
    chosen_pair = _pair(_algorithms(collection), pair, collection.methods[0])
    return collect.build(
        collection,
        chosen_pair,
        compare_published=True,
        options=tables.options,
        against=tables.against,
        power_difference=tables.power_difference,
    )


def build(results: Results, *, n_examples: int = 4, data_dir: str | None = None) -> dict[str, Any]:
    """The page's content, by the names that its template uses.

    ``n_examples``: pictures per environment, of each direction; ``data_dir``: where the data is
    now, by default as recorded.
    """
    groups = results.collection.groups
    runs = results.collection.runs
    if not runs:
        raise CarftError(
            "there is nothing to show yet: by sweep.json all jobs with records are of the first "
            "stage of a search that is over; wait for the first record of the second stage"
        )
    method = results.collection.methods[0]
    algorithms = _algorithms(results.collection)
    example_part = _example_part(results.pair, n_examples, data_dir)
    make_section = SectionMaker(
        styles=styles_of(algorithms),
        name=unique_names(),
        example_part=example_part,
        joint_rows=results.collection.joint_rows,
    )

    sections = _sections(results, method, make_section)
    tables = results.tables
    averages = [table for table in tables if table.averages and len(table.columns) > 1]
    no_examples = "" if example_part else _why_no_examples(algorithms, results.pair, method)
    content = {
        "title": _title(runs, algorithms),
        "method": selection.METHODS[method].title,
        "headline": _headline(results, method, sections),
        "facts": summary.facts(runs, method),
        "legend": make_legend(make_section.styles, make_section.name("legend")),
        "sections": sections,
        "averages": [
            document.table_grid(table) for table in (*results.tables_of_sources, *averages)
        ],
        "no_examples": no_examples,
        "paired": page_tables.grids_of_comparisons(results, method),
        "published": page_tables.grids_of_published(results, method),
        "captions": page_tables.captions(results),
        "notes": [note for group in groups for note in group.notes],
        "complete": not any(table.n_incomplete for table in tables if table.method == method),
        "warnings": describe_warnings(results.warnings),
    }
    return content | provenance.describe(runs) | {"sweeps": []}


def _algorithms(collection: Collection) -> list[str]:
    """The algorithms that have runs, in the order of rows and legends."""
    return collection.rows


def _title(runs: Sequence[Run], algorithms: Sequence[str]) -> str:
    """The data sets, what was left out, and the algorithms that are compared."""
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    titles = benchmarks.dataset_titles(rows.environment_labels(runs))
    names = algorithms
    if len(algorithms) > _NAMED_ALGORITHMS:
        names = [*algorithms[: _NAMED_ALGORITHMS - 1]]
        names.append(f"{len(algorithms) - len(names)} other methods")
    listing = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(titles.values())}, {left_out} left out: {listing}"


def _sections(results: Results, method: str, make: SectionMaker) -> list[dict[str, Any]]:
    """A section for each data set of each group, those of most rows first, then each suite's."""
    collection = results.collection
    entries_of_table: dict[tuple[str, str], list[BestHparams]] = {}
    for entry in best_hparams(collection, methods=[method]):
        entries_of_table.setdefault((entry.setting, entry.dataset), []).append(entry)

    sections = []
    for group, group_tables in zip(collection.groups, results.tables_of_groups, strict=True):
        of_method = [table for table in group_tables if table.method == method]
        for table in of_method:
            if not (table.averages or table.one_setting):
                section = make.of_table(
                    table,
                    group.runs,
                    entries=entries_of_table.get((table.setting, table.dataset), []),
                    first_stage=collection.first_stages,
                )
                section["more_tables"] = page_tables.grids_below(table, of_method)
                section["findings"] = summary.findings(table)
                if len({other.dataset for other in of_method if not other.averages}) == 1:
                    section["findings"] = summary.headline(results, method, table.setting)
                sections.append(section)

    sections.sort(key=lambda section: -len(section["table"].rows))
    return sections + [make.of_suite(rows) for rows in suites.rows_by_table(results.suite_scores)]


def _headline(results: Results, method: str, sections: Sequence[dict[str, Any]]) -> list[str]:
    """What the page says first: of the first section's setting. That section does not repeat it."""
    sentences = summary.headline(results, method, sections[0]["setting"]) if sections else []
    if sections and sections[0]["findings"] == sentences:
        sections[0]["findings"] = []
    return sentences


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
        f"{', '.join(algorithms)}, such as --examples {shlex.join(algorithms[:2])}."
    )


def _example_part(
    pair: Sequence[str] | None, n_examples: int, data_dir: str | None
) -> Callable[..., dict[str, Any]] | None:
    """What makes the examples of a table and its runs; None if none are to be shown."""
    if not (pair and n_examples):
        return None
    from domainbed_carft.report import examples  # which loads torch

    return partial(examples.part, pair=pair, count=n_examples, data_dir=data_dir)
