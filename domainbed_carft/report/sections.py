"""The sections of a report's page: a table, its figures and examples of pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.report import (
    chosen_jobs,
    evaluation_figures,
    figures,
    frames,
    joint_figures,
    page_tables,
    plane_figures,
    pooled_evaluations,
    search_figures,
)
from domainbed_carft.report.canvas import Figure
from domainbed_carft.report.styles import Styles
from domainbed_carft.results import suites
from domainbed_carft.results.rows import JointRow
from domainbed_carft.results.tables import Table
from domainbed_carft.results.top import BestHparams


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
    """Makes the sections of a page, by the names that its template uses.

    ``name(word, ...)``: makes unique names for files and places on the page; ``example_part``:
    makes the examples of a table and the runs on its data set, if any are to be shown.
    ``joint_rows``: the rows of a joint table, by name.
    """

    styles: Styles
    name: Callable[..., str]
    example_part: Callable[..., dict[str, Any]] | None
    joint_rows: Mapping[str, JointRow]

    def of_table(
        self,
        table: Table,
        runs: Sequence[Run],
        entries: Sequence[BestHparams],
        first_stage: Sequence[Run] = (),
    ) -> dict[str, Any]:
        """The section of one data set: the table, its jobs and figures, and examples of pictures.

        ``runs``: of the table's group, on any data set; ``entries``: of what was chosen for the
        table; ``first_stage``: the runs among which searches in two stages have chosen.
        """
        identity = self.name("data", table.dataset)
        dataset_runs = [run for run in runs if run.dataset == table.dataset]
        figures_by_kind: dict[str, list[Figure | None]] = {
            "accuracy": [*figures.dots(table, self.styles, self.name)]
        }
        figures_of_choices = self._figures_of_choices(table, dataset_runs, first_stage)
        if figures_of_choices:
            figures_by_kind["choices"] = figures_of_choices
        checkpoints = frames.checkpoints(dataset_runs, table.method)
        figures_over_hparams = self._figures_over_hparams(table, checkpoints)
        if figures_over_hparams:
            figures_by_kind["hparams"] = figures_over_hparams
        figures_by_kind |= self._figures_of_checkpoints(table, checkpoints)
        figures_by_kind |= self._figures_of_evaluations(table, dataset_runs)

        # The template has title and text for each kind, also where there is no figure.
        parts = [_part(kind, kind_figures) for kind, kind_figures in figures_by_kind.items()]
        if self.example_part:
            parts.append(self.example_part(table, dataset_runs))
        return {
            "id": identity,
            "title": "; ".join(filter(None, [table.dataset_title, table.setting])),
            "setting": table.setting,
            "findings": [],
            "lead": self._lead(table, checkpoints),
            "table": page_tables.grid(table),
            "ranks": page_tables.ranks(table),
            "jobs": chosen_jobs.jobs_of_table(table, entries, self.name),
            "parts": parts,
        }

    def _lead(self, table: Table, checkpoints: pd.DataFrame) -> list[Figure]:
        """The first figures: in-domain against out-of-domain accuracy, and the averages.

        None of a single algorithm, which is compared with nothing.
        """
        if len(table.rows) < 2:
            return []

        selected = checkpoints[checkpoints["selected"]].drop(columns="step")
        means = plane_figures.means(
            "In-domain against out-of-domain",
            self.name(table.dataset, "robustness"),
            frames.over_targets(selected, ["in_domain", "out_of_domain"]),
            self.styles,
            error=table.error,
        )
        averages = figures.dots_of_averages(table, self.styles, self.name)
        return list(filter(None, [means, averages]))

    def _figures_of_checkpoints(
        self, table: Table, checkpoints: pd.DataFrame
    ) -> dict[str, list[Figure | None]]:
        """Kind of part -> its figures; None where a figure would be empty."""
        dataset = table.dataset
        styles = self.styles
        selected = checkpoints[checkpoints["selected"]].drop(columns="step")
        drift = frames.over_targets(checkpoints, frames.DRIFT)

        rows_by_title = {**_mean_over_targets(checkpoints), **_by_target(table, checkpoints)}
        limits = figures.shared_limits(rows_by_title.values(), figures.ACCURACY, table.error)
        over_steps = [
            figures.curves(
                title,
                self.name(dataset, "over_steps", title),
                rows,
                figures.ACCURACY,
                styles,
                error=table.error,
                limits=limits,
            )
            for title, rows in rows_by_title.items()
        ]
        limits = plane_figures.plane_limits(selected)
        return {
            "steps": over_steps,
            "robustness": [
                plane_figures.marks(
                    title,
                    self.name(dataset, "robustness", title),
                    rows,
                    styles,
                    limits=limits,
                )
                for title, rows in _by_target(table, selected).items()
            ],
            "drift": [
                figures.curves(
                    table.dataset_title,
                    self.name(dataset, "context_drift"),
                    drift,
                    figures.DRIFT,
                    styles,
                    error=table.error,
                )
            ],
        }

    def _figures_of_evaluations(
        self, table: Table, dataset_runs: Sequence[Run]
    ) -> dict[str, list[Figure | None]]:
        """Kind of part -> its figures, of what ``carft evaluate`` measured.

        Without any evaluated run the kind ``evaluation`` is there, empty.
        """
        evaluations = pooled_evaluations.pool_evaluations(dataset_runs, table.method)
        if not evaluations:
            return {"evaluation": []}

        reliability: list[Figure | None] = [
            evaluation_figures.reliability(
                title=algorithm,
                name=self.name(table.dataset, "reliability", algorithm),
                evaluation=evaluations[algorithm],
                style=style,
            )
            for algorithm, style in self.styles.items()
            if algorithm in evaluations
        ]
        flips = evaluation_figures.flips(
            table.dataset_title,
            evaluations,
            environments=table.columns,
            styles=self.styles,
            name=partial(self.name, table.dataset),
        )
        over_alignment = evaluation_figures.over_alignment(
            table.dataset_title,
            self.name(table.dataset, "over_alignment"),
            evaluations,
            self.styles,
        )
        return {"reliability": reliability, "flips": [*flips], "alignment": [over_alignment]}

    def _figures_of_choices(
        self, table: Table, dataset_runs: Sequence[Run], first_stage: Sequence[Run]
    ) -> list[Figure | None]:
        """A figure of all choices for each algorithm that had several."""
        cells = {(run.dataset, run.row, run.job.role.cell) for run in dataset_runs}
        searched_runs = [
            run for run in first_stage if (run.dataset, run.row, run.job.role.cell) in cells
        ]
        choices = frames.choices(dataset_runs, table.method, searched_runs)
        return [
            search_figures.choices(
                title=algorithm,
                name=self.name(table.dataset, "choices", algorithm),
                rows=choices[choices["algorithm"] == algorithm],
                style=style,
            )
            for algorithm, style in self.styles.items()
            if (choices["algorithm"] == algorithm).any()
        ]

    def _figures_over_hparams(self, table: Table, checkpoints: pd.DataFrame) -> list[Figure | None]:
        """Accuracy over what the rows of a joint table differ in; empty for any other table."""
        selected = checkpoints[checkpoints["selected"]].drop(columns="step")
        return [
            *joint_figures.over_hparams(
                selected,
                self.joint_rows,
                title=table.dataset_title,
                name=self.name,
                error=table.error,
            )
        ]

    def of_suite(self, rows: Sequence[suites.Scores]) -> dict[str, Any]:
        """The section of a suite: its table, and where it has shifts, the figure."""
        table = suites.grid(rows)
        identity = self.name("suite", rows[0].suite)
        figure = plane_figures.suite(table.title, identity, suites.points(rows), self.styles)
        parts = [_part("suite", [figure])] if figure else []
        return {
            "id": identity,
            "title": table.title,
            "setting": rows[0].setting,
            "findings": [],
            "lead": [],
            "table": table,
            "ranks": None,
            "jobs": None,
            "more_tables": [],
            "parts": parts,
        }


def _part(kind: str, figures_or_none: Sequence[Figure | None]) -> dict[str, Any]:
    return {"kind": kind, "figures": list(filter(None, figures_or_none)), "targets": ()}


def _mean_over_targets(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A title and the means over the environments left out, if there are several."""
    if rows["target"].nunique() < 2:
        return {}
    means = frames.over_targets(rows, ["in_domain", "out_of_domain"])
    return {} if means.empty else {"mean over environments": means}


def _by_target(table: Table, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A title and the rows of each environment left out; all rows if nothing was left out."""
    if (rows["target"] == frames.NO_TARGET).any():  # as in all of them
        return {"nothing left out": rows}

    rows_of_target = {
        f"{label} left out": rows[rows["target"] == target]
        for target, label in enumerate(table.columns)
    }
    return {title: target_rows for title, target_rows in rows_of_target.items() if len(target_rows)}
