"""The sections of a report: tables with their jobs, and figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from domainbed_carft.jobs.records import DRIFT
from domainbed_carft.report import evaluation_plots, figure_data, plots
from domainbed_carft.report.evaluation_plots import EvaluatedRun
from domainbed_carft.report.figure_data import (
    ACCURACIES,
    IN_DOMAIN,
    NO_TARGET,
    OUT_OF_DOMAIN,
    Checkpoint,
    ChoiceOutcome,
    Lines,
)
from domainbed_carft.report.plots import Figure, Mark, Styles
from domainbed_carft.results import columns, suites
from domainbed_carft.results.cells import NOT_ALL, Cell
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.groups import Group
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import ChosenRun, find_shared_hparams, format_hparams

_MAX_NAMES = 3  # of incomplete rows in a figure's title

_AUGMENTED = (
    "As in DomainBed, only in-domain accuracies are measured on augmented images, so do not "
    "compare in-domain with out-of-domain accuracies."
)
_BANDS = (
    "Lines are means over the trials of the selected runs; bands are the error of the tables. A "
    "single trial has no band."
)


class _Kind(NamedTuple):
    """The words around a part's figures.

    Attributes:
        title: heading of the part.
        caption: text below the heading, if there are figures.
        reason: why there are none. A part without figures and without a reason is omitted.
    """

    title: str = ""
    caption: str = ""
    reason: str = ""


_KINDS = {
    "lead": _Kind(
        caption="Means over environments and trials at the selected checkpoints, with the error "
        "over trials. Out-of-domain is the accuracy on the targets; in-domain is the accuracy on "
        "held-out images of the training environments. Higher is more robust; at the same height, "
        f"further right is better in-domain. Dashed: zero-shot CLIP, if it was run. {_AUGMENTED}",
    ),
    "accuracy": _Kind(
        title="Accuracy by environment",
        caption="Dots are means over trials, with the error of the tables if there are several "
        "trials. All figures have the same axis, which does not begin at 0. Dashed: zero-shot "
        "CLIP, if it was run.",
        reason="All cells are empty.",
    ),
    "choices": _Kind(
        title="All choices of the search",
        caption="Each dot is a run at its selected checkpoint: one choice of hyperparameters in "
        "one trial for one target. Trials are next to each other. Filled: selected by validation "
        "for its target and trial. Validation can use augmented images, so do not compare the two "
        "kinds of accuracy.",
    ),
    "hparams": _Kind(
        title="Accuracy over the hyperparameter",
        caption="Lines are means over trials of each trial's mean over the targets; bands are the "
        f"error of the tables. A method with a single value is a horizontal line. {_AUGMENTED}",
    ),
    "steps": _Kind(
        title="Accuracy over steps",
        caption="Out-of-domain is the accuracy on the in-split of the target; in-domain is the "
        f"mean over the out-splits of the training environments. {_AUGMENTED} {_BANDS} Zero-shot "
        "CLIP, which does not train, is a horizontal line. All figures have the same axes.",
        reason="No run was selected.",
    ),
    "robustness": _Kind(
        title="In-domain against out-of-domain, by environment",
        caption="Each mark is a run at its selected checkpoint. If two runs have equal in-domain "
        f"accuracy, the higher one is more robust. {_AUGMENTED} All figures have the same axes.",
        reason="The selected runs have no target, so there is no out-of-domain accuracy.",
    ),
    "drift": _Kind(
        title="Drift of the context distribution",
        caption="How far fine-tuning moves the context distribution of the image encoder: its KL "
        "divergence from the context distribution of the original CLIP model, and how often both "
        "agree on the most likely context. Measured on the training images since the previous "
        f"checkpoint, and averaged over the targets of each trial. {_BANDS}",
        reason="No run recorded the drift. CARFT and the other algorithms that train the encoder, "
        "except FLYP and CaRot, record it unless the hparam drift_every is 0 or there is a single "
        "context.",
    ),
    "reliability": _Kind(
        title="Reliability",
        caption="Accuracy over confidence (the probability of the predicted class) in 15 bins, "
        "for all images that carft evaluate predicted with the selected runs. On the dotted line "
        "both are equal. Hollow: at the temperature fitted on the training environments. The "
        "expected calibration error (ECE) is computed from all of these images, while the tables "
        "show the mean over the runs.",
    ),
    "flips": _Kind(
        title="Flips against zero-shot CLIP",
        caption="Gained: images that only the run predicts correctly. Lost: images that only "
        "zero-shot CLIP predicts correctly. Both are shares of the images of the environment, "
        "over all selected runs.",
    ),
    "suite": _Kind(
        title="In distribution against shifted test sets",
        caption="Each mark is the mean over trials of the runs that validation chose. Dashed: "
        "zero-shot CLIP, if it was tested. Dotted: the straight line from zero-shot CLIP to the "
        "run. Solid with points: the weights that WiSE-FT interpolates between the two. If two "
        "weights have equal accuracy in distribution, the higher ones are more robust.",
    ),
    "evaluation": _Kind(
        title="Calibration and flips",
        reason="No selected run was evaluated. For reliability diagrams and flips, run carft "
        "evaluate OUT, then carft report again.",
    ),
}


_Place = tuple[str, str | None]


class Part(NamedTuple):
    """Figures of one kind, or the reason why there are none.

    Attributes:
        kind: a word for HTML ids.
        title: heading.
        text: caption of the figures, or the reason.
        figures: the figures.
    """

    kind: str
    title: str
    text: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    """A section of the page, on a dataset or a suite.

    Attributes:
        id: HTML id.
        title: heading.
        table: the table.
        parts: the figures below the table.
        findings: sentences on the table.
        lead: figures above the table, if there are any.
        ranks: for each row, the ranks of its cells; 0 if unranked.
        targets: for each printed column its target; "" for other columns.
        jobs: (row, target) -> the selected runs of the cell; without a target it is None.
        places: (row, target) -> HTML id of these runs.
        shared: hyperparameters with the same values in all of these runs.
        choices: table of the choices of a search.
    """

    id: str
    title: str
    table: Grid
    parts: Sequence[Part] = ()
    findings: Sequence[str] = ()
    lead: Part | None = None
    ranks: Sequence[Sequence[int]] = ()
    targets: Sequence[str] = ()
    jobs: Mapping[_Place, Sequence[ChosenRun]] = field(default_factory=dict)
    places: Mapping[_Place, str] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    choices: Grid | None = None

    @property
    def shared_text(self) -> str:
        """The shared hyperparameters with their values."""
        return format_hparams(self.shared)

    @property
    def figures(self) -> list[Figure]:
        """All figures of the section."""
        parts = [self.lead, *self.parts] if self.lead else self.parts
        return [figure for part in parts for figure in part.figures]


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
    """Makes the sections of a page.

    Attributes:
        collection: the runs.
        styles: algorithm -> style.
        make_name: words -> unique file name or HTML id.
    """

    collection: Collection
    styles: Styles
    make_name: Callable[..., str]

    def make_dataset_section(
        self,
        group: Group,
        table: Table,
        entries: Sequence[ChosenRun],
        findings: Sequence[str],
    ) -> Section:
        """Make the section of one dataset.

        Args:
            group: the group of the table.
            table: the table.
            entries: the selected runs of the table.
            findings: sentences on the table.
        """
        selected = [
            entry for entry in group.select(table.selection) if entry.dataset == table.dataset
        ]
        environments = {
            column.of: _select_measured({row: cells[column] for row, cells in table.rows.items()})
            for column in table.accuracies
        }
        checkpoints = figure_data.read_checkpoints(selected)
        figures = {
            "accuracy": self._draw_dots(table, environments),
            "choices": self._draw_choices(table, group),
            "hparams": self._draw_hparams(table),
            "steps": self._draw_steps(table, checkpoints),
            "robustness": self._draw_runs(table, checkpoints),
            "drift": self._draw_drift(table, checkpoints),
            **self._draw_evaluations(table, selected),
        }
        lead = self._draw_lead(table)
        jobs: dict[_Place, list[ChosenRun]] = {}
        for entry in entries:
            jobs.setdefault((entry.row, entry.environment), []).append(entry)
        return Section(
            id=self.make_name("data", table.dataset),
            title="; ".join(filter(None, [table.name, table.setting])),
            table=table.grid(is_short=True),
            parts=_make_parts(figures),
            findings=findings,
            lead=Part("lead", "", _KINDS["lead"].caption, lead) if lead else None,
            ranks=list(zip(*(table.get_ranks(column).values() for column in table.printed))),
            targets=[column.of for column in table.printed],
            jobs=jobs,
            places={
                (row, target): self.make_name("cell", table.dataset, row, target or "all")
                for row, target in jobs
            },
            shared=find_shared_hparams(entries),
            choices=table.choices_grid(),
        )

    def make_suite_section(self, table: Table) -> Section:
        """Make the section of a suite: its table, and a figure if it has shifted test sets."""
        identity = self.make_name("suite", table.suite)
        points = suites.curve_points(table)
        has_runs = any(alpha is None for _, alpha, _, _ in points)
        title = f"{table.title}{_mark_incomplete(table)}"
        figures = [plots.draw_suite(title, identity, points, self.styles)] if has_runs else []
        parts = _make_parts({"suite": figures})
        return Section(id=identity, title=table.title, table=table.grid(), parts=parts)

    def _label(
        self, table: Table, title: str, *words: str, environment: str = ""
    ) -> tuple[str, str]:
        """Return a figure's title, which lists its incomplete rows, and its name from words."""
        marked_title = f"{title}{_mark_incomplete(table, environment)}"
        return marked_title, self.make_name(table.dataset, *words)

    def _draw_lead(self, table: Table) -> list[Figure]:
        """Draw the averages, unless there is only one algorithm."""
        if len(table.rows) < 2:
            return []

        in_domain = _get_measured(table, columns.IN_DOMAIN)
        marks = plots.make_marks(in_domain, _get_measured(table, columns.OUT_OF_DOMAIN))
        label = self._label(table, "In-domain against out-of-domain", "robustness")
        averages = {"Average over environments": _get_measured(table, columns.AVERAGE)}
        return [
            *([plots.draw_robustness(*label, marks, self.styles)] if marks else []),
            *self._draw_dots(table, averages),
        ]

    def _draw_dots(
        self, table: Table, cells_by_title: Mapping[str, Mapping[str, Cell]]
    ) -> list[Figure]:
        """Draw the cells of each title, all with the same limits; a title can be an environment."""
        all_cells = [cell for cells in cells_by_title.values() for cell in cells.values()]
        figures = []
        for title, cells in cells_by_title.items():
            if cells:
                environment = title if title in table.labels else ""
                label = self._label(table, title, "accuracy", title, environment=environment)
                limits = plots.error_limits(all_cells)
                figures.append(plots.draw_dots(*label, cells, self.styles, limits))
        return figures

    def _draw_choices(self, table: Table, group: Group) -> list[Figure]:
        """Draw the choices of each algorithm that has several."""
        runs = [run for run in group.runs if run.dataset == table.dataset]
        cells = {(run.dataset, run.row, run.job.role.cell) for run in runs}
        first_stage = [
            run
            for run in self.collection.first_stages
            if (run.dataset, run.row, run.job.role.cell) in cells
        ]
        choices: dict[str, list[ChoiceOutcome]] = {}
        for choice in figure_data.list_choices(runs, table.selection, first_stage):
            choices.setdefault(choice.row, []).append(choice)
        return [
            plots.draw_choices(
                f"{row}{_mark_row(row, table)}",
                self.make_name(table.dataset, "choices", row),
                choices[row],
                style,
            )
            for row, style in self.styles.items()
            if row in choices
        ]

    def _draw_hparams(self, table: Table) -> list[Figure]:
        """Draw accuracy over each hyperparameter in which the rows of a joint table differ."""
        in_domain = _get_measured(table, columns.IN_DOMAIN)
        panels = {
            OUT_OF_DOMAIN: _get_measured(table, columns.OUT_OF_DOMAIN),
            IN_DOMAIN: in_domain,
        }
        row_values = self.collection.groups[0].row_values
        rows = {row: row_values[row] for row in in_domain if row in row_values}
        values_by_hparam: dict[str, set[str]] = {}
        for values_of_row in rows.values():
            for hparam, value in values_of_row.items():
                values_by_hparam.setdefault(hparam, set()).add(str(value))
        return [
            plots.draw_hparam_curve(
                *self._label(table, f"{table.name}, over {hparam}", "over", hparam),
                hparam,
                rows,
                {run.row: run.algorithm for run in self.collection.runs},
                {name: cells for name, cells in panels.items() if cells},
                self.collection.own_methods,
            )
            for hparam, values in values_by_hparam.items()
            if len(values) > 1
        ]

    def _draw_steps(self, table: Table, checkpoints: Sequence[Checkpoint]) -> list[Figure]:
        """Draw accuracy over steps, for the mean over the targets and for each target."""
        by_target = _split_by_target(checkpoints, table)
        if len(by_target) > 1:
            by_target = {("mean over environments", ""): checkpoints} | by_target
        panels_by_target = {
            target: panels
            for target, entries in by_target.items()
            if (panels := _average_by_step(entries, ACCURACIES, table))
        }
        cells: dict[str, list[Cell]] = {}
        for panels in panels_by_target.values():
            for name, lines in panels.items():
                cells.setdefault(name, []).extend(
                    cell for line in lines.values() for cell in line.values()
                )
        limits = {name: plots.error_limits(panel_cells) for name, panel_cells in cells.items()}
        return [
            plots.draw_curves(
                *self._label(table, title, "over_steps", title, environment=environment),
                panels,
                self.styles,
                limits=limits,
            )
            for (title, environment), panels in panels_by_target.items()
        ]

    def _draw_runs(self, table: Table, checkpoints: Sequence[Checkpoint]) -> list[Figure]:
        """Draw in-domain against out-of-domain accuracy of the runs, for each target."""
        points = [
            entry
            for entry in checkpoints
            if entry.is_selected and not math.isnan(entry.in_domain + entry.out_of_domain)
        ]
        if not points:
            return []
        limits = (
            plots.padded_limits(entry.in_domain for entry in points),
            plots.padded_limits(entry.out_of_domain for entry in points),
        )
        return [
            plots.draw_robustness(
                *self._label(table, title, "robustness", title, environment=environment),
                [
                    Mark(entry.row, entry.in_domain, entry.out_of_domain, trial=entry.trial)
                    for entry in entries
                ],
                self.styles,
                limits,
            )
            for (title, environment), entries in _split_by_target(points, table).items()
        ]

    def _draw_drift(self, table: Table, checkpoints: Sequence[Checkpoint]) -> list[Figure]:
        """Draw the drift of the context distribution if a run recorded it."""
        panels = _average_by_step(checkpoints, DRIFT, table)
        label = self._label(table, table.name, "context_drift")
        return [plots.draw_curves(*label, panels, self.styles)] if panels else []

    def _draw_evaluations(
        self, table: Table, selected: Sequence[SelectedRun]
    ) -> dict[str, list[Figure]]:
        """Draw the metrics of ``carft evaluate``; return the kind of each part -> its figures."""
        evaluations = evaluation_plots.read_target_metrics(selected)
        if not evaluations:
            return {"evaluation": []}

        names = _name_evaluated(selected, evaluations)
        reliability = [
            evaluation_plots.draw_reliability(
                f"{names[row]}{_mark_row(row, table)}",
                self.make_name(table.dataset, "reliability", row),
                [metrics for entry, metrics in evaluations if entry.row == row],
                style,
            )
            for row, style in self.styles.items()
            if row in names
        ]

        flips = evaluation_plots.pool_flips(evaluations, table.labels)
        if len(names) <= evaluation_plots.MAX_BARS_IN_GROUP:
            label = self._label(table, table.name, "flips")
            figures = [evaluation_plots.draw_flips(*label, flips, self.styles, names)]
        else:
            figures = [
                evaluation_plots.draw_flips(
                    *self._label(
                        table,
                        f"{table.name}, {environment}",
                        "flips",
                        environment,
                        environment=environment,
                    ),
                    {environment: by_row},
                    self.styles,
                    names,
                )
                for environment, by_row in flips.items()
            ]
        return {"reliability": reliability, "flips": figures}


def _make_parts(figures_by_kind: Mapping[str, Sequence[Figure]]) -> list[Part]:
    """Make the parts that have figures, or a reason why they have none."""
    return [
        Part(name, kind.title, kind.caption if figures else kind.reason, figures)
        for name, figures in figures_by_kind.items()
        if (kind := _KINDS[name]) and (figures or kind.reason)
    ]


def _get_measured(table: Table, name: str) -> dict[str, Cell]:
    """Return row -> cell of a column, without cells that have no mean."""
    return _select_measured(table.get_column(name))


def _select_measured(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    return {
        row: cell
        for row, cell in cells.items()
        if cell.mean is not None and not math.isnan(cell.mean)
    }


def _average_by_step(
    checkpoints: Sequence[Checkpoint], names: Sequence[str], table: Table
) -> dict[str, Lines]:
    """Return the lines of each value that a checkpoint has."""
    panels = {name: figure_data.average_by_step(checkpoints, name, table.error) for name in names}
    return {name: lines for name, lines in panels.items() if lines}


def _split_by_target(
    checkpoints: Sequence[Checkpoint], table: Table
) -> dict[tuple[str, str], Sequence[Checkpoint]]:
    """Map (title, environment) of each target to its checkpoints."""
    by_target: dict[tuple[str, str], list[Checkpoint]] = {}
    for entry in sorted(checkpoints, key=lambda entry: entry.target):
        key = ("no target", "")
        if entry.target != NO_TARGET:
            key = (f"target {table.labels[entry.target]}", table.labels[entry.target])
        by_target.setdefault(key, []).append(entry)
    return dict(by_target)


def _name_evaluated(
    selected: Sequence[SelectedRun], evaluations: Sequence[EvaluatedRun]
) -> dict[str, str]:
    """Return row -> its name, followed by the number of evaluated runs unless all were."""
    folders = {(entry.row, entry.run.folder) for entry in selected}
    evaluated = {(entry.row, entry.run.folder) for entry, _ in evaluations}
    n_selected = Counter(row for row, _ in folders)
    return {
        row: row if count == n_selected[row] else f"{row} ({count} of {n_selected[row]} runs)"
        for row, count in Counter(row for row, _ in evaluated).items()
    }


def _mark_row(row: str, table: Table) -> str:
    return " (incomplete)" if row in table.incomplete_rows() else ""


def _mark_incomplete(table: Table, environment: str = "") -> str:
    """List the rows that are incomplete on an environment, or on any, and those over some only."""
    rows_by_mark = {
        "incomplete": table.incomplete_rows(environment),
        NOT_ALL: table.partial_rows(environment),
    }
    marks = []
    for mark, rows in rows_by_mark.items():
        if rows:
            listing = ", ".join(rows) if len(rows) <= _MAX_NAMES else f"{len(rows)} rows"
            marks.append(f"{mark}: {listing}")
    return f" ({'; '.join(marks)})" if marks else ""
