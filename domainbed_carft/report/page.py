"""``carft report``: write the page and its figures for folders of records."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from domainbed_carft import files, text
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordedRun, RecordWarning, describe_warnings
from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.report import examples, plots, provenance
from domainbed_carft.report.examples import TargetExamples
from domainbed_carft.report.plots import Figure
from domainbed_carft.report.provenance import Provenance
from domainbed_carft.report.sections import Section, SectionMaker, unique_names
from domainbed_carft.results import comparisons, published, selection, suites
from domainbed_carft.results import rows as row_names
from domainbed_carft.results.cells import BEST, DOMAINBED, SECOND, Cell
from domainbed_carft.results.collect import Results, collect
from domainbed_carft.results.collection import Collection, Sweeps, as_collection
from domainbed_carft.results.columns import AVERAGE, COLUMNS, DEFAULT_COLUMNS
from domainbed_carft.results.comparisons import Comparison, compare_rows
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import best_hparams
from domainbed_carft.version import __version__

PAIR = ("CARFT", "CLIPFineTune")
INDEX = "index.html"
FIGURES = "figures"

_GENERATOR = '<meta name="generator" content="domainbed-carft '
_FIGURE_LINK = re.compile(rf'href="({FIGURES}/[A-Za-z0-9_.-]+\.(?:csv|png|svg))"')
_NAMED_ALGORITHMS = 4  # in the page's title
_NAMED_FILES = 3  # in a message


@dataclass(frozen=True)
class Report:
    """A report written by `write_report`.

    Attributes:
        index: path of the page; its figures are in the folder ``figures`` next to it.
        is_complete: True if the page's tables have no incomplete cells.
        no_examples_reason: the reason why the page has no example images, or "" if it has some.
        warnings: warnings about unusable files.
    """

    index: Path
    is_complete: bool
    no_examples_reason: str
    warnings: Sequence[RecordWarning]


@dataclass(frozen=True)
class Page:
    """The content of the page, for the template."""

    results: Results
    title: str
    headline: Sequence[str]  # sentences
    facts: Sequence[tuple[str, str]]  # names and values
    keys: Mapping[str, str]  # algorithm -> image of its line in the legend, as a data URI
    legend: Figure
    sections: Sequence[Section]
    averages: Sequence[Grid]
    comparisons: Sequence[Grid]
    published: Sequence[Grid]
    no_examples_reason: str
    provenance: Provenance

    @property
    def figures(self) -> list[Figure]:
        """All figures, starting with the legend."""
        return [self.legend, *(figure for section in self.sections for figure in section.figures)]

    @property
    def is_complete(self) -> bool:
        """True if the tables have no incomplete cells."""
        return not any(table.n_incomplete for table in self.results.tables)

    @property
    def comparison_captions(self) -> Sequence[str]:
        """The paragraphs below the comparisons."""
        return comparisons.CAPTION

    @property
    def notes(self) -> list[str]:
        """The differences between the runs, as sentences."""
        return [note for group in self.results.collection.groups for note in group.notes]

    @property
    def warnings(self) -> list[str]:
        """The problems found in files, one line each."""
        return describe_warnings(self.results.warnings)


def write_report(
    sweeps: Sweeps,
    output: AnyPath,
    *,
    pair: tuple[str, str] | None = None,
    n_examples: int = 4,
    data_dir: AnyPath | None = None,
    opening: Section | None = None,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    error: str = DOMAINBED.name,
    against: str | None = None,
    **reading: Any,
) -> Report:
    """Write a report on sweeps, like ``carft report``.

    The page uses the first selection method.

    Args:
        sweeps: folders of sweeps, as for `collect`.
        output: folder for the page and its figures.
        pair: the two algorithms to compare; by default CARFT and CLIPFineTune if both have jobs.
        n_examples: maximum number of example images per target and algorithm of the pair that
            predicts them correctly while the other one does not; 0 for no examples.
        data_dir: folder of the datasets if it has moved since the jobs ran.
        opening: a section to show before the sections of the datasets.
        columns: columns of the tables, as for `collect`.
        error: kind of uncertainty after the means, as for `collect`.
        against: algorithm that the others are compared with, as for `collect`.
        **reading: further arguments of `collect`.

    Returns:
        The path of the page, and the problems to report to the user.

    Raises:
        CarftError: if ``output`` contains other files, an algorithm of the pair has no jobs, or
            `collect` fails.
    """
    output = as_path(output)
    collection = as_collection(sweeps, **reading)
    if not collection.runs:
        raise CarftError(
            "there are no results to show yet: all records are from the first stage of a search, "
            "which is finished; wait for the first record of the second stage"
        )
    collection = replace(collection, methods=collection.methods[:1])
    pair = _choose_pair(collection, pair)
    results = collect(
        collection,
        compare_published=True,
        columns=columns,
        error=error,
        against=against,
    )
    require_report_folder(output)  # before drawing, which takes time

    page = _make_page(results, pair, n_examples=n_examples, data_dir=as_text(data_dir))
    if opening:
        page = replace(page, sections=[opening, *page.sections])
    _write(output, page)
    return Report(
        index=output / INDEX,
        is_complete=page.is_complete,
        no_examples_reason=page.no_examples_reason,
        warnings=results.warnings,
    )


def _choose_pair(
    collection: Collection, requested: tuple[str, str] | None
) -> tuple[str, str] | None:
    """Return the requested pair, or PAIR by default, or None if PAIR cannot be compared.

    Raises CarftError if the requested pair cannot be compared.
    """
    first, second = requested or PAIR
    if (
        first != second
        and {first, second} <= {*collection.rows}
        and collection.methods != [selection.IN_DOMAIN]
    ):
        return first, second
    if requested:
        raise CarftError(
            f"--examples {first} {second} is invalid; expected two different algorithms of "
            f"{', '.join(collection.rows)}, and a --select other than in-domain"
        )
    return None


def _make_page(
    results: Results, pair: tuple[str, str] | None, n_examples: int, data_dir: str | None
) -> Page:
    """Make the page on ``results`` of one selection method; see `write_report`."""
    collection = results.collection
    differences = compare_rows(collection, pair[1], row=pair[0]) if pair else []
    with plots.figure_style():
        maker = SectionMaker(
            results=results,
            styles=plots.get_styles(collection.rows, collection.own_methods),
            make_name=unique_names(),
            find_examples=_example_finder(pair, n_examples, data_dir),
        )
        legend = plots.draw_legend(maker.styles, maker.make_name("legend"))
        keys = plots.draw_legend_keys(maker.styles)
        sections = _sections(results, maker, differences)

    averages = [table for table in results.tables if table.averages and len(table.accuracies) > 1]
    return Page(
        results=results,
        title=_title(collection),
        headline=_headline(results, differences),
        facts=_facts(collection),
        keys=keys,
        legend=legend,
        sections=sections,
        averages=[table.grid() for table in averages],
        comparisons=comparisons.grids([*differences, *results.comparisons_against]),
        published=_published_grids(results),
        no_examples_reason=""
        if maker.find_examples
        else _explain_missing_examples(collection, pair),
        provenance=provenance.get_provenance(collection),
    )


def _sections(
    results: Results, maker: SectionMaker, differences: Sequence[Comparison]
) -> list[Section]:
    """Make a section per dataset and group, most rows first, then a section per suite."""
    entries = list(best_hparams(results.collection))
    groups = zip(results.collection.groups, results.tables_of_groups, strict=True)
    sections = [
        maker.make_table_section(
            group,
            table,
            [
                entry
                for entry in entries
                if (entry.setting, entry.dataset) == (table.setting, table.dataset)
            ],
            _table_findings(table, results, differences),
        )
        for group, tables in groups
        for table in tables
        if not table.averages
    ]
    sections.sort(key=lambda section: -len(section.table.rows))
    return [*sections, *map(maker.make_suite_section, results.suite_tables)]


def _published_grids(results: Results) -> list[Grid]:
    """Make the tables that compare groups and suites with published figures, if there are any."""
    grids = [table.grid() for table in suites.build_published(results.suite_tables)]
    datasets = {run.dataset for run in results.collection.runs}
    if datasets.isdisjoint(entry.dataset for entry in published.read_accuracies()):
        return grids
    return [*map(published.grid, results.comparisons or ()), *grids]


def _example_finder(
    pair: tuple[str, str] | None, n_examples: int, data_dir: str | None
) -> Callable[..., list[TargetExamples]] | None:
    """Return a function (environments, selected runs) -> examples; None if there are none."""
    if not (pair and n_examples > 0):
        return None
    return partial(examples.find_examples, pair=pair, count=n_examples, data_dir=data_dir)


def _explain_missing_examples(collection: Collection, pair: tuple[str, str] | None) -> str:
    """Return the reason why the page has no example images, and how to add some."""
    if pair:
        return "they are switched off by --n-examples 0."
    return (
        f"examples compare two algorithms on the targets, by default {' and '.join(PAIR)}. To "
        "compare two others, add --examples A B; the algorithms here are "
        f"{', '.join(collection.rows)}."
    )


def _title(collection: Collection) -> str:
    """Return the page's title: the datasets, the protocol, and the algorithms."""
    runs = collection.runs
    protocol = f"{'one' if any(run.test_envs for run in runs) else 'no'} domain held out"
    titles = benchmarks.dataset_titles(row_names.environment_labels(runs))
    names = collection.rows
    if len(names) > _NAMED_ALGORITHMS:
        n_others = len(names) - _NAMED_ALGORITHMS + 1
        names = [*names[: _NAMED_ALGORITHMS - 1], f"{n_others} other methods"]
    listing = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(titles.values())}, {protocol}: {listing}"


def _facts(collection: Collection) -> list[tuple[str, str]]:
    """Return names and values of facts: numbers of jobs, training time, selection method."""
    runs = collection.runs
    algorithms = {run.algorithm for run in runs}
    trials = {run.job.key.trial for run in runs}
    return [
        ("Jobs", f"{len(runs):,}"),
        ("Methods", f"{len(algorithms):,}"),
        ("Trials", f"{len(trials):,}"),
        *(("Training", duration) for duration in _training_times(runs)),
        ("Selected by", selection.METHODS[collection.methods[0]].title),
    ]


def _training_times(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the total training time if all records have times of the same device."""
    hours = [run.cost.training_hours for run in runs if run.cost.training_hours is not None]
    devices = {run.cost.device for run in runs}
    if len(devices) > 1 or len(hours) < len(runs):
        return []
    total = math.fsum(hours)
    duration = f"{total:.2g} hours" if total >= 1 else f"{60 * total:.2g} minutes"
    return [f"{duration} on {devices.pop()}"]


# The first sentences of the page and its sections


def _headline(results: Results, differences: Sequence[Comparison]) -> list[str]:
    """Return the sentences on the setting with the most rows."""
    tables = [table for table in results.tables if not table.averages]
    if not tables:
        return []
    setting = max(tables, key=lambda table: len(table.rows)).setting
    return _sentences(results, differences, setting)


def _table_findings(table: Table, results: Results, differences: Sequence[Comparison]) -> list[str]:
    """Return the sentences on a table, with the comparison if its setting has one dataset."""
    datasets = {
        entry.dataset
        for entry in results.tables
        if entry.setting == table.setting and not entry.averages
    }
    if len(datasets) == 1:
        return _sentences(results, differences, table.setting)
    return _best_averages(table)


def _sentences(results: Results, differences: Sequence[Comparison], setting: str) -> list[str]:
    """Return the sentences on one setting: the comparison of the pair, and the best averages."""
    tables = [table for table in results.tables if table.setting == setting]
    averages = [table for table in tables if table.averages and len(table.accuracies) > 1]
    dataset_tables = [table for table in tables if not table.averages]
    tables = averages if len(dataset_tables) > 1 else dataset_tables
    differences_by_unit = {entry.unit: entry for entry in differences if entry.setting == setting}
    sentences = []
    if differences_by_unit:
        by_pair = differences_by_unit.pop(comparisons.PAIR, None)
        (by_unit,) = differences_by_unit.values()  # the unit is the environment or the trial
        sentences.append(_sentence_on_difference(by_unit, tables))
        sentences.append(_sentences_on_intervals(by_unit, by_pair))
    return [*sentences, *(sentence for table in tables for sentence in _best_averages(table))]


def _best_averages(table: Table) -> list[str]:
    """Return a sentence on the two highest averages, or nothing if all are incomplete."""
    ranks = table.get_ranks(COLUMNS[AVERAGE])
    averages = table.get_column(AVERAGE)
    rows_by_rank = {
        rank: [row for row, row_rank in ranks.items() if row_rank == rank]
        for rank in (BEST, SECOND)
    }
    leaders = [
        f"{' and '.join(rows)} with {averages[rows[0]].mean:.1f}%"
        for rows in rows_by_rank.values()
        if rows
    ]
    return [f"Highest average accuracy: {', then '.join(leaders)}."] if leaders else []


def _sentence_on_difference(entry: Comparison, tables: Sequence[Table]) -> str:
    """Describe the difference of a pair, with the averages if it is their difference."""
    side = "more" if entry.average_difference >= 0 else "less"
    sentence = (
        f"{entry.algorithm} is {abs(entry.average_difference):.1f} points {side} accurate than "
        f"{entry.against} on held-out environments"
    )

    cells = {row: cell for table in tables for row, cell in table.get_column(AVERAGE).items()}
    pair = [cells.get(name, Cell()) for name in (entry.algorithm, entry.against)]
    first, second = (cell.mean if cell.is_complete else None for cell in pair)
    if first is None or second is None:
        return f"{sentence}, over the trials that both have."
    if not math.isclose(first - second, entry.average_difference, abs_tol=1e-9):
        return f"{sentence}, over the trials that both have."
    return f"{sentence}: {first:.1f}% against {second:.1f}%."


def _sentences_on_intervals(by_unit: Comparison, by_pair: Comparison | None) -> str:
    """Describe the intervals of the difference, over environments or trials and over pairs."""
    if by_unit.trials == 1:
        return "These are the runs of one trial, too few for an interval: other trials can differ."
    interval = f"{comparisons.LEVEL}% interval"
    units = f"{by_unit.unit}s"
    count = by_unit.n
    sentences = f"With one {by_unit.unit} there is no {interval} over {units}."
    if by_unit.low is not None:
        includes_0 = "" if by_unit.is_clear else ", which includes 0"
        values = by_unit.interval_text(digits=1)
        subject = f"Its {interval} over {count} {units} is"
        if not math.isclose(by_unit.mean_difference, by_unit.average_difference, abs_tol=1e-9):
            subject = (
                f"With equal weights for all {count} {units} instead of all datasets, it is "
                f"{by_unit.mean_difference:+.1f} points, with a {interval} of"
            )
        sentences = f"{subject} {values}{includes_0}."

    if by_pair and by_pair.n > count:
        sentences += (
            f" Over {by_pair.n} pairs of runs it is {by_pair.interval_text(digits=1)}, which is "
            "optimistic, because pairs of the same environment share test images."
        )
    return sentences


# The folder


def require_report_folder(folder: Path) -> None:
    """Raise CarftError unless ``folder`` is new, empty, or contains an earlier report."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        raise files.write_error(folder, error) from error

    if names and _GENERATOR not in _earlier_page(folder):
        listing = ", ".join(names[:_NAMED_FILES])
        if len(names) > _NAMED_FILES:
            listing += ", ..."
        raise CarftError(
            f"-o {folder} contains other files ({listing}); "
            "expected a new or empty folder, or the folder of an earlier report"
        )


def _write(folder: Path, page: Page) -> None:
    """Write the page and its figures, and remove outdated figures of an earlier report."""
    contents = {INDEX: _render(page)}
    for figure in page.figures:
        contents |= {f"{FIGURES}/{name}": content for name, content in figure.files.items()}

    earlier_figures = {*_FIGURE_LINK.findall(_earlier_page(folder))}
    try:
        if (folder / FIGURES).is_symlink():  # never write through a link into another folder
            (folder / FIGURES).unlink()
        for name, content in contents.items():  # the page first: it marks the folder as a report
            files.save_bytes(folder / name, content)
        for name in earlier_figures.difference(contents):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise files.write_error(folder, error) from error


def _render(page: Page) -> bytes:
    """Render the page as HTML."""
    html: str = _template().render(page=page, version=__version__)
    # Names can contain surrogates, which UTF-8 cannot encode.
    return html.encode("utf-8", "backslashreplace")


@cache
def _template() -> Any:
    templates = text.load_templates(autoescape=True)
    # Names in records are untrusted. Markup, a subclass of str, is printable already.
    templates.finalize = lambda value: text.printable(value) if type(value) is str else value
    return templates.get_template("report/page.html.j2")


def _earlier_page(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return files.read_regular(folder / INDEX).decode(errors="replace")
    return ""
