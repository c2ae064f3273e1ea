"""The sections of a report: tables with their jobs, figures and example images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.report import evaluation_plots, frames, plots, provenance
from domainbed_carft.report.examples import TargetExamples
from domainbed_carft.report.plots import Figure, Styles
from domainbed_carft.report.provenance import TableJobs
from domainbed_carft.results import suites
from domainbed_carft.results.collect import Results
from domainbed_carft.results.collection import Group
from domainbed_carft.results.columns import AVERAGE, COLUMNS
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import BestHparams

_MAX_NAMES = 3  # of incomplete rows in a figure's title


class Part(NamedTuple):
    """Figures of one kind; the template has a title and a text for each kind."""

    kind: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    """A section of the page, on a dataset or a suite."""

    id: str  # HTML id
    title: str
    table: Grid
    parts: Sequence[Part]
    findings: Sequence[str] = ()  # sentences on the table
    lead: Sequence[Figure] = ()  # figures above the table
    ranks: Sequence[Sequence[int]] = ()  # for each row, the ranks of its cells; 0 if unranked
    jobs: TableJobs | None = None
    more_tables: Sequence[Grid] = ()  # below the table
    examples: Sequence[TargetExamples] = ()

    @property
    def figures(self) -> list[Figure]:
        """All figures of the section."""
        return [*self.lead, *(figure for part in self.parts for figure in part.figures)]


def unique_names() -> Callable[..., str]:
    """Return a function that makes unique file names and HTML ids from words."""
    counts: Counter[str] = Counter()

    def name(*words: str) -> str:
        plain = (re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.")[:60] or "_" for word in words)
        stem = "-".join(plain)
        counts[stem] += 1
        return stem if counts[stem] == 1 else f"{stem}-{counts[stem]}"

    return name


@dataclass(frozen=True)
class SectionMaker:
    """Makes the sections of a page."""

    results: Results
    styles: Styles
    make_name: Callable[..., str]  # words -> unique file name or HTML id
    # (environments, selected runs) -> examples; None if the page has no examples
    find_examples: Callable[..., list[TargetExamples]] | None

    def make_table_section(
        self,
        group: Group,
        table: Table,
        entries: Sequence[BestHparams],
        findings: Sequence[str],
    ) -> Section:
        """Make the section of one dataset.

        Args:
            group: the group of the table.
            table: the table.
            entries: the selected runs of the table.
            findings: sentences on the table.
        """
        identity = self.make_name("data", table.dataset)
        runs = [run for run in group.runs if run.dataset == table.dataset]
        selected = [
            entry for entry in group.select(table.selection) if entry.dataset == table.dataset
        ]
        checkpoints = frames.checkpoints(selected)
        at_selection = checkpoints[checkpoints["selected"]].drop(columns="step")

        parts = [Part("accuracy", self._dots(table))]
        parts += self._choices(table, runs)
        parts += self._hparam_curves(table, at_selection)
        parts.append(Part("steps", self._step_curves(table, checkpoints)))
        parts.append(Part("robustness", self._robustness(table, at_selection)))
        parts.append(Part("drift", self._drift(table, checkpoints)))
        parts += self._evaluations(table, selected)
        return Section(
            id=identity,
            title="; ".join(filter(None, [table.name, table.setting])),
            table=table.grid(is_short=True),
            parts=parts,
            findings=findings,
            lead=self._lead(table, at_selection),
            ranks=list(zip(*(table.get_ranks(column).values() for column in table.printed))),
            jobs=provenance.get_table_jobs(table, entries, self.make_name),
            more_tables=[*filter(None, [table.choices_grid()])],
            examples=self.find_examples([column.of for column in table.accuracies], selected)
            if self.find_examples
            else (),
        )

    def _lead(self, table: Table, at_selection: pd.DataFrame) -> list[Figure]:
        """Draw the first figures, unless there is only one algorithm."""
        if len(table.rows) < 2:
            return []

        trials = frames.average_over_targets(at_selection, frames.ACCURACIES)
        means = frames.average_over_trials(trials, table.error)
        averages = frames.accuracies(table, COLUMNS[AVERAGE])
        lead = []
        if len(means):
            name = self.make_name(table.dataset, "robustness")
            title = _mark_title("In-domain against out-of-domain", table)
            lead.append(plots.draw_robustness(title, name, means, self.styles))
        if len(averages):
            name = self.make_name(table.dataset, "accuracy", "average")
            title = _mark_title("Average over environments", table)
            limits = plots.dot_limits(averages)
            lead.append(plots.draw_dots(title, name, averages, self.styles, limits))
        return lead

    def _dots(self, table: Table) -> list[Figure]:
        """Draw the accuracies on each environment, all with the same limits."""
        cells = {column.of: frames.accuracies(table, column) for column in table.accuracies}
        cells = {label: frame for label, frame in cells.items() if len(frame)}
        limits = plots.dot_limits(pd.concat(cells.values())) if cells else (0.0, 100.0)
        return [
            plots.draw_dots(
                _mark_title(label, table),
                self.make_name(table.dataset, "accuracy", label),
                environment_cells,
                self.styles,
                limits,
            )
            for label, environment_cells in cells.items()
        ]

    def _choices(self, table: Table, runs: Sequence[RecordedRun]) -> list[Part]:
        """Draw the choices of each algorithm that has several; return no part if none has."""
        cells = {(run.dataset, run.row, run.job.role.cell) for run in runs}
        first_stage = [
            run
            for run in self.results.collection.first_stages
            if (run.dataset, run.row, run.job.role.cell) in cells
        ]
        choices = frames.choices(runs, table.selection, first_stage)
        figures = [
            plots.draw_choices(
                _mark_title(algorithm, table),
                self.make_name(table.dataset, "choices", algorithm),
                choices[choices["algorithm"] == algorithm],
                style,
            )
            for algorithm, style in self.styles.items()
            if (choices["algorithm"] == algorithm).any()
        ]
        return [Part("choices", figures)] if figures else []

    def _hparam_curves(self, table: Table, at_selection: pd.DataFrame) -> list[Part]:
        """Draw accuracy over the hyperparameters of a joint table; return no part for others."""
        figures = plots.draw_hparam_curves(
            frames.average_over_targets(at_selection, frames.ACCURACIES),
            self.results.collection.joint_rows,
            title=table.name,
            make_name=self.make_name,
            error=table.error,
            own_methods=self.results.collection.own_methods,
        )
        marked = [replace(figure, title=_mark_title(figure.title, table)) for figure in figures]
        return [Part("hparams", marked)] if marked else []

    def _step_curves(self, table: Table, checkpoints: pd.DataFrame) -> list[Figure]:
        """Draw accuracy over steps, for the mean over the targets and for each target."""
        rows_by_title: dict[str, pd.DataFrame] = {}
        if checkpoints["target"].nunique() > 1:
            means = frames.average_over_targets(checkpoints, frames.ACCURACIES)
            rows_by_title["mean over environments"] = means
        rows_by_title |= _rows_by_target_title(table, checkpoints)
        lines_by_title = {
            title: frames.average_over_trials_by_step(rows, frames.ACCURACIES, table.error)
            for title, rows in rows_by_title.items()
        }
        lines_by_title = {title: lines for title, lines in lines_by_title.items() if len(lines)}
        if not lines_by_title:
            return []

        limits = plots.line_limits(pd.concat(lines_by_title.values()))
        return [
            plots.draw_curves(
                _mark_title(title, table),
                self.make_name(table.dataset, "over_steps", title),
                lines,
                self.styles,
                limits=limits,
            )
            for title, lines in lines_by_title.items()
        ]

    def _robustness(self, table: Table, at_selection: pd.DataFrame) -> list[Figure]:
        """Draw in-domain against out-of-domain accuracy of the runs, for each target."""
        columns = ["algorithm", "trial", *frames.ACCURACIES]
        points = at_selection.dropna(subset=frames.ACCURACIES)
        if points.empty:
            return []
        limits = {
            name: plots.padded_limits(points[name].min(), points[name].max())
            for name in frames.ACCURACIES
        }
        return [
            plots.draw_robustness(
                _mark_title(title, table),
                self.make_name(table.dataset, "robustness", title),
                rows[columns],
                self.styles,
                limits,
            )
            for title, rows in _rows_by_target_title(table, points).items()
        ]

    def _drift(self, table: Table, checkpoints: pd.DataFrame) -> list[Figure]:
        """Draw the drift of the context distribution if a run recorded it."""
        drift = frames.average_over_targets(checkpoints, frames.DRIFT)
        lines = frames.average_over_trials_by_step(drift, frames.DRIFT, table.error)
        if lines.empty:
            return []
        name = self.make_name(table.dataset, "context_drift")
        return [plots.draw_curves(_mark_title(table.name, table), name, lines, self.styles)]

    def _evaluations(self, table: Table, selected: Sequence[SelectedRun]) -> list[Part]:
        """Draw the measurements of ``carft evaluate``; the part is empty if there are none."""
        evaluations = frames.target_evaluations(selected)
        if not evaluations:
            return [Part("evaluation", [])]

        names = frames.evaluated_names(selected, evaluations)
        bins = frames.reliability(evaluations)
        reliability = [
            evaluation_plots.draw_reliability(
                f"{names[algorithm]}{_incomplete_mark(algorithm, table)}",
                self.make_name(table.dataset, "reliability", algorithm),
                bins[bins["algorithm"] == algorithm],
                style,
            )
            for algorithm, style in self.styles.items()
            if algorithm in names
        ]
        return [
            Part("reliability", reliability),
            Part(
                "flips",
                self._flips(
                    table,
                    frames.flips(evaluations, [column.of for column in table.accuracies]),
                    names,
                ),
            ),
        ]

    def _flips(self, table: Table, rows: pd.DataFrame, names: Mapping[str, str]) -> list[Figure]:
        """Draw the flips in one figure, or one per environment if there are many algorithms."""
        title = table.name
        if len(names) <= evaluation_plots.MAX_BARS_IN_GROUP:
            name = self.make_name(table.dataset, "flips")
            return [
                evaluation_plots.draw_flips(
                    _mark_title(title, table), name, rows, self.styles, names
                )
            ]
        return [
            evaluation_plots.draw_flips(
                f"{title}, {label}{_incomplete_mark(label, table)}",
                self.make_name(table.dataset, "flips", label),
                rows[rows["environment"] == label],
                self.styles,
                names,
            )
            for label in dict.fromkeys(rows["environment"])
        ]

    def make_suite_section(self, table: Table) -> Section:
        """Make the section of a suite: its table, and a figure if it has shifted test sets."""
        identity = self.make_name("suite", table.suite)
        columns = ["algorithm", "alpha", "in_distribution", "mean_of_shifts"]
        points = pd.DataFrame(suites.curve_points(table), columns=columns)
        parts = []
        if points["alpha"].isna().any():
            parts.append(
                Part("suite", [plots.draw_suite(table.title, identity, points, self.styles)])
            )
        return Section(id=identity, title=table.title, table=table.grid(), parts=parts)


def _rows_by_target_title(table: Table, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return title -> rows of each target; all rows together if the runs have no targets."""
    if (rows["target"] == frames.NO_TARGET).any():  # then no run has a target
        return {"no target": rows}

    rows_by_title = {
        _target_title(label): rows[rows["target"] == target]
        for target, label in enumerate(column.of for column in table.accuracies)
    }
    return {title: target_rows for title, target_rows in rows_by_title.items() if len(target_rows)}


def _target_title(label: str) -> str:
    return f"target {label}"


def _mark_title(title: str, table: Table) -> str:
    """Add the incomplete rows to a figure's title."""
    return f"{title}{_incomplete_mark(title, table)}"


def _incomplete_mark(title: str, table: Table) -> str:
    """List the rows that are incomplete on the title's environment, or on any environment."""
    environments = {
        text: column.of
        for column in table.accuracies
        for text in (column.of, _target_title(column.of))
    }
    names = table.incomplete_rows(environments.get(title, ""))
    if title in table.rows:
        return " (incomplete)" if title in names else ""
    listing = ", ".join(names) if len(names) <= _MAX_NAMES else f"{len(names)} rows"
    return f" (incomplete: {listing})" if names else ""
