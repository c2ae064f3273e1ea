"""The columns that tables can have: accuracies, costs, and the jobs behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.cells import Cell, cell_of
from domainbed_carft.results.columns import (
    AVERAGE,
    DEFAULT_COLUMNS,
    ENVIRONMENTS,
    NO_VALUE,
    Column,
    RowRuns,
    accuracy_text,
    count_text,
    figure_text,
)
from domainbed_carft.results.evaluated_columns import EVALUATED
from domainbed_carft.text import unknown


def environment_column(number: int, title: str) -> Column:
    """The accuracy on the target ``number`` of a data set's environments."""
    return Column(
        name=ENVIRONMENTS,
        title=title,
        unit="%",
        explanation="",
        measure=lambda row: row.cells[number],
        write=accuracy_text,
    )


def _out_of_domain(row: RowRuns) -> Cell:
    """Over the trials: each trial's mean over the targets that it has."""
    incomplete = [
        name for name, cell in zip(row.environments, row.cells, strict=True) if cell.missing
    ]
    accuracies: dict[int, list[float]] = {}
    for selected in row.selected:
        if selected.outcome.run.test_envs:
            accuracies.setdefault(selected.trial, []).append(selected.outcome.accuracy)
    return _over_trials(row, accuracies, incomplete)


def _in_domain(row: RowRuns) -> Cell:
    """Over the trials: each trial's mean over the targets, of the validation accuracy."""
    accuracies: dict[int, list[float]] = {}
    for selected in row.selected:
        accuracy = selection.in_domain_at(selected.outcome)
        accuracies.setdefault(selected.trial, []).append(accuracy)
    return _over_trials(row, accuracies, incomplete=[])


def _over_trials(
    row: RowRuns, accuracies: dict[int, list[float]], incomplete: Sequence[str]
) -> Cell:
    if not accuracies:
        return Cell()

    means = {trial: float(np.mean(accuracies[trial])) for trial in sorted(accuracies)}
    missing = [f"incomplete: {', '.join(incomplete)}"] if incomplete else []
    return cell_of(means, missing, row.error)


def _worst(row: RowRuns) -> Cell:
    """The cell with the lowest mean, if every expected cell has one."""
    expected = [
        cell._replace(label=name)
        for name, cell in zip(row.environments, row.cells, strict=True)
        if cell.is_expected
    ]
    without_value = [cell.label for cell in expected if cell.mean is None]
    if without_value:
        return Cell(missing=(f"no value: {', '.join(without_value)}",))
    if not expected:
        return Cell()
    return min(expected, key=lambda cell: math.inf if cell.mean is None else cell.mean)


def _cost_of_selected(
    value_of: Callable[[Cost], float | None], combine: Callable[[list[float]], float], key: str
) -> Callable[[RowRuns], Cell]:
    """What computes a cell from the costs of the selected runs; ``key``: of the records."""
    return lambda row: _cost_cell(row.selected_runs, value_of, combine, key)


def _cost_of_candidates(
    value_of: Callable[[Cost], float | None], combine: Callable[[list[float]], float], key: str
) -> Callable[[RowRuns], Cell]:
    """What computes a cell from the costs of all candidates; ``key``: of the records."""
    return lambda row: _cost_cell(row.candidates, value_of, combine, key)


def _cost_cell(
    runs: Sequence[Run],
    value_of: Callable[[Cost], float | None],
    combine: Callable[[list[float]], float],
    key: str,
) -> Cell:
    """The runs' costs combined; without a value if there is no run, or if any lacks the key."""
    if not runs:
        return Cell()

    values = [value_of(run.cost) for run in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Cell(missing=(f"the records have no {key}",))
    return Cell(combine(known), n=len(known))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _n_jobs(row: RowRuns) -> Cell:
    return Cell(float(len(row.candidates)), n=len(row.candidates)) if row.candidates else Cell()


def _n_draws(row: RowRuns) -> Cell:
    """The mean over targets and trials of how many choices the chosen one was chosen from."""
    members = [float(selected.outcome.members) for selected in row.selected]
    return Cell(_mean(members), n=len(members)) if members else Cell()


_MEASURES = (
    Column(
        AVERAGE,
        "Avg",
        "%",
        "Avg: mean of the row's cells.",
        lambda row: Cell(row.average),
        accuracy_text,
        placeholder=NO_VALUE,
    ),
    Column(
        "out-of-domain",
        "Out of domain",
        "%",
        "Out of domain: over the trials, of each trial's mean over the environments left out.",
        _out_of_domain,
        accuracy_text,
    ),
    Column(
        "worst",
        "Worst",
        "%",
        "Worst: the environment left out with the lowest mean.",
        _worst,
        accuracy_text,
    ),
    Column(
        "in-domain",
        "In-domain",
        "%",
        "In-domain: at the chosen checkpoints, the mean accuracy on the out-splits of the "
        "environments trained on; over the trials, of each trial's mean over the environments "
        "left out.",
        _in_domain,
        accuracy_text,
    ),
)
_COSTS = (
    Column(
        "step-seconds",
        "s/step",
        "s",
        "s/step: seconds a training step took, mean over the chosen jobs, without the first record "
        "of each.",
        _cost_of_selected(lambda cost: cost.step_seconds, _mean, "step_time"),
        figure_text,
    ),
    Column(
        "training-hours",
        "Training h",
        "h",
        "Training h: hours of all training steps of all jobs behind the row, chosen or not.",
        _cost_of_candidates(lambda cost: cost.training_hours, math.fsum, "step_time"),
        figure_text,
    ),
    Column(
        "evaluation-hours",
        "Evaluation h",
        "h",
        "Evaluation h: hours of the evaluations of all these jobs.",
        _cost_of_candidates(lambda cost: cost.evaluation_hours, math.fsum, "evaluation_time"),
        figure_text,
    ),
    Column(
        "memory",
        "GiB",
        "GiB",
        "GiB: the most GPU memory that a chosen job had in use.",
        _cost_of_selected(lambda cost: cost.memory_gb, max, "memory of a GPU (mem_gb)"),
        figure_text,
    ),
)
_COUNTS = (
    Column(
        "parameters",
        "Trained",
        "",
        "Trained: how many parameters a chosen job trained, the most of any.",
        _cost_of_selected(lambda cost: cost.trained_parameters, max, "trained_parameters"),
        count_text,
    ),
    Column(
        "jobs",
        "Jobs",
        "",
        "Jobs: how many have a record, of those that the method chooses from.",
        _n_jobs,
        count_text,
    ),
    Column(
        "draws",
        "Draws",
        "",
        "Draws: among how many hyperparameters the method chose, draws and members of a search; on "
        "average over environments and trials.",
        _n_draws,
        count_text,
    ),
)
NAMES = (
    ENVIRONMENTS,
    *(column.name for column in (*_MEASURES, *_COSTS, *_COUNTS, *EVALUATED)),
)


def check_names(names: Iterable[str]) -> None:
    """Raise CarftError for a name that is not one of NAMES."""
    for name in names:
        if name not in NAMES:
            raise CarftError(unknown("column", name, NAMES))


def choose(
    names: Sequence[str], environments: Sequence[str], runs: Iterable[Run]
) -> tuple[Column, ...]:
    """The columns with these names, in their order, each once.

    ``environments``: titles of the targets, which have a column each. A cost has a column for each
    device that ``runs`` were trained on: such figures are never averaged over devices.
    """
    devices = list(dict.fromkeys(sorted(run.cost.device for run in runs)))
    targets = [environment_column(number, title) for number, title in enumerate(environments)]
    by_name = {column.name: [column] for column in (*_MEASURES, *_COUNTS, *EVALUATED)}
    by_name[ENVIRONMENTS] = targets
    for column in _COSTS:
        by_name[column.name] = [_on_device(column, device, devices) for device in devices]
    return tuple(column for name in dict.fromkeys(names) for column in by_name[name])


def _on_device(column: Column, device: str, devices: Sequence[str]) -> Column:
    """The column of a cost on one device, which its title names if there are several."""
    return replace(
        column,
        title=column.title if len(devices) == 1 else f"{column.title}, {device}",
        measure=lambda row: column.measure(row.on_device(device)),
        device=device,
    )


def explanations(columns: Iterable[Column]) -> list[str]:
    """What the shown columns mean, and on which devices costs were measured: for captions."""
    columns = list(columns)
    sentences = [column.explanation for column in columns if column.name not in DEFAULT_COLUMNS]
    devices = dict.fromkeys(column.device for column in columns if column.device)
    if devices:
        sentences.append(f"Costs were measured on {'; '.join(devices)}.")
    return list(dict.fromkeys(sentences))
