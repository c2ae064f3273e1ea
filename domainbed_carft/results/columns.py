"""The columns that tables can have, an entry each: accuracies, costs, counts, and what
``carft evaluate`` measured; their cells, and the errors that stand behind means.

Importing this module loads no numpy, so that command lines can name the columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.text import unknown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from domainbed_carft.results.evaluations import RunMetrics, SplitMetrics
    from domainbed_carft.results.selection import SelectedRun

PLUS_MINUS = "±"
NO_VALUE = "X"
NOT_DECLARED = "-"
PARTIAL = "*"
NOT_ALL = "not over all environments"
PERCENT = 100.0

ENVIRONMENTS = "environments"
AVERAGE = "average"
IN_DOMAIN = "in-domain"
DEFAULT_COLUMNS = (ENVIRONMENTS, AVERAGE)

_CACHED_SUMMARIES = 4096


@dataclass(frozen=True)
class ErrorKind:
    """What stands behind a mean, after the sign ±.

    ``name``: as for ``--error``; ``title``: in words; ``definition``: a sentence for captions;
    ``of``: computes it from the values of two or more trials.
    """

    name: str
    title: str
    definition: str
    of: Callable[[npt.NDArray[np.float64]], float]


def domainbed_error(values: npt.NDArray[np.float64]) -> float:
    """The standard error of the mean with divisor n, as DomainBed computes it, to the last bit."""
    # Divided before, not after: the last bit decides how a half is rounded.
    return float((values / values.size**0.5).std())


def sample_error(values: npt.NDArray[np.float64]) -> float:
    """The standard error of the mean of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1) / values.size**0.5)


def sample_deviation(values: npt.NDArray[np.float64]) -> float:
    """The standard deviation of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1))


DOMAINBED = ErrorKind(
    "domainbed",
    "standard error",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, divisor n "
    "(numpy.std with ddof 0), as DomainBed computes it",
    domainbed_error,
)
SAMPLE = ErrorKind(
    "sample",
    "standard error",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, "
    "divisor n - 1 (numpy.std with ddof 1)",
    sample_error,
)
DEVIATION = ErrorKind(
    "std",
    "standard deviation",
    "Standard deviation over the n trials, divisor n - 1 (numpy.std with ddof 1)",
    sample_deviation,
)
ERROR_KINDS = {kind.name: kind for kind in (DOMAINBED, SAMPLE, DEVIATION)}


class Cell(NamedTuple):
    """A value of ``n`` trials or jobs, and its place in the long list of all tables' cells.

    Accuracies are in percent, other values in the ``unit`` of their column. ``standard_error``: of
    the kind that the tables were made with; None for a single trial. The mean is None if there is
    no value; ``missing`` says what it lacks. ``accuracies``: trial -> accuracy in [0, 1].
    ``partial``: over some of the environments for which no more jobs are declared, or of a copy
    that is not complete.

    ``setting``: the group's title; ``selection``: the method; ``row``: what tables call it;
    ``column``: its name; ``of``: the environment, "average" for the mean over a dataset's
    environments, or what else the value is of; ``device``: of a cost.
    """

    mean: float | None = None
    standard_error: float | None = None
    n: int = 0
    missing: tuple[str, ...] = ()
    accuracies: Mapping[int, float] = {}
    partial: bool = False
    setting: str = ""
    selection: str = ""
    dataset: str = ""
    row: str = ""
    column: str = ""
    of: str = ""
    device: str = ""
    unit: str = ""

    @property
    def is_expected(self) -> bool:
        """Whether the cell should have a value."""
        return self.mean is not None or bool(self.missing)

    @property
    def is_incomplete(self) -> bool:
        """Whether the value lacks a part, so that it is marked and has no rank."""
        return bool(self.missing) or (self.partial and self.mean is not None)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the cell lacks, as reasons."""
        return self.missing or ((NOT_ALL,) if self.is_incomplete else ())


def mean_cell(
    values_by_trial: Mapping[int, float],
    missing: Sequence[str] = (),
    error: ErrorKind = DOMAINBED,
    scale: float = PERCENT,
) -> Cell:
    """The mean over the trials and its ``error``, times ``scale``; of accuracies in [0, 1].

    As in DomainBed's collect_results, to the last bit, but that one trial has no error.
    """
    import numpy as np

    if not values_by_trial:
        return Cell(missing=tuple(missing or ["no accuracy recorded on this environment"]))

    values = np.array([*values_by_trial.values()])
    return Cell(
        mean=scale * values.mean(),
        standard_error=scale * error.compute(values) if values.size > 1 else None,
        n=values.size,
        missing=tuple(missing),
        accuracies=values_by_trial,
    )


def format_accuracy(
    value: float | None, standard_error: float | None = None, n: int | None = None
) -> str:
    """A percentage with its standard error and number of trials, as ``96.8 ± 0.4 (3)``.

    What is None (or ``n`` 0) is left out; without a value the text is empty.
    """
    return _format_mean(value, standard_error, n, digits=1)


def _format_mean(
    value: float | None, standard_error: float | None, n: int | None, digits: int
) -> str:
    if value is None:
        return ""

    text = f"{value:.{digits}f}"
    if standard_error is not None:
        text += f" {PLUS_MINUS} {standard_error:.{digits}f}"
    if n:
        text += f" ({n})"
    return text


def accuracy_text(cell: Cell) -> str:
    """An accuracy in percent with error and number of trials, and what it is of, if anything."""
    text = format_accuracy(cell.mean, cell.standard_error, cell.n)
    names_environment = cell.label and cell.column != ENVIRONMENTS
    return f"{text} {cell.label}" if text and names_environment else text


def score_text(cell: Cell) -> str:
    """A score with three decimals, its error, and the number of trials."""
    return _format_mean(cell.mean, cell.standard_error, cell.n, digits=3)


def cost_text(cell: Cell) -> str:
    """A cost with three digits that count, or more before the point: 0.0214, 12.3, 1,234."""
    if cell.mean is None:
        return ""
    if cell.mean == 0:
        return "0"

    digits_before_point = math.floor(math.log10(abs(cell.mean))) + 1
    return f"{cell.mean:,.{max(0, 3 - digits_before_point)}f}"


def count_text(cell: Cell) -> str:
    """A whole number, or a mean of such with one decimal."""
    if cell.mean is None:
        return ""
    return f"{cell.mean:,.0f}" if cell.mean == int(cell.mean) else f"{cell.mean:,.1f}"


@dataclass(frozen=True)
class RowRuns:
    """What the cells of a row are computed from: one algorithm on one dataset, by one method.

    ``environments`` names the columns of ``cells``, the accuracies on each target. ``selected``:
    what the method chose for each target and trial. ``candidates``: all runs that it chose from.
    ``error``: of the cells. ``is_partial``: whether jobs are declared for some targets only.
    """

    environments: Sequence[str]
    cells: Sequence[Cell]
    selected: Sequence[SelectedRun]
    candidates: Sequence[RecordedRun]
    error: ErrorKind
    is_partial: bool = False

    @property
    def selected_runs(self) -> list[RecordedRun]:
        """The runs whose accuracies count, each once."""
        return list({id(selected.run): selected.run for selected in self.selected}.values())

    @property
    def incomplete(self) -> tuple[str, ...]:
        """The environments with incomplete cells, as a reason that a mean over them lacks some."""
        cells = zip(self.environments, self.cells, strict=True)
        names = [name for name, cell in cells if cell.missing]
        return (f"incomplete: {', '.join(names)}",) if names else ()

    def mean_over_targets(
        self, values: Iterable[tuple[int, float]], scale: float = PERCENT
    ) -> Cell:
        """Over the trials: each trial's mean over the targets that it has, marked if some lack.

        ``values``: (trial, value) of each target.
        """
        means = trial_means(values)
        if not means and not self.incomplete:
            return Cell()
        cell = mean_cell(means, self.incomplete, self.error, scale)
        return cell._replace(partial=self.is_partial)

    def on_device(self, device: str) -> RowRuns:
        """The row with only the runs on one device; its accuracies stay."""
        return replace(
            self,
            selected=[entry for entry in self.selected if entry.run.cost.device == device],
            candidates=[run for run in self.candidates if run.cost.device == device],
        )


Measure = Callable[[RowRuns], Cell]
CostOf = Callable[[Cost], float | None]
Combine = Callable[[list[float]], float]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    ``name``: as for ``--columns``, of a target ENVIRONMENTS; ``title``: the header; ``unit``: of
    the cells' means, such as "%" or "s"; ``explanation``: a sentence for captions, if it needs one.
    ``measure`` computes a row's cell, ``write`` makes its text, "" without a value. ``is_ranked``:
    whether the highest value is the best. ``is_cost``: whether each device has a column of its own,
    and ``device``: which one this is of. ``placeholder``: the text of a cell that lacks nothing and
    has no value.
    """

    name: str
    title: str
    unit: str
    explanation: str
    measure: Measure
    write: Callable[[Cell], str] = accuracy_text
    is_ranked: bool = False
    is_cost: bool = False
    device: str = ""
    placeholder: str = NOT_DECLARED

    def text(self, cell: Cell, note_number: int | None = None) -> str:
        """The cell's text, with the number of the note that says what it lacks, if it does."""
        text = self.write(cell)
        if note_number is None:
            return f"{text}{PARTIAL if cell.is_incomplete else ''}" or self.placeholder
        return f"{text or NO_VALUE} [{note_number}]"

    def on_device(self, device: str, of_several: bool) -> Column:
        """The column of a cost on one device, which its title names if there are several."""
        return replace(
            self,
            title=f"{self.title}, {device}" if of_several else self.title,
            measure=lambda row: self.measure(row.on_device(device)),
            device=device,
        )


def environment_column(number: int, title: str) -> Column:
    """The accuracy on the target ``number`` of a dataset's environments."""
    return Column(ENVIRONMENTS, title, "%", "", lambda row: row.cells[number], is_ranked=True)


def average(cells: Iterable[Cell]) -> float | None:
    """The mean of the expected cells in percent; None if one of them has no value."""
    import numpy as np

    means = [cell.mean for cell in cells if cell.is_expected]
    values = [mean for mean in means if mean is not None]

    is_complete = len(values) == len(means)
    return float(np.mean(values)) if values and is_complete else None


def trial_means(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Trial -> the mean of its values, from (trial, value) in the order in which they are summed.

    Trials come in ascending order.
    """
    import numpy as np

    values_by_trial: dict[int, list[float]] = {}
    for trial, value in values:
        values_by_trial.setdefault(trial, []).append(value)
    return {trial: float(np.mean(values_by_trial[trial])) for trial in sorted(values_by_trial)}


def _average(row: RowRuns) -> Cell:
    """The mean of the row's cells, if every expected cell has a value."""
    return Cell(average(row.cells), missing=row.incomplete, partial=row.is_partial)


def _out_of_domain(row: RowRuns) -> Cell:
    """The accuracy on the environments left out; empty if nothing was."""
    left_out = [entry for entry in row.selected if entry.run.test_envs]
    if row.selected and not left_out:
        return Cell()
    return row.mean_over_targets((entry.trial, entry.outcome.accuracy) for entry in left_out)


def _in_domain(row: RowRuns) -> Cell:
    """The validation accuracy, of the runs of all targets."""
    from domainbed_carft.results.selection import in_domain_accuracy

    return row.mean_over_targets(
        (entry.trial, in_domain_accuracy(entry.outcome)) for entry in row.selected
    )


def _worst(row: RowRuns) -> Cell:
    """The cell with the lowest mean, if every expected cell has one."""
    expected = [
        cell._replace(of=name)
        for name, cell in zip(row.environments, row.cells, strict=True)
        if cell.is_expected
    ]
    without_value = [cell.label for cell in expected if cell.mean is None]
    if without_value:
        return Cell(missing=(f"no value: {', '.join(without_value)}",))
    if not expected:
        return Cell()
    worst = min(expected, key=lambda cell: math.inf if cell.mean is None else cell.mean)
    return worst._replace(missing=row.incomplete, partial=row.is_partial)


def _of_chosen(cost_of: CostOf, combine: Combine, key: str) -> Measure:
    """What combines the costs of the chosen runs; ``key``: of the records that have them."""
    return lambda row: _cost_cell(row.selected_runs, cost_of, combine, key)


def _of_candidates(cost_of: CostOf, combine: Combine, key: str) -> Measure:
    """What combines the costs of all runs, chosen or not; ``key``: as of `_of_chosen`."""
    return lambda row: _cost_cell(row.candidates, cost_of, combine, key)


def _cost_cell(runs: Sequence[RecordedRun], cost_of: CostOf, combine: Combine, key: str) -> Cell:
    """The runs' costs combined; without a value if there is no run, or if any lacks the key."""
    if not runs:
        return Cell()

    costs = [cost_of(run.cost) for run in runs]
    recorded_costs = [cost for cost in costs if cost is not None]
    if len(recorded_costs) < len(costs):
        return Cell(missing=(f"the records have no {key}",))
    return Cell(combine(recorded_costs), n=len(recorded_costs))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _n_jobs(row: RowRuns) -> Cell:
    return Cell(float(len(row.candidates)), n=len(row.candidates)) if row.candidates else Cell()


def _n_draws(row: RowRuns) -> Cell:
    """The mean over targets and trials of how many choices the chosen one was chosen from."""
    members = [float(entry.outcome.members) for entry in row.selected]
    return Cell(_mean(members), n=len(members)) if members else Cell()


def find_run_metrics(selected: SelectedRun) -> RunMetrics | str:
    """What ``carft evaluate`` measured of a selected run at its step, or why there is nothing."""
    from domainbed_carft.results.evaluations import metrics_path

    folder = Path(selected.run.folder)
    step = int(selected.outcome.step)
    path = metrics_path(folder, step)
    changed = path.stat().st_mtime_ns if path.exists() else 0

    figures = _read_figures(folder, step, changed)
    if isinstance(figures, str) or figures.facts.matches(selected.run.job):
        return figures
    return "the evaluation is of another job; run carft evaluate on the sweep"


@functools.lru_cache(maxsize=_CACHED_SUMMARIES)
def _read_figures(folder: Path, step: int, changed: int) -> RunMetrics | str:
    """What `find_metrics` finds, read once for all columns; ``changed``: the time of change."""
    from domainbed_carft.results.evaluations import find_metrics

    return find_metrics(folder, step)


def _evaluated(figure: Callable[[SplitMetrics], float | None], scale: float = PERCENT) -> Measure:
    """What computes a cell from a figure of each selected run on the environment left out.

    Over the trials of each trial's mean over the environments; ``figure`` is None where the run has
    none, which the cell names unless no run has any, and is multiplied by ``scale``.
    """

    def figure_of_run(figures: RunMetrics, target: int) -> float | None:
        part = figures.get_environment(target)
        return figure(part) if part else None

    return _evaluated_run(figure_of_run, scale)


def _evaluated_run(
    figure: Callable[[RunMetrics, int], float | None], scale: float = PERCENT
) -> Measure:
    """What computes a cell from a figure of each selected run and target, as `_evaluated` does."""

    def measure(row: RowRuns) -> Cell:
        values = []
        without_value: list[str] = []
        lacking: dict[str, list[str]] = {}
        for selected in row.selected:
            figures = find_run_metrics(selected)
            place = f"{row.environments[selected.target]} trial {selected.trial}"
            if isinstance(figures, str):
                lacking.setdefault(figures, []).append(place)
                continue
            value = figure(figures, selected.target)
            if value is None:
                without_value.append(place)
            else:
                values.append((selected.trial, scale * value))

        if lacking:
            reasons = [
                f"{problem}: {', '.join(sorted(places))}" for problem, places in lacking.items()
            ]
            return Cell(missing=tuple(reasons))
        cell = row.mean_over_targets(values, scale=1)
        if values and without_value:
            reason = f"no such figure: {', '.join(sorted(without_value))}"
            return cell._replace(missing=(*cell.missing, reason))
        return cell

    return measure


def _scaled(name: str) -> Callable[[SplitMetrics], float | None]:
    """The figure of calibration with this name at the fitted temperature, None without one."""
    return lambda part: getattr(part.scaled, name) if part.scaled else None


_GAINED = _evaluated(lambda part: part.gained_share)
_LOST = _evaluated(lambda part: part.lost_share)
_NET = _evaluated(lambda part: part.gained_share - part.lost_share)


def _flips(row: RowRuns) -> Cell:
    """The gained minus the lost images in percent, of both."""
    gained = _GAINED(row)
    lost = _LOST(row)
    net = _NET(row)
    if gained.mean is None or lost.mean is None:
        return net
    return net._replace(of=f"{gained.mean:.1f} gained, {lost.mean:.1f} lost")


_AT_TEMPERATURE = "the same at the temperature fitted on the training environments."

# fmt: off
OF_RECORDS = (
    Column(AVERAGE, "Avg", "%", "Avg: mean of the row's cells.",
           _average, is_ranked=True, placeholder=NO_VALUE),
    Column("out-of-domain", "Out of domain", "%",
           "Out of domain: over the trials, of each trial's mean over the environments left out.",
           _out_of_domain, is_ranked=True),
    Column("worst", "Worst", "%", "Worst: the environment left out with the lowest mean.",
           _worst, is_ranked=True),
    Column(IN_DOMAIN, "In-domain", "%",
           "In-domain: at the chosen checkpoints, the mean accuracy on the out-splits of the "
           "environments trained on; over the trials, of each trial's mean over the environments "
           "left out.",
           _in_domain, is_ranked=True),
    Column("step-seconds", "s/step", "s",
           "s/step: seconds a training step took, mean over the chosen jobs, without the first "
           "record of each.",
           _of_chosen(lambda cost: cost.step_seconds, _mean, "step_time"),
           cost_text, is_cost=True),
    Column("training-hours", "Training h", "h",
           "Training h: hours of all training steps of all jobs behind the row, chosen or not.",
           _of_candidates(lambda cost: cost.training_hours, math.fsum, "step_time"),
           cost_text, is_cost=True),
    Column("evaluation-hours", "Evaluation h", "h",
           "Evaluation h: hours of the evaluations of all these jobs.",
           _of_candidates(lambda cost: cost.evaluation_hours, math.fsum, "evaluation_time"),
           cost_text, is_cost=True),
    Column("memory", "GiB", "GiB", "GiB: the most GPU memory that a chosen job had in use.",
           _of_chosen(lambda cost: cost.memory_gb, max, "memory of a GPU (mem_gb)"),
           cost_text, is_cost=True),
    Column("parameters", "Trained", "",
           "Trained: how many parameters a chosen job trained, the most of any.",
           _of_chosen(lambda cost: cost.trained_parameters, max, "trained_parameters"), count_text),
    Column("jobs", "Jobs", "",
           "Jobs: how many have a record, of those that the method chooses from.",
           _n_jobs, count_text),
    Column("draws", "Draws", "",
           "Draws: among how many hyperparameters the method chose, draws and members of a search; "
           "on average over environments and trials.",
           _n_draws, count_text),
)
OF_EVALUATE = (
    Column("accuracy", "Accuracy", "%",
           "Accuracy: on the environment left out, of the weights that carft evaluate measured.",
           _evaluated(lambda part: part.accuracy), is_ranked=True),
    Column("in-domain-unaugmented", "In-domain, unaugmented", "%",
           "In-domain, unaugmented: the mean accuracy on the out-splits of the environments "
           "trained on, through the test transform, as all other figures of carft evaluate.",
           _evaluated_run(lambda figures, target: figures.in_domain_accuracy), is_ranked=True),
    Column("per-class", "Per class", "%", "Per class: accuracy, the mean over classes.",
           _evaluated(lambda part: part.mean_per_class), is_ranked=True),
    Column("worst-class", "Worst class", "%", "Worst class: accuracy of the worst class.",
           _evaluated(lambda part: part.worst_class.accuracy), is_ranked=True),
    Column("ece", "ECE", "%", "ECE: expected calibration error over 15 bins.",
           _evaluated(lambda part: part.calibration.ece)),
    Column("ece-scaled", "ECE/T", "%", f"ECE/T: {_AT_TEMPERATURE}",
           _evaluated(_scaled("ece"))),
    Column("nll", "NLL", "nats", "NLL: mean negative log-likelihood, nats.",
           _evaluated(lambda part: part.calibration.nll, scale=1), score_text),
    Column("nll-scaled", "NLL/T", "nats", f"NLL/T: {_AT_TEMPERATURE}",
           _evaluated(_scaled("nll"), scale=1), score_text),
    Column("brier", "Brier", "", "Brier: Brier score, from 0 to 2.",
           _evaluated(lambda part: part.calibration.brier, scale=1), score_text),
    Column("brier-scaled", "Brier/T", "", f"Brier/T: {_AT_TEMPERATURE}",
           _evaluated(_scaled("brier"), scale=1), score_text),
    Column("temperature", "T", "", "T: the fitted temperature.",
           _evaluated(lambda part: part.temperature, scale=1), score_text),
    Column("zero-shot", "Zero-shot", "%", "Zero-shot: accuracy of the original CLIP.",
           _evaluated(lambda part: part.zero_shot_accuracy)),
    Column("flips", "Flips", "%",
           "Flips: images that only the run predicts correctly (gained) minus those that only "
           "zero-shot CLIP does (lost).",
           _flips),
    Column("gained", "Gained", "%", "Gained: images that only the run predicts correctly.",
           _GAINED),
    Column("lost", "Lost", "%", "Lost: images that only zero-shot CLIP predicts correctly.",
           _LOST),
)
# fmt: on
COLUMNS = {column.name: column for column in (*OF_RECORDS, *OF_EVALUATE)}

# Names that stand for several columns.
ALL = "all"
EVALUATED = "evaluated"
COLUMN_SETS = {
    ALL: (ENVIRONMENTS, *(column.name for column in OF_RECORDS)),
    EVALUATED: tuple(column.name for column in OF_EVALUATE),
}
NAMES = (ENVIRONMENTS, *COLUMNS, *COLUMN_SETS)


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The names of columns, each once, with those that a name of COLUMN_SETS stands for.

    Raises CarftError for a name that is not one of NAMES.
    """
    expanded: dict[str, None] = {}
    for name in names:
        if name not in NAMES:
            raise CarftError(unknown("column", name, NAMES))
        expanded |= dict.fromkeys(COLUMN_SETS.get(name, (name,)))
    return tuple(expanded)


def choose(
    names: Sequence[str], environments: Sequence[str], runs: Iterable[RecordedRun]
) -> tuple[Column, ...]:
    """The columns with these names, in their order.

    ``environments``: titles of the targets, which have a column each. A cost has a column for each
    device that ``runs`` were trained on: such figures are never averaged over devices.
    """
    devices = list(dict.fromkeys(sorted(run.cost.device for run in runs)))
    chosen: list[Column] = []
    for name in expand(names):
        if name == ENVIRONMENTS:
            chosen += [environment_column(*numbered) for numbered in enumerate(environments)]
        elif COLUMNS[name].is_cost:
            of_several = len(devices) > 1
            chosen += [COLUMNS[name].on_device(device, of_several) for device in devices]
        else:
            chosen.append(COLUMNS[name])
    return tuple(chosen)


_WITHIN_COLUMNS = (
    "In-domain accuracies are measured on augmented images, as DomainBed does, and the others "
    "are not: compare within a column, not in-domain with out-of-domain."
)


def warnings_about(columns: Iterable[Column]) -> list[str]:
    """What would be read wrongly in tables with these columns: augmented images beside others."""
    names = {column.name for column in columns}
    out_of_domain = {ENVIRONMENTS, AVERAGE, "out-of-domain", "worst"}
    return [_WITHIN_COLUMNS] if IN_DOMAIN in names and names & out_of_domain else []


def explanations(columns: Iterable[Column]) -> list[str]:
    """What the printed columns mean, and on which devices costs were measured: for captions."""
    columns = list(columns)
    sentences = [column.explanation for column in columns if column.name not in DEFAULT_COLUMNS]
    devices = dict.fromkeys(column.device for column in columns if column.device)
    if devices:
        sentences.append(f"Costs were measured on {'; '.join(devices)}.")
    return list(dict.fromkeys([*sentences, *warnings_about(columns)]))


BEST = 1
SECOND = 2
OTHER = 0


def rank_cells(cells: Sequence[Cell], column: Column) -> list[int]:
    """The `ranks` of a column's cells; an incomplete cell has none, nor has a column of no rank."""
    has_rank = [column.is_ranked and not cell.is_incomplete for cell in cells]
    return ranks([cell.mean if ranked else None for cell, ranked in zip(cells, has_rank)])


def ranks(means: Sequence[float | None]) -> list[int]:
    """BEST, SECOND or OTHER for each of a column's means in percent; None is OTHER.

    Means that read the same with one decimal share a rank, so that there may be several of each.
    Of two means the lower one is the worst, and no second.
    """
    printed = [None if mean is None else float(f"{mean:.1f}") for mean in means]
    values = [value for value in printed if value is not None]
    highest = sorted(set(values), reverse=True)
    rank_of_value = dict(zip(highest, (BEST, SECOND) if len(values) > 2 else (BEST,)))
    return [OTHER if value is None else rank_of_value.get(value, OTHER) for value in printed]
