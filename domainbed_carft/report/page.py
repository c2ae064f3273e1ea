"""``carft report``: from folders of records to the page and its figures."""

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
from domainbed_carft.results.collect import Results, collect
from domainbed_carft.results.collection import Collection, Sweeps, gathered
from domainbed_carft.results.columns import (
    AVERAGE,
    BEST,
    COLUMNS,
    DEFAULT_COLUMNS,
    DOMAINBED,
    SECOND,
    Cell,
    ranks_of,
)
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
    """What `write_report` wrote: the page ``index``, with its figures beside it.

    ``is_complete``: whether no cell of the page's tables is incomplete; ``why_no_examples``: "" if
    the page shows example images; ``warnings``: about unusable files.
    """

    index: Path
    is_complete: bool
    why_no_examples: str
    warnings: Sequence[RecordWarning]


@dataclass(frozen=True)
class Page:
    """What the template shows; ``keys``: algorithm -> an image of its line, as a data URI."""

    results: Results
    title: str
    headline: Sequence[str]
    facts: Sequence[tuple[str, str]]
    keys: Mapping[str, str]
    legend: Figure
    sections: Sequence[Section]
    averages: Sequence[Grid]
    comparisons: Sequence[Grid]
    published: Sequence[Grid]
    why_no_examples: str
    provenance: Provenance

    @property
    def figures(self) -> list[Figure]:
        """All figures, the legend first."""
        return [self.legend, *(figure for section in self.sections for figure in section.figures)]

    @property
    def is_complete(self) -> bool:
        """Whether no cell of the tables is incomplete."""
        return not any(table.n_incomplete for table in self.results.tables)

    @property
    def comparison_captions(self) -> Sequence[str]:
        """The paragraphs that explain the comparisons."""
        return comparisons.CAPTION

    @property
    def notes(self) -> list[str]:
        """What differs between the runs."""
        return [note for group in self.results.collection.groups for note in group.notes]

    @property
    def warnings(self) -> list[str]:
        """What is wrong in the files that were read, as lines."""
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
    """Write the report on ``sweeps`` into the folder ``output``, as ``carft report`` does.

    ``pair``: the algorithms to compare, by default PAIR if both have jobs; ``n_examples``: images
    per environment that one of them gets right and the other wrong, 0 for none; ``data_dir``: where
    the data is now; ``opening``: a section before those of the datasets. ``sweeps``, ``reading``,
    and ``columns`` to ``against``: as for `collect`. The page is by the first selection method.

    Raises CarftError if ``output`` has other files, if the pair is not one of algorithms that have
    jobs, and for what `collect` does.
    """
    output = as_path(output)
    collection = gathered(sweeps, **reading)
    if not collection.runs:
        raise CarftError(
            "there is nothing to show yet: by sweep.json all jobs with records are of the first "
            "stage of a search that is over; wait for the first record of the second stage"
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
    require_place(output)  # before figures and examples, which take time

    page = _page_on(results, pair, n_examples=n_examples, data_dir=as_text(data_dir))
    if opening:
        page = replace(page, sections=[opening, *page.sections])
    _write(output, page)
    return Report(
        index=output / INDEX,
        is_complete=page.is_complete,
        why_no_examples=page.why_no_examples,
        warnings=results.warnings,
    )


def _choose_pair(
    collection: Collection, requested: tuple[str, str] | None
) -> tuple[str, str] | None:
    """The requested algorithms, else those of PAIR if both have jobs.

    Raises CarftError if the requested ones are not two of the collection's.
    """
    first, second = requested or PAIR
    is_valid = first != second and {first, second} <= {*collection.rows}
    if is_valid and collection.methods != [selection.IN_DOMAIN]:
        return first, second
    if requested:
        raise CarftError(
            f"--examples {first} {second}: expected two different algorithms of "
            f"{', '.join(collection.rows)}, and a --select other than in-domain"
        )
    return None


def _page_on(
    results: Results, pair: tuple[str, str] | None, n_examples: int, data_dir: str | None
) -> Page:
    """The page on ``results`` by one selection method; the rest as for `write_report`."""
    collection = results.collection
    differences = compare_rows(collection, pair[1], row=pair[0]) if pair else []
    with plots.figure_style():
        maker = SectionMaker(
            results=results,
            styles=plots.styles_of(collection.rows),
            name=unique_names(),
            examples_of=_examples_of(pair, n_examples, data_dir),
        )
        legend = plots.legend(maker.styles, maker.name("legend"))
        keys = plots.legend_keys(maker.styles)
        sections = _sections(results, maker, differences)

    averages = [table for table in results.tables if table.averages and len(table.columns) > 1]
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
        published=_grids_of_published(results),
        why_no_examples="" if maker.examples_of else _why_no_examples(collection, pair),
        provenance=provenance.provenance_of(collection),
    )


def _sections(
    results: Results, maker: SectionMaker, differences: Sequence[Comparison]
) -> list[Section]:
    """A section for each dataset of each group, those of most rows first, then each suite's."""
    entries = list(best_hparams(results.collection))
    groups = zip(results.collection.groups, results.tables_of_groups, strict=True)
    sections = [
        maker.of_table(
            group,
            table,
            [
                entry
                for entry in entries
                if (entry.setting, entry.dataset) == (table.setting, table.dataset)
            ],
            _findings_of(table, results, differences),
        )
        for group, tables in groups
        for table in tables
        if not table.averages
    ]
    sections.sort(key=lambda section: -len(section.table.rows))
    suite_rows = suites.rows_by_table(results.suite_scores)
    return [*sections, *(maker.of_suite(rows) for rows in suite_rows)]


def _grids_of_published(results: Results) -> list[Grid]:
    """Tables beside published figures: of each group, if its datasets have any, and of suites."""
    grids = suites.grids_with_published(results.suite_scores)
    datasets = {run.dataset for run in results.collection.runs}
    if datasets.isdisjoint(figure["dataset"] for figure in published.figures()):
        return grids
    return [*map(published.grid, results.comparisons or ()), *grids]


def _examples_of(
    pair: tuple[str, str] | None, n_examples: int, data_dir: str | None
) -> Callable[..., list[TargetExamples]] | None:
    """What makes the examples of environments and selected runs; None if none are to be shown."""
    if not (pair and n_examples > 0):
        return None
    return partial(examples.examples_of, pair=pair, count=n_examples, data_dir=data_dir)


def _why_no_examples(collection: Collection, pair: tuple[str, str] | None) -> str:
    """Why the page shows no example images, and how to get some."""
    if pair:
        return "they were switched off by --n_examples 0."
    return (
        "they compare two algorithms on the environments left out, by default "
        f"{' and '.join(PAIR)}. For others, add --examples A B; these jobs are of "
        f"{', '.join(collection.rows)}."
    )


def _title(collection: Collection) -> str:
    """The datasets, what was left out, and the algorithms that are compared."""
    runs = collection.runs
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    titles = benchmarks.dataset_titles(row_names.environment_labels(runs))
    names = collection.rows
    if len(names) > _NAMED_ALGORITHMS:
        n_others = len(names) - _NAMED_ALGORITHMS + 1
        names = [*names[: _NAMED_ALGORITHMS - 1], f"{n_others} other methods"]
    listing = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(titles.values())}, {left_out} left out: {listing}"


def _facts(collection: Collection) -> list[tuple[str, str]]:
    """Names and values: how many jobs there are, of what, how long they trained, and how chosen."""
    runs = collection.runs
    algorithms = {run.algorithm for run in runs}
    trials = {run.job.key.trial for run in runs}
    return [
        ("Jobs", f"{len(runs):,}"),
        ("Methods", f"{len(algorithms):,}"),
        ("Trials", f"{len(trials):,}"),
        *(("Training", text) for text in _training_times(runs)),
        ("Selected by", selection.METHODS[collection.methods[0]].title),
    ]


def _training_times(runs: Sequence[RecordedRun]) -> list[str]:
    """The hours of all jobs, if one device trained them and the records have their times."""
    hours = [run.cost.training_hours for run in runs if run.cost.training_hours is not None]
    devices = {run.cost.device for run in runs}
    if len(devices) > 1 or len(hours) < len(runs):
        return []
    total = math.fsum(hours)
    duration = f"{total:.2g} hours" if total >= 1 else f"{60 * total:.2g} minutes"
    return [f"{duration} on {devices.pop()}"]


# What the page and its sections say first


def _headline(results: Results, differences: Sequence[Comparison]) -> list[str]:
    """What the page says first: all that can be said of the setting that has the most rows."""
    tables = [table for table in results.tables if not table.averages]
    if not tables:
        return []
    setting = max(tables, key=lambda table: len(table.rows)).setting
    return _sentences(results, differences, setting)


def _findings_of(table: Table, results: Results, differences: Sequence[Comparison]) -> list[str]:
    """The sentences on a table: of the only dataset of its setting, all that can be said."""
    tables = [other for other in results.tables if other.setting == table.setting]
    if len({other.dataset for other in tables if not other.averages}) == 1:
        return _sentences(results, differences, table.setting)
    return _best_averages(table)


def _sentences(results: Results, differences: Sequence[Comparison], setting: str) -> list[str]:
    """Sentences on all runs of one setting, the most important one first.

    The difference between the pair of algorithms, if they are compared, and the best averages.
    """
    tables = [table for table in results.tables if table.setting == setting]
    averages = [table for table in tables if table.averages and len(table.columns) > 1]
    of_datasets = [table for table in tables if not table.averages]
    tables = averages if len(of_datasets) > 1 else of_datasets
    of_unit = {entry.unit: entry for entry in differences if entry.setting == setting}
    sentences = []
    if of_unit:
        by_pair = of_unit.pop(comparisons.PAIR, None)
        (by_unit,) = of_unit.values()  # environments, or trials of one model each
        sentences.append(_sentence_on_difference(by_unit, tables))
        sentences.append(_sentences_on_intervals(by_unit, by_pair))
    return [*sentences, *(sentence for table in tables for sentence in _best_averages(table))]


def _best_averages(table: Table) -> list[str]:
    """The sentence on the highest averages of a table, and the next; none without complete ones."""
    rank_of_row = ranks_of([row.average_cell for row in table.rows], COLUMNS[AVERAGE])
    rows_of_rank = {
        rank: [row for row, of_row in zip(table.rows, rank_of_row, strict=True) if of_row == rank]
        for rank in (BEST, SECOND)
    }
    leaders = [
        f"{' and '.join(row.algorithm for row in rows)} with {rows[0].average:.1f}%"
        for rows in rows_of_rank.values()
        if rows
    ]
    return [f"Highest average accuracy: {', then '.join(leaders)}."] if leaders else []


def _sentence_on_difference(entry: Comparison, tables: Sequence[Table]) -> str:
    """By how much one algorithm is better than another, with their averages if these are of it."""
    side = "more" if entry.average_difference >= 0 else "less"
    sentence = (
        f"{entry.algorithm} is {abs(entry.average_difference):.1f} points {side} accurate than "
        f"{entry.against} on environments left out of training"
    )

    cells = {row.algorithm: row.average_cell for table in tables for row in table.rows}
    pair = [cells.get(name, Cell()) for name in (entry.algorithm, entry.against)]
    first, second = (None if cell.is_incomplete else cell.mean for cell in pair)
    if first is None or second is None:
        return f"{sentence}, over the trials that both have."
    if not math.isclose(first - second, entry.average_difference, abs_tol=1e-9):
        return f"{sentence}, over the trials that both have."
    return f"{sentence}: {first:.1f}% against {second:.1f}%."


def _sentences_on_intervals(by_unit: Comparison, by_pair: Comparison | None) -> str:
    """How sure the difference is, by environments or trials, and how sure it seems by pairs."""
    if by_unit.trials == 1:
        return "These are the runs of one trial, too few for an interval: other trials may differ."
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
                f"If all {count} {units} count alike instead of all datasets, it is "
                f"{by_unit.mean_difference:+.1f} points, with a {interval} of"
            )
        sentences = f"{subject} {values}{includes_0}."

    if by_pair and by_pair.n > count:
        sentences += (
            f" Over {by_pair.n} pairs of runs it is {by_pair.interval_text(digits=1)}, which is "
            "optimistic: pairs of an environment share test images."
        )
    return sentences


# The folder


def require_place(folder: Path) -> None:
    """Raise CarftError unless ``folder`` can take a report: new, empty, or an earlier report's."""
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
            f"-o {folder} has other files ({listing}); "
            "expected a new or empty folder, or the folder of an earlier report"
        )


def _write(folder: Path, page: Page) -> None:
    """Write the page and its figures, and remove figures of an earlier report that it has not."""
    contents = {INDEX: _render(page)}
    for figure in page.figures:
        contents |= {f"{FIGURES}/{name}": content for name, content in figure.files.items()}

    earlier_figures = {*_FIGURE_LINK.findall(_earlier_page(folder))}
    try:
        if (folder / FIGURES).is_symlink():  # to a folder that is not the report's
            (folder / FIGURES).unlink()
        for name, content in contents.items():  # the page first: it marks the folder as a report's
            files.save_bytes(folder / name, content)
        for name in earlier_figures.difference(contents):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise files.write_error(folder, error) from error


def _render(page: Page) -> bytes:
    """The page as HTML."""
    html: str = _template().render(page=page, version=__version__)
    # Halves of characters, which names may have, are in no encoding.
    return html.encode("utf-8", "backslashreplace")


@cache
def _template() -> Any:
    templates = text.load_templates(autoescape=True)
    # Names are anybody's; what is markup already has come through here.
    templates.finalize = lambda value: text.printable(value) if type(value) is str else value
    return templates.get_template("report/page.html.j2")


def _earlier_page(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return files.read_regular(folder / INDEX).decode(errors="replace")
    return ""
