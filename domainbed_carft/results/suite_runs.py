"""The runs that count on suites, and their records without the sets that they were trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.results import selection
from domainbed_carft.results.collection import Group
from domainbed_carft.results.selection import Selected
from domainbed_carft.suites import catalogue, records


class SuiteRun(NamedTuple):
    """A run that validation chose, and the environments that it was trained on.

    ``trained_on``: their names, if the run left others out, else none: they say which sets of a
    suite cannot test the run.
    """

    selected: Selected
    trained_on: frozenset[str]

    @property
    def folder(self) -> Path:
        """The folder of the run's job."""
        return Path(self.selected.outcome.run.folder)


def selected_runs(group: Group) -> list[SuiteRun]:
    """Each run of the group that validation chose, once."""
    labels = group.environments
    selected_of_folder = {
        selected.outcome.run.folder: selected
        for method in (selection.IN_DOMAIN, selection.TRAINING_DOMAIN)
        for selected in group.selected(method)
    }
    suite_runs = []
    for selected in selected_of_folder.values():
        left_out = selected.outcome.run.test_envs
        trained_on = (
            label
            for number, label in enumerate(labels[selected.dataset])
            if left_out and number not in left_out
        )
        suite_runs.append(SuiteRun(selected, frozenset(trained_on)))
    return suite_runs


def selected_records(
    group: Group, warnings: list[RecordWarning]
) -> Iterator[tuple[Selected, Mapping[str, Any]]]:
    """The suite records of the `selected_runs`, without sets of environments trained on.

    The means of a record are then over its other sets. What is wrong in the files is added to
    ``warnings``.
    """
    for suite_run in selected_runs(group):
        for record in records.read(suite_run.folder, warnings):
            if record["suite"] in catalogue.SUITES:
                yield suite_run.selected, _without_sets(record, suite_run.trained_on)


def _without_sets(record: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """The record without the sets called ``names``, and with the means of the others."""
    sets = {name: scores for name, scores in record["sets"].items() if name not in names}
    if len(sets) == len(record["sets"]):
        return record

    suite = catalogue.get(record["suite"]).without(names)
    complete = {name: scores["accuracy"] for name, scores in sets.items() if scores["complete"]}
    return {**record, "sets": sets, **suite.means(complete)}
