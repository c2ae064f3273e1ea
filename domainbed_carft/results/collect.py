"""``carft collect`` as a function: the tables of sweeps, their captions, and all output formats."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed_carft.arguments import TEXT, TEXTS, require_kind
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordedRun, RecordWarning
from domainbed_carft.results import comparisons, formats, published, selection, suites
from domainbed_carft.results.cells import DOMAINBED, ERROR_KINDS, NO_VALUE, PLUS_MINUS, ErrorKind
from domainbed_carft.results.collection import Collection, Sweeps, as_collection
from domainbed_carft.results.columns import (
    COLUMNS,
    DEFAULT_COLUMNS,
    IN_DOMAIN,
    MEMORY,
    comparison_warnings,
    expand_columns,
    explain_columns,
)
from domainbed_carft.results.comparisons import ACCURACY, Comparison
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.published import PublishedComparison
from domainbed_carft.results.selection import is_swad
from domainbed_carft.results.tables import Table, build
from domainbed_carft.suggestions import unknown

if TYPE_CHECKING:
    import pandas as pd

# Kinds of warnings about files whose accuracies can be missing in the tables
_DEFECTS = ("no records", "no accuracies", "unreadable", "diverged")

_ACCURACY_CAPTION = (
    "Accuracy in % on the in-split of the held-out environment, which names the column, at the "
    "checkpoint and with the hyperparameters that the selection rule chose in each trial. If no "
    "environment was held out, on each out-split at the last step. "
    f"Cells: mean {PLUS_MINUS} {{error}} (n, the number of trials)."
)
_AVERAGES_CAPTION = (
    "Avg: mean of the row's cells. Averages: over each trial's mean over the held-out environments."
)
_NOTES_CAPTION = (
    f"[k] marks an incomplete cell, explained in note [k]. {NO_VALUE}: no trial has a value."
)
_CHOICES_CAPTION = (
    "Chosen: the searched values that the selection rule chose, with the number of trials if the "
    "trials differ; Of: number of members and draws that each was chosen from."
)
_SWAD_REMARK = (
    "Jobs with the hparam average 'swad' count at their last checkpoint under every selection "
    "rule, because SWAD itself has chosen their weights."
)


@dataclass(frozen=True)
class Results:
    """The results of sweeps, as returned by `collect`.

    Attributes:
        collection: the runs, in groups that can be averaged.
        tables_of_groups: for each group its tables: for each selection rule one per dataset, then
            the table of averages.
        suite_tables: accuracies on the test sets of suites.
        published_comparisons: for each group its accuracies with published ones; None unless
            requested.
        comparisons_against: every algorithm compared with one; empty unless requested.
        error: kind of error printed after a mean.
    """

    collection: Collection
    tables_of_groups: Sequence[Sequence[Table]]
    suite_tables: Sequence[Table]
    published_comparisons: Sequence[Sequence[PublishedComparison]] | None
    comparisons_against: Sequence[Comparison]
    error: ErrorKind

    @property
    def tables(self) -> list[Table]:
        """The tables of all groups."""
        return [table for group_tables in self.tables_of_groups for table in group_tables]

    @property
    def warnings(self) -> Sequence[RecordWarning]:
        """Problems in the files that were read."""
        return self.collection.warnings

    @property
    def notes(self) -> list[str]:
        """Remarks on settings that differ between the runs."""
        return [note for group in self.collection.groups for note in group.notes]

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers of "records", "jobs", "cells" and "incomplete_cells", and the "faults"."""
        runs = self.collection.runs
        tables = [*self.tables, *self.suite_tables]
        cells = [cell for table in tables for cell in table.counted_cells]
        return {
            "records": sum(len(run.steps) for run in runs),
            "jobs": len(runs),
            "incomplete_cells": sum(cell.lacks_results for cell in cells),
            "cells": len(cells),
            "faults": [warning._asdict() for warning in self.warnings],
        }

    @property
    def defects(self) -> dict[str, int]:
        """Kind -> number of defects that make the tables incomplete, such as "incomplete cells"."""
        counts = Counter(warning.kind for warning in self.warnings)
        defects = {"incomplete cells": self.summary["incomplete_cells"]}
        defects |= {kind: counts[kind] for kind in _DEFECTS}
        return {kind: count for kind, count in defects.items() if count}

    @property
    def grids(self) -> list[Grid]:
        """All tables as text cells."""
        grids = []
        for table in self.tables:
            grids += [table.grid(), *filter(None, [table.choices_grid()])]

        grids += [table.grid() for table in self.suite_tables]
        if self.published_comparisons is not None:
            grids += [published.grid(entries) for entries in self.published_comparisons]
            grids.append(published.build_overview(self.collection.compare_with).grid())
            grids += [table.grid() for table in suites.build_published(self.suite_tables)]
        return grids + comparisons.grids(self.comparisons_against)

    @property
    def _shown_grids(self) -> list[Grid]:
        """The tables without the memory of a GPU if the jobs ran on a CPU."""
        title = COLUMNS[MEMORY].title
        return [formats.drop_empty_columns(grid, title) for grid in self.grids]

    @property
    def captions(self) -> dict[str, list[str]]:
        """The paragraphs that explain "tables", "published" numbers and "comparisons"."""
        printed_columns = [column for table in self.tables for column in table.printed]
        table_captions = [
            _ACCURACY_CAPTION.format(error=self.error.title),
            f"{self.error.definition}; a single trial has no error. {_AVERAGES_CAPTION}",
            _NOTES_CAPTION,
            *self._remarks,
            *explain_columns(printed_columns),
        ]
        if any(table.choices_grid() for table in self.tables):
            table_captions.append(_CHOICES_CAPTION)
        if self.suite_tables:
            table_captions.append(suites.caption(self.error))

        return {
            "tables": table_captions,
            "published": list(published.CAPTION) if self.published_comparisons is not None else [],
            "comparisons": list(comparisons.CAPTION) if self.comparisons_against else [],
        }

    @property
    def _remarks(self) -> list[str]:
        """The captions that only some sweeps need."""
        return [_SWAD_REMARK] if any(map(is_swad, self.collection.runs)) else []

    @property
    def all_captions(self) -> list[str]:
        """All captions and notes."""
        captions = [paragraph for part in self.captions.values() for paragraph in part]
        return [*captions, *self.notes]

    @property
    def short_captions(self) -> list[str]:
        """The captions without the parts that are the same for every sweep."""
        line = (
            f"Cells: mean {PLUS_MINUS} {self.error.title} (n trials). "
            "More: carft collect --columns help"
        )
        printed_columns = [column for table in self.tables for column in table.printed]
        return [
            line,
            *self._remarks,
            *comparison_warnings(printed_columns),
            *self.notes,
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``carft collect --format json``."""
        content: dict[str, Any] = {
            "caption": self.all_captions,
            "tables": [table.as_dict() for table in self.tables],
            "notes": self.notes,
        }
        if self.suite_tables:
            content["suites"] = [table.as_dict() for table in self.suite_tables]
        if self.published_comparisons is not None:
            content["published"] = {
                "comparisons": self._published_entries,
                "figures": [
                    entry._asdict()
                    for entry in published.read_accuracies(self.collection.compare_with)
                ],
            }
        if self.comparisons_against:
            content["against"] = [*map(dataclasses.asdict, self.comparisons_against)]
        return content | {"summary": self.summary}

    @property
    def _published_entries(self) -> list[dict[str, Any]]:
        return [
            entry.as_dict() for entries in self.published_comparisons or () for entry in entries
        ]

    @property
    def csv_rows(self) -> list[dict[str, Any]]:
        """The rows for CSV: of the requested comparison, otherwise of the tables' cells."""
        if self.comparisons_against:
            return [*map(dataclasses.asdict, self.comparisons_against)]
        if self.published_comparisons is not None:
            if not self._published_entries:
                raise CarftError(
                    "--compare published: no published number matches a row and its datasets, so "
                    "there is nothing to write as CSV; --format text lists all published numbers"
                )
            return self._published_entries
        return [row for table in self.tables for row in table.as_rows()]

    def write(self, output_format: str) -> str:
        """Format the results in one of `formats.FORMATS`; raise CarftError for any other format."""
        if output_format not in formats.FORMATS:
            raise CarftError(unknown("format", output_format, formats.FORMATS))
        if output_format == "text":
            return formats.as_text(self._shown_grids, self.short_captions)
        if output_format == "markdown":
            return formats.as_markdown(self._shown_grids, self.all_captions)
        if output_format == "csv":
            return formats.as_csv(self.csv_rows)
        if output_format == "json":
            return formats.as_json(self.as_dict())

        from domainbed_carft.results import latex  # loads pandas

        return latex.tabular(self.tables, self.comparisons_against)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for each printed cell of the tables, with the columns of ``--format csv``.

        Columns:
            setting: title of the group of runs.
            selection: name of the selection rule.
            dataset: name of the dataset; empty for the averages over datasets.
            algorithm: name of the table's row.
            column: name of the column.
            of: the environment, the dataset of an average, or another description of the value.
            device: device of a cost.
            unit: unit of the mean.
            mean, standard_error: in ``unit``.
            n: number of trials or jobs.
            missing: reasons why the value is missing or incomplete; empty if it is complete.
        """
        import pandas as pd

        frame = pd.DataFrame([row for table in self.tables for row in table.as_rows()])
        numbers = {"mean": float, "standard_error": float, "n": int}
        return frame.astype(numbers) if len(frame) else frame

    @cached_property
    def against(self) -> pd.DataFrame:
        """A row for each of ``comparisons_against``, with its fields as columns."""
        import pandas as pd

        names = [field.name for field in dataclasses.fields(Comparison)]
        return pd.DataFrame(map(dataclasses.asdict, self.comparisons_against), columns=names)

    @cached_property
    def records(self) -> pd.DataFrame:
        """A row for each record (checkpoint) of the runs, each job once.

        Columns:
            setting: title of the group of runs.
            folder: folder of the job.
            dataset, algorithm, trial_seed, hparams_seed: arguments of the job.
            test_envs: numbers of the test environments, a tuple.
            step: step of the checkpoint.
            env0_in_acc, env0_out_acc, ...: accuracies in [0, 1] as recorded; nan if the record has
                none, and from the checkpoint on at which the training diverged.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                row
                for group in self.collection.groups
                for run in group.runs
                for row in _checkpoint_rows(run, group.title)
            ]
        )


def collect(
    sweeps: Sweeps,
    *,
    compare_published: bool = False,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    error: str = DOMAINBED.name,
    against: str | None = None,
    **options: Any,
) -> Results:
    """Read the records of sweeps and make their tables, like ``carft collect``.

    Args:
        sweeps: one or several output folders of sweeps, or the collection that `gather` returned.
        compare_published: True to add a comparison with published accuracies.
        columns: names of the tables' columns, from `columns.NAMES`.
        error: error printed after a mean: "domainbed", "sample" or "std".
        against: name of an algorithm to compare all others with.
        **options: options of `gather`. Of them, a collection takes ``select`` only.

    Returns:
        The tables, as data frames (``cells``, ``against``, ``records``) and in the formats of
        ``carft collect`` (``write``, ``as_dict``).

    Raises:
        CarftError: if `gather` raises it, if a column or a kind of error is unknown, or if no
            algorithm shares a trial with ``against``.
    """
    require_kind(TEXTS, columns=columns)
    require_kind(TEXT, error=error)
    require_kind(TEXT, is_optional=True, against=against)
    columns = expand_columns(columns)
    if error not in ERROR_KINDS:
        raise CarftError(unknown("kind of error", error, ERROR_KINDS))
    kind = ERROR_KINDS[error]
    collection = as_collection(sweeps, **options)

    tables_of_groups = [
        build(group, collection.rules, column_names=columns, error=kind)
        for group in collection.groups
    ]
    suite_tables = [
        table for group in collection.groups for table in suites.build(group, kind, columns)
    ]

    published_comparisons = None
    if compare_published:
        published_comparisons = [
            published.compare(group, group_tables, kind)
            for group, group_tables in zip(collection.groups, tables_of_groups, strict=True)
        ]

    comparisons_against: list[Comparison] = []
    if against:
        measures = [ACCURACY, IN_DOMAIN] if IN_DOMAIN in columns else [ACCURACY]
        comparisons_against = comparisons.compare_rows(collection, against, measures=measures)
        comparisons.require_comparisons(comparisons_against, collection, against)

    return Results(
        collection=collection,
        tables_of_groups=tables_of_groups,
        suite_tables=suite_tables,
        published_comparisons=published_comparisons,
        comparisons_against=comparisons_against,
        error=kind,
    )


def _checkpoint_rows(run: RecordedRun, setting: str) -> list[Mapping[str, Any]]:
    """Return a row (column -> value) for each checkpoint of a run."""
    names = [
        f"env{env}_{split}_acc" for env in range(run.n_environments) for split in ("in", "out")
    ]
    accuracies = np.stack(selection.accuracies(run), axis=2).reshape(len(run.steps), -1).tolist()
    key = run.job.key
    job = {
        "setting": setting,
        "folder": run.folder,
        "dataset": key.dataset,
        "algorithm": run.row,
        "test_envs": run.test_envs,
        "trial_seed": key.trial,
        "hparams_seed": key.choice,
    }
    return [
        job | {"step": int(step)} | dict(zip(names, values, strict=True))
        for step, values in zip(run.steps, accuracies, strict=True)
    ]
