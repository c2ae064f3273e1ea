"""A group of runs with equal settings, which can be averaged, and the runs selected from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import selection
from domainbed_carft.results.labels import environment_labels, sort_rows
from domainbed_carft.results.selection import SelectedRun


@dataclass(frozen=True, eq=False)
class Group:
    """Runs with equal settings, whose accuracies can be averaged.

    Before it is divided by setting, the group of all runs passes through the same functions.

    Attributes:
        title: the setting; empty for a single group.
        runs: the runs, one for each job once the groups are divided; can be empty.
        planned: jobs of the sweeps' manifests that belong to the group, run or not.
        notes: remarks on settings that differ between rows and datasets.
        labels: dataset -> names of its environments, from the manifests.
        order: names of rows and algorithms in the order of the tables, the same for all groups.
        row_values: row made by ``--by`` -> its value of each name (the default if it is known); the
            same for all groups.
        source: the training environments if all others are held out together; otherwise empty.
    """

    title: str = ""
    runs: Sequence[RecordedRun] = ()
    planned: Sequence[Job] = ()
    notes: Sequence[str] = ()
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    order: Sequence[str] = ()
    row_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""
    _selections: dict[str, list[SelectedRun]] = field(default_factory=dict, init=False, repr=False)

    def select(self, method: str) -> list[SelectedRun]:
        """Select runs by a method; the result is cached."""
        if method not in self._selections:
            self._selections[method] = selection.select(self.runs, method)
        return self._selections[method]

    def select_in_table_order(self, method: str) -> list[SelectedRun]:
        """Select runs by a method; sort them by dataset, row, target and trial as in the tables."""
        selected = self.select(method)
        datasets = list(self.environments)
        names = self.order_rows(entry.row for entry in selected)

        def place(entry: SelectedRun) -> tuple[int, int, int, int]:
            row = names.index(entry.row)
            return datasets.index(entry.dataset), row, entry.target, entry.trial

        return sorted(selected, key=place)

    @cached_property
    def environments(self) -> dict[str, tuple[str, ...]]:
        """Dataset -> names of its environments, in the order of the tables."""
        return environment_labels(self.runs, self.planned, self.labels)

    def order_rows(self, rows: Iterable[str]) -> list[str]:
        """Return distinct names of rows in the order of the tables."""
        return sort_rows(rows, self.order)
