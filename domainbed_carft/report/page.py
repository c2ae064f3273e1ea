"""``carft report``: write the page and its figures for folders of records."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from domainbed_carft import escaping, files, jinja_templates
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordedRun, RecordWarning, describe_warnings
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.report import plots, provenance
from domainbed_carft.report.plots import Figure
from domainbed_carft.report.sections import Section, SectionMaker, unique_names
from domainbed_carft.results import comparisons, published, selection, suites
from domainbed_carft.results import rows as row_names
from domainbed_carft.results.cells import BEST, DOMAINBED, SECOND, Cell
from domainbed_carft.results.collect import Results, collect
from domainbed_carft.results.collection import Collection, Sweeps, as_collection
from domainbed_carft.results.columns import AVERAGE, COLUMNS, DEFAULT_COLUMNS
from domainbed_carft.results.comparisons import (
    ACCURACY,
    LEVEL,
    PAIR,
    Comparison,
    compare_rows,
    p_text,
)
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import best_hparams
from domainbed_carft.version import __version__

# The algorithms whose difference the first sentences describe
FEATURED = "CARFT"
BASELINE = "CLIPFineTune"  # unless another one is requested
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
        warnings: warnings about unusable files.
    """

    index: Path
    is_complete: bool
    warnings: Sequence[RecordWarning]


def write_report(
    sweeps: Sweeps,
    output: AnyPath,
    *,
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
        opening: a section to show before the sections of the datasets.
        columns: columns of the tables, as for `collect`.
        error: kind of uncertainty after the means, as for `collect`.
        against: algorithm that the others are compared with, as for `collect`; by default
            CLIPFineTune if it and CARFT have jobs.
        **reading: options of `gather`. Of them, a collection takes ``methods`` only.

    Returns:
        The path of the page, and the problems to report to the user.

    Raises:
        CarftError: if ``output`` contains other files, or `collect` fails.
    """
    output = as_path(output)
    collection = as_collection(sweeps, **reading)
    if not collection.runs:
        raise CarftError(
            "there are no results to show yet: all records are from the first stage of a search, "
            "which is finished; wait for the first record of the second stage"
        )
    collection = replace(collection, methods=collection.methods[:1])
    results = collect(
        collection,
        compare_published=True,
        columns=columns,
        error=error,
        against=against,
    )
    require_report_folder(output)  # before drawing, which takes time

    with plots.figure_style():
        styles = plots.get_styles(collection.rows, collection.own_methods)
        maker = SectionMaker(collection, styles, unique_names())
        legend = plots.draw_legend(styles, maker.make_name("legend"))
        keys = plots.draw_legend_keys(styles)
        differences = _compare_with_baseline(results)
        sections = _make_sections(results, maker, differences)
    if opening:
        sections = [opening, *sections]

    is_complete = not results.summary["incomplete_cells"]
    page = _template().render(
        version=__version__,
        results=results,
        title=_make_title(collection),
        headline=_make_headline(results, differences),
        facts=_list_facts(collection),
        keys=keys,
        legend=legend,
        sections=sections,
        averages=[
            table.grid() for table in results.tables if table.averages and len(table.accuracies) > 1
        ],
        comparisons=comparisons.grids(differences),
        comparison_captions=comparisons.CAPTION,
        published=_published_grids(results),
        is_complete=is_complete,
        warnings=describe_warnings(results.warnings),
        software=provenance.list_software(),
        settings=provenance.list_settings(collection.runs),
        digest=provenance.hash_records(collection.runs),
        commands=provenance.list_commands(_order_jobs(results)),
        sweeps=provenance.list_sweeps(collection.folders),
    )
    figures = [legend, *(figure for section in sections for figure in section.figures)]
    _write(output, page, figures)
    return Report(output / INDEX, is_complete, results.warnings)


def _compare_with_baseline(results: Results) -> Sequence[Comparison]:
    """Return the differences of all rows from the requested algorithm, or from BASELINE."""
    collection = results.collection
    if results.comparisons_against:
        return results.comparisons_against
    if {FEATURED, BASELINE} <= {*collection.rows}:
        return compare_rows(collection, BASELINE)
    return []


def _order_jobs(results: Results) -> list[RecordedRun]:
    """Return the runs in the order of the tables: by group, dataset, row, target and trial."""
    datasets = list(dict.fromkeys(table.dataset for table in results.tables))
    rows = results.collection.rows
    return [
        run
        for group in results.collection.groups
        for run in sorted(
            group.runs,
            key=lambda run: (
                datasets.index(run.dataset),
                rows.index(run.row),
                run.test_envs,
                run.job.key.trial,
                run.job.key.choice,
            ),
        )
    ]


def _make_headline(results: Results, differences: Sequence[Comparison]) -> list[str]:
    """Describe the setting with the most rows."""
    tables = max(
        results.tables_of_groups,
        key=lambda tables: max((len(table.rows) for table in tables), default=0),
    )
    return _describe_setting(tables, differences)


def _make_sections(
    results: Results, maker: SectionMaker, differences: Sequence[Comparison]
) -> list[Section]:
    """Make a section per dataset and group, most rows first, then a section per suite."""
    entries = list(best_hparams(results.collection))
    sections = []
    for group, tables in zip(results.collection.groups, results.tables_of_groups, strict=True):
        dataset_tables = [table for table in tables if not table.averages]
        is_single = len(dataset_tables) == 1
        for table in dataset_tables:
            place = (table.setting, table.dataset)
            section = maker.make_dataset_section(
                group,
                table,
                [entry for entry in entries if (entry.setting, entry.dataset) == place],
                _describe_table(table, differences if is_single else ()),
            )
            sections.append(section)
    sections.sort(key=lambda section: -len(section.table.rows))
    return [*sections, *map(maker.make_suite_section, results.suite_tables)]


def _published_grids(results: Results) -> list[Grid]:
    """Make the tables that compare groups and suites with published figures, if there are any."""
    grids = [table.grid() for table in suites.build_published(results.suite_tables)]
    datasets = {run.dataset for run in results.collection.runs}
    if datasets.isdisjoint(entry.dataset for entry in published.read_accuracies()):
        return grids
    return [*map(published.grid, results.comparisons or ()), *grids]


def _make_title(collection: Collection) -> str:
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


def _list_facts(collection: Collection) -> list[tuple[str, str]]:
    """Return names and values of facts: numbers of jobs, training time, selection method."""
    runs = collection.runs
    algorithms = {run.algorithm for run in runs}
    trials = {run.job.key.trial for run in runs}
    return [
        ("Jobs", f"{len(runs):,}"),
        ("Methods", f"{len(algorithms):,}"),
        ("Trials", f"{len(trials):,}"),
        *(("Training", duration) for duration in _list_training_times(runs)),
        ("Selected by", selection.METHODS[collection.methods[0]].title),
    ]


def _list_training_times(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the total training time if all records have times of the same device."""
    hours = [run.cost.training_hours for run in runs if run.cost.training_hours is not None]
    devices = {run.cost.device for run in runs}
    if len(devices) > 1 or len(hours) < len(runs):
        return []
    total = math.fsum(hours)
    duration = f"{total:.2g} hours" if total >= 1 else f"{60 * total:.2g} minutes"
    return [f"{duration} on {devices.pop()}"]


# The first sentences of the page and its sections


def _describe_setting(tables: Sequence[Table], differences: Sequence[Comparison]) -> list[str]:
    """Describe the averages over several datasets, or the only dataset, in sentences.

    Args:
        tables: the tables of one setting.
        differences: the differences of all rows from one of them, by unit.
    """
    datasets = [table for table in tables if not table.averages]
    if len(datasets) > 1:
        datasets = [table for table in tables if table.averages]
    return [sentence for table in datasets for sentence in _describe_table(table, differences)]


def _describe_table(table: Table, differences: Sequence[Comparison] = ()) -> list[str]:
    """Describe the difference of FEATURED in the table's setting, and the highest averages."""
    differences = [
        entry
        for entry in differences
        if (entry.setting, entry.measure) == (table.setting, ACCURACY)
        and selection.METHODS[entry.selection].holds_out
    ]
    n_tests = len({entry.algorithm for entry in differences if entry.p is not None})
    by_unit = {entry.unit: entry for entry in differences if entry.algorithm == FEATURED}
    by_pair = by_unit.pop(PAIR, None)
    sentences = []
    for entry in by_unit.values():  # of the unit environment or trial
        difference, source = _get_difference(entry, table)
        has_interval = entry.low is not None and entry.trials > 1 and _is_mean(entry, difference)
        interval = f" ({_describe_interval(entry)})" if has_interval else ""
        sentences.append(
            f"{entry.algorithm} minus {entry.against} on held-out environments: "
            f"{difference:+.1f} points{interval}, {source}."
        )
        uncertainty = _describe_uncertainty(difference, entry, by_pair, n_tests)
        sentences += [uncertainty] if uncertainty else []
    return [*sentences, *_describe_highest_averages(table)]


def _describe_highest_averages(table: Table) -> list[str]:
    """Return a sentence on the two highest averages, or nothing if all are incomplete."""
    averages = table.get_column(AVERAGE)
    ranks = table.get_ranks(COLUMNS[AVERAGE])
    rows_by_rank = [[row for row in averages if ranks[row] == rank] for rank in (BEST, SECOND)]
    leaders = [
        f"{' and '.join(rows)} with {averages[rows[0]].mean:.1f}%" for rows in rows_by_rank if rows
    ]
    return [f"Highest average accuracy: {', then '.join(leaders)}."] if leaders else []


def _get_difference(entry: Comparison, table: Table) -> tuple[float, str]:
    """Return the difference of the averages in the table, and the words that show them.

    If one of them is incomplete, the difference is over the trials that both rows have.
    """
    averages = table.get_column(AVERAGE)
    cells = [averages.get(row, Cell()) for row in (entry.algorithm, entry.against)]
    means = [cell.mean for cell in cells if cell.is_complete and cell.mean is not None]
    if len(means) < len(cells):
        return entry.average_difference, "over the trials that both have"
    return means[0] - means[1], f"{means[0]:.1f}% against {means[1]:.1f}%"


def _is_mean(entry: Comparison, difference: float) -> bool:
    """Return True if a difference of averages gives all units of the comparison equal weight."""
    return math.isclose(entry.mean_difference, difference, abs_tol=1e-9)


def _describe_interval(entry: Comparison) -> str:
    return f"{LEVEL}% interval over {_count_units(entry)} {entry.interval_text(digits=1)}"


def _count_units(entry: Comparison) -> str:
    return f"{entry.n} {entry.unit}s"


def _describe_uncertainty(
    difference: float, by_unit: Comparison, by_pair: Comparison | None, n_tests: int
) -> str:
    """Describe what the first sentence lacks: further intervals, and the corrected p-values."""
    if by_unit.trials == 1:
        return "Both share one trial, too few for an interval: other trials can differ."
    if by_pair and by_pair.n <= by_unit.n:
        by_pair = None

    sentences = []
    if by_unit.low is None:
        sentences.append(
            f"With one {by_unit.unit} there is no {LEVEL}% interval over {by_unit.unit}s."
        )
    elif not _is_mean(by_unit, difference):
        sentences.append(
            "Over the trials that both have, with the same weight for all "
            f"{_count_units(by_unit)}, it is {by_unit.mean_difference:+.1f} points, with a "
            f"{LEVEL}% interval of {by_unit.interval_text(digits=1)}."
        )
    if by_pair:
        sentences.append(
            f"Over {by_pair.n} pairs of runs the interval is {by_pair.interval_text(digits=1)}, "
            "which is optimistic, because pairs of the same environment share test images."
        )
    return " ".join([*sentences, *_describe_p_values(by_unit, by_pair, n_tests)])


def _describe_p_values(by_unit: Comparison, by_pair: Comparison | None, n_tests: int) -> list[str]:
    """Return a sentence with Holm's p-values, or nothing if there are too few pairs for them."""
    entries = [by_unit, *([by_pair] if by_pair else [])]
    p_values = " and ".join(
        f"{p_text(entry.p_holm)} over {_count_units(entry)}"
        for entry in entries
        if entry.p_holm is not None and entry.n > 1
    )
    if not p_values:
        return []
    subject = "By sign flips, p is"
    if n_tests > 1:
        subject = f"Corrected for the {n_tests} comparisons with {by_unit.against} (Holm), p is"
    return [f"{subject} {p_values}."]


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


def _write(folder: Path, page: str, figures: Sequence[Figure]) -> None:
    """Write the page and its figures, and remove outdated figures of an earlier report."""
    # Names can contain surrogates, which UTF-8 cannot encode.
    contents = {INDEX: page.encode("utf-8", "backslashreplace")}
    for figure in figures:
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


@cache
def _template() -> Any:
    templates = jinja_templates.load_templates(autoescape=True)
    # Names in records are untrusted. Markup, a subclass of str, is printable already.
    templates.finalize = lambda value: escaping.printable(value) if type(value) is str else value
    return templates.get_template("report/page.html.j2")


def _earlier_page(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return files.read_regular(folder / INDEX).decode(errors="replace")
    return ""
