"""The sections of a report's page: a table, its jobs, its figures and example images."""

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
from domainbed_carft.results.columns import AVERAGE, ENVIRONMENTS
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import BestHparams

_MAX_NAMES = 3  # of incomplete rows in a figure's title


class Part(NamedTuple):
    """Figures of one kind, for which the template has a title and words."""

    kind: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    """A section of the page: of a dataset, or of a suite.

    ``id``: its place on the page; ``findings``: sentences on the table; ``lead``: the figures above
    the table; ``ranks``: for each row the ranks of its cells, 0 for none; ``more_tables``: below
    it; ``examples``: those of each environment left out.
    """

    id: str
    title: str
    table: Grid
    parts: Sequence[Part]
    findings: Sequence[str] = ()
    lead: Sequence[Figure] = ()
    ranks: Sequence[Sequence[int]] = ()
    jobs: TableJobs | None = None
    more_tables: Sequence[Grid] = ()
    examples: Sequence[TargetExamples] = ()

    @property
    def figures(self) -> list[Figure]:
        """All figures of the section."""
        return [*self.lead, *(figure for part in self.parts for figure in part.figures)]


def unique_names() -> Callable[..., str]:
    """A maker of unique names for files and places on the page, from words."""
    counts: Counter[str] = Counter()

    def name(*words: str) -> str:
        plain = (re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.")[:60] or "_" for word in words)
        stem = "-".join(plain)
        counts[stem] += 1
        return stem if counts[stem] == 1 else f"{stem}-{counts[stem]}"

    return name


@dataclass(frozen=True)
class SectionMaker:
    """Makes the sections of a page.

    ``name(word, ...)``: makes unique names for files and places on the page; ``find_examples``: makes
    the examples of environments and selected runs, if any are to be shown.
    """

    results: Results
    styles: Styles
    name: Callable[..., str]
    find_examples: Callable[..., list[TargetExamples]] | None

    def make_table_section(
        self,
        group: Group,
        table: Table,
        entries: Sequence[BestHparams],
        findings: Sequence[str],
    ) -> Section:
        """The section of one dataset: the table, its jobs and figures, and examples of images.

        ``group``: of the table; ``entries``: what was chosen for it; ``findings``: sentences on it.
        """
        identity = self.name("data", table.dataset)
        runs = [run for run in group.runs if run.dataset == table.dataset]
        selected = [
            entry for entry in group.selected(table.method) if entry.dataset == table.dataset
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
            title="; ".join(filter(None, [table.dataset_title, table.setting])),
            table=table.grid_of_one_trial(),
            parts=parts,
            findings=findings,
            lead=self._lead(table, at_selection),
            ranks=table.ranks,
            jobs=provenance.get_table_jobs(table, entries, self.name),
            more_tables=[*filter(None, [table.grid_of_choices()])],
            examples=self.find_examples(table.columns, selected) if self.find_examples else (),
        )

    def _lead(self, table: Table, at_selection: pd.DataFrame) -> list[Figure]:
        """The first figures: in-domain against out-of-domain accuracy, and the averages.

        None of a single algorithm, which is compared with nothing.
        """
        if len(table.rows) < 2:
            return []

        trials = frames.average_over_targets(at_selection, frames.ACCURACIES)
        means = frames.average_over_trials(trials, table.error)
        cells = frames.accuracies(table)
        averages = cells[cells["column"] == AVERAGE]
        lead = []
        if len(means):
            name = self.name(table.dataset, "robustness")
            title = _marked("In-domain against out-of-domain", table)
            lead.append(plots.robustness(title, name, means, self.styles))
        if len(averages):
            name = self.name(table.dataset, "accuracy", "average")
            title = _marked("Average over environments", table)
            limits = plots.dot_limits(averages)
            lead.append(plots.dots(title, name, averages, self.styles, limits))
        return lead

    def _dots(self, table: Table) -> list[Figure]:
        """The accuracies of each environment, all on the same axis."""
        cells = frames.accuracies(table)
        cells = cells[cells["column"] == ENVIRONMENTS]
        limits = plots.dot_limits(cells)
        return [
            plots.dots(
                _marked(label, table),
                self.name(table.dataset, "accuracy", label),
                of_environment,
                self.styles,
                limits,
            )
            for label, of_environment in frames.rows_by(cells, "environment").items()
        ]

    def _choices(self, table: Table, runs: Sequence[RecordedRun]) -> list[Part]:
        """A figure of all choices for each algorithm that had several; no part without any."""
        cells = {(run.dataset, run.row, run.job.role.cell) for run in runs}
        first_stage = [
            run
            for run in self.results.collection.first_stages
            if (run.dataset, run.row, run.job.role.cell) in cells
        ]
        choices = frames.choices(runs, table.method, first_stage)
        figures = [
            plots.choices(
                _marked(algorithm, table),
                self.name(table.dataset, "choices", algorithm),
                choices[choices["algorithm"] == algorithm],
                style,
            )
            for algorithm, style in self.styles.items()
            if (choices["algorithm"] == algorithm).any()
        ]
        return [Part("choices", figures)] if figures else []

    def _hparam_curves(self, table: Table, at_selection: pd.DataFrame) -> list[Part]:
        """Accuracy over what the rows of a joint table differ in; no part for any other table."""
        figures = plots.draw_hparam_curves(
            frames.average_over_targets(at_selection, frames.ACCURACIES),
            self.results.collection.joint_rows,
            title=table.dataset_title,
            name=self.name,
            error=table.error,
        )
        marked = [replace(figure, title=_marked(figure.title, table)) for figure in figures]
        return [Part("hparams", marked)] if marked else []

    def _step_curves(self, table: Table, checkpoints: pd.DataFrame) -> list[Figure]:
        """Accuracy over steps, the mean over the environments left out and each of them."""
        rows_of: dict[str, pd.DataFrame] = {}
        if checkpoints["target"].nunique() > 1:
            means = frames.average_over_targets(checkpoints, frames.ACCURACIES)
            rows_of["mean over environments"] = means
        rows_of |= _by_target(table, checkpoints)
        lines_of = {
            title: frames.average_over_trials_by_step(rows, frames.ACCURACIES, table.error)
            for title, rows in rows_of.items()
        }
        lines_of = {title: lines for title, lines in lines_of.items() if len(lines)}
        if not lines_of:
            return []

        limits = plots.line_limits(pd.concat(lines_of.values()))
        return [
            plots.curves(
                _marked(title, table),
                self.name(table.dataset, "over_steps", title),
                lines,
                self.styles,
                limits=limits,
            )
            for title, lines in lines_of.items()
        ]

    def _robustness(self, table: Table, at_selection: pd.DataFrame) -> list[Figure]:
        """In-domain against out-of-domain accuracy, a mark a run, for each environment left out."""
        columns = ["algorithm", "trial", *frames.ACCURACIES]
        points = at_selection.dropna(subset=frames.ACCURACIES)
        if points.empty:
            return []
        limits = {
            name: plots.padded(points[name].min(), points[name].max()) for name in frames.ACCURACIES
        }
        return [
            plots.robustness(
                _marked(title, table),
                self.name(table.dataset, "robustness", title),
                rows[columns],
                self.styles,
                limits,
            )
            for title, rows in _by_target(table, points).items()
        ]

    def _drift(self, table: Table, checkpoints: pd.DataFrame) -> list[Figure]:
        """How far the context distribution moves, if any run recorded that."""
        drift = frames.average_over_targets(checkpoints, frames.DRIFT)
        lines = frames.average_over_trials_by_step(drift, frames.DRIFT, table.error)
        if lines.empty:
            return []
        name = self.name(table.dataset, "context_drift")
        return [plots.curves(_marked(table.dataset_title, table), name, lines, self.styles)]

    def _evaluations(self, table: Table, selected: Sequence[Selected]) -> list[Part]:
        """Figures of what ``carft evaluate`` measured; an empty part without any evaluated run."""
        evaluations = frames.target_evaluations(selected)
        if not evaluations:
            return [Part("evaluation", [])]

        names = frames.evaluated_names(selected, evaluations)
        bins = frames.reliability(evaluations)
        reliability = [
            evaluation_plots.reliability(
                f"{names[algorithm]}{_mark(algorithm, table)}",
                self.name(table.dataset, "reliability", algorithm),
                bins[bins["algorithm"] == algorithm],
                style,
            )
            for algorithm, style in self.styles.items()
            if algorithm in names
        ]
        return [
            Part("reliability", reliability),
            Part("flips", self._flips(table, frames.flips(evaluations, table.columns), names)),
        ]

    def _flips(self, table: Table, rows: pd.DataFrame, names: Mapping[str, str]) -> list[Figure]:
        """A figure of all environments; of many algorithms one for each environment."""
        title = table.dataset_title
        if len(names) <= evaluation_plots.MAX_BARS_IN_GROUP:
            name = self.name(table.dataset, "flips")
            return [evaluation_plots.flips(_marked(title, table), name, rows, self.styles, names)]
        return [
            evaluation_plots.flips(
                f"{title}, {label}{_mark(label, table)}",
                self.name(table.dataset, "flips", label),
                rows[rows["environment"] == label],
                self.styles,
                names,
            )
            for label in dict.fromkeys(rows["environment"])
        ]

    def make_suite_section(self, rows: Sequence[suites.Scores]) -> Section:
        """The section of a suite: its table, and where it has shifts, the figure."""
        table = suites.grid(rows)
        identity = self.name("suite", rows[0].suite)
        columns = ["algorithm", "alpha", "in_distribution", "mean_of_shifts"]
        points = pd.DataFrame(suites.points(rows), columns=columns)
        parts = []
        if points["alpha"].isna().any():
            parts.append(Part("suite", [plots.suite(table.title, identity, points, self.styles)]))
        return Section(id=identity, title=table.title, table=table, parts=parts)


def _by_target(table: Table, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A title and the rows of each environment left out; all rows if nothing was left out."""
    if (rows["target"] == frames.NO_TARGET).any():  # as in all of them
        return {"nothing left out": rows}

    rows_of_target = {
        _target_title(label): rows[rows["target"] == target]
        for target, label in enumerate(table.columns)
    }
    return {title: target_rows for title, target_rows in rows_of_target.items() if len(target_rows)}


def _target_title(label: str) -> str:
    return f"{label} left out"


def _marked(title: str, table: Table) -> str:
    """A figure's title, with the rows that are incomplete in what it shows."""
    return f"{title}{_mark(title, table)}"


def _mark(title: str, table: Table) -> str:
    """The rows that are incomplete in an environment, or in any if ``title`` names none."""
    environment = {text: label for label in table.columns for text in (label, _target_title(label))}
    names = table.incomplete_rows(environment.get(title, ""))
    if title in (row.algorithm for row in table.rows):
        return " (incomplete)" if title in names else ""
    listing = ", ".join(names) if len(names) <= _MAX_NAMES else f"{len(names)} rows"
    return f" (incomplete: {listing})" if names else ""
