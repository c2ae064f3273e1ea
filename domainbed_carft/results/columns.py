"""The columns of tables, an entry each, with their cells and the errors printed after a mean.

Columns hold accuracies, costs, counts, and the metrics of ``carft evaluate``. Importing this module
loads no numpy, so that command lines can list the columns quickly.
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
    """An uncertainty printed after a mean and the sign ±.

    Attributes:
        name: value of ``--error``.
        title: name in captions.
        definition: a sentence for captions.
        compute: computes the error from the values of two or more trials.
    """

    name: str
    title: str
    definition: str
    compute: Callable[[npt.NDArray[np.float64]], float]


def domainbed_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean with divisor n, equal to DomainBed's to the last bit."""
    # Divide before std(), as DomainBed does: the last bit decides how a half is rounded.
    return float((values / values.size**0.5).std())


def sample_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean of two or more values, with divisor n - 1."""
    return float(values.std(ddof=1) / values.size**0.5)


def sample_deviation(values: npt.NDArray[np.float64]) -> float:
    """Standard deviation of two or more values, with divisor n - 1."""
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
    """The mean over ``n`` trials or jobs, with its position in the tables.

    Attributes:
        mean: accuracies in percent, other values in ``unit``. None without a value.
        standard_error: of the kind chosen by ``--error``. None for a single trial.
        n: number of trials or jobs.
        missing: reasons why the value is incomplete.
        accuracies: trial -> accuracy in [0, 1].
        partial: True if no jobs are declared for some of the environments, or if a copy of a test
            set
            is incomplete.
        setting: title of the group of runs.
        selection: name of the selection method.
        dataset: name of the dataset.
        row: name of the table's row.
        column: name of the column.
        label: environment of the value, "average" for the mean over a dataset's environments, or
            another description.
        device: device of a cost.
        unit: unit of ``mean``.
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
    label: str = ""
    device: str = ""
    unit: str = ""

    @property
    def is_expected(self) -> bool:
        """True if the cell should have a value."""
        return self.mean is not None or bool(self.missing)

    @property
    def is_incomplete(self) -> bool:
        """True if a part of the value is missing, so that the cell is marked and not ranked."""
        return bool(self.missing) or (self.partial and self.mean is not None)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Reasons why the cell is incomplete."""
        return self.missing or ((NOT_ALL,) if self.is_incomplete else ())


def mean_cell(
    values_by_trial: Mapping[int, float],
    missing: Sequence[str] = (),
    error: ErrorKind = DOMAINBED,
    scale: float = PERCENT,
) -> Cell:
    """Mean over the trials with its error, both times ``scale``.

    Both equal those of DomainBed's collect_results to the last bit, except that a single trial has
    no
    error.
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
    """Format a percentage with its error and number of trials, as ``96.8 ± 0.4 (3)``.

    Values that are None, and ``n`` 0, are omitted. The text is empty if there is no accuracy.
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
    """Accuracy in percent with its error, number of trials and label."""
    text = format_accuracy(cell.mean, cell.standard_error, cell.n)
    if text and cell.label and cell.column != ENVIRONMENTS:
        return f"{text} {cell.label}"
    return text


def score_text(cell: Cell) -> str:
    """Score with three decimals, its error and the number of trials."""
    return _format_mean(cell.mean, cell.standard_error, cell.n, digits=3)


def cost_text(cell: Cell) -> str:
    """Cost with three significant digits and all digits before the point: 0.0214, 12.3, 1,234."""
    if cell.mean is None:
        return ""
    if cell.mean == 0:
        return "0"

    digits_before_point = math.floor(math.log10(abs(cell.mean))) + 1
    return f"{cell.mean:,.{max(0, 3 - digits_before_point)}f}"


def count_text(cell: Cell) -> str:
    """Integer, or mean of integers with one decimal."""
    if cell.mean is None:
        return ""
    return f"{cell.mean:,.0f}" if cell.mean == int(cell.mean) else f"{cell.mean:,.1f}"


@dataclass(frozen=True)
class RowRuns:
    """The runs from which a row is computed: one algorithm on one dataset, by one selection method.

    Attributes:
        environments: names of the dataset's environments.
        cells: accuracy on each environment.
        selected: the selected run of each target and trial.
        candidates: all runs from which the method selected.
        error: kind of error of the cells.
        is_partial: True if jobs are declared for some of the targets only.
    """

    environments: Sequence[str]
    cells: Sequence[Cell]
    selected: Sequence[SelectedRun]
    candidates: Sequence[RecordedRun]
    error: ErrorKind
    is_partial: bool = False

    @property
    def selected_runs(self) -> list[RecordedRun]:
        """The distinct selected runs."""
        return list({id(selected.run): selected.run for selected in self.selected}.values())

    @property
    def incomplete(self) -> tuple[str, ...]:
        """The environments with incomplete cells, as a reason why a mean is incomplete."""
        cells = zip(self.environments, self.cells, strict=True)
        names = [name for name, cell in cells if cell.missing]
        return (f"incomplete: {', '.join(names)}",) if names else ()

    def mean_over_targets(
        self, values: Iterable[tuple[int, float]], scale: float = PERCENT
    ) -> Cell:
        """Mean over the trials of each trial's mean over its targets, from (trial, value) pairs.

        The cell is marked as incomplete if targets are missing.
        """
        means = trial_means(values)
        if not means and not self.incomplete:
            return Cell()
        cell = mean_cell(means, self.incomplete, self.error, scale)
        return cell._replace(partial=self.is_partial)

    def on_device(self, device: str) -> RowRuns:
        """Return the row with only the runs on one device, and unchanged accuracies."""
        return replace(
            self,
            selected=[entry for entry in self.selected if entry.run.cost.device == device],
            candidates=[run for run in self.candidates if run.cost.device == device],
        )


Measure = Callable[[RowRuns], Cell]
CostFunction = Callable[[Cost], float | None]
Combine = Callable[[list[float]], float]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: value of ``--columns``; ENVIRONMENTS for the column of a target.
        title: header of the column.
        unit: unit of the means, such as "%" or "s".
        explanation: a sentence for captions, if the column needs one.
        measure: computes a row's cell.
        write: formats the cell; an empty text without a value.
        is_ranked: True if a higher value is better.
        is_cost: True if each device has its own column.
        device: device of this column, for costs.
        placeholder: text of a cell that has no value and needs none.
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
        """Format the cell, with the number of the note that explains why it is incomplete."""
        text = self.write(cell)
        if note_number is None:
            return f"{text}{PARTIAL if cell.is_incomplete else ''}" or self.placeholder
        return f"{text or NO_VALUE} [{note_number}]"

    def on_device(self, device: str, name_in_title: bool) -> Column:
        """Return the column of a cost on one device, named in the title if there are several."""
        return replace(
            self,
            title=f"{self.title}, {device}" if name_in_title else self.title,
            measure=lambda row: self.measure(row.on_device(device)),
            device=device,
        )


def environment_column(number: int, title: str) -> Column:
    """Return the column for the accuracy on the target ``number``."""
    return Column(ENVIRONMENTS, title, "%", "", lambda row: row.cells[number], is_ranked=True)


def average(cells: Iterable[Cell]) -> float | None:
    """Mean of the expected cells in percent; None if one of them has no value."""
    import numpy as np

    means = [cell.mean for cell in cells if cell.is_expected]
    values = [mean for mean in means if mean is not None]
    if not values or len(values) < len(means):
        return None
    return float(np.mean(values))


def trial_means(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Map each trial, in ascending order, to the mean of its values.

    Pairs (trial, value) are summed in the given order.
    """
    import numpy as np

    values_by_trial: dict[int, list[float]] = {}
    for trial, value in values:
        values_by_trial.setdefault(trial, []).append(value)
    return {trial: float(np.mean(values_by_trial[trial])) for trial in sorted(values_by_trial)}


def _average(row: RowRuns) -> Cell:
    """Mean of the row's cells, if every expected cell has a value."""
    return Cell(average(row.cells), missing=row.incomplete, partial=row.is_partial)


def _out_of_domain(row: RowRuns) -> Cell:
    """Accuracy on the held-out environments; empty if the runs held none out."""
    held_out = [entry for entry in row.selected if entry.run.test_envs]
    if row.selected and not held_out:
        return Cell()
    return row.mean_over_targets((entry.trial, entry.outcome.accuracy) for entry in held_out)


def _in_domain(row: RowRuns) -> Cell:
    """Validation accuracy of the selected runs of all targets."""
    from domainbed_carft.results.selection import in_domain_accuracy

    return row.mean_over_targets(
        (entry.trial, in_domain_accuracy(entry.outcome)) for entry in row.selected
    )


def _worst(row: RowRuns) -> Cell:
    """The cell with the lowest mean, if every expected cell has one."""
    expected = [
        cell._replace(label=name)
        for name, cell in zip(row.environments, row.cells, strict=True)
        if cell.is_expected
    ]
    unmeasured = [cell.label for cell in expected if cell.mean is None]
    if unmeasured:
        return Cell(missing=(f"no value: {', '.join(unmeasured)}",))
    if not expected:
        return Cell()
    worst = min(expected, key=lambda cell: math.inf if cell.mean is None else cell.mean)
    return worst._replace(missing=row.incomplete, partial=row.is_partial)


def _selected_cost(get_cost: CostFunction, combine: Combine, key: str) -> Measure:
    """Combine the costs of the selected runs; ``key`` names the record's key of the cost."""
    return lambda row: _cost_cell(row.selected_runs, get_cost, combine, key)


def _candidate_cost(get_cost: CostFunction, combine: Combine, key: str) -> Measure:
    """Combine the costs of all candidate runs; ``key`` names the record's key of the cost."""
    return lambda row: _cost_cell(row.candidates, get_cost, combine, key)


def _cost_cell(
    runs: Sequence[RecordedRun], get_cost: CostFunction, combine: Combine, key: str
) -> Cell:
    """Combine the costs of runs; no value without runs, or if a run has not recorded the cost."""
    if not runs:
        return Cell()

    costs = [get_cost(run.cost) for run in runs]
    recorded_costs = [cost for cost in costs if cost is not None]
    if len(recorded_costs) < len(costs):
        return Cell(missing=(f"the records have no {key}",))
    return Cell(combine(recorded_costs), n=len(recorded_costs))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _n_jobs(row: RowRuns) -> Cell:
    return Cell(float(len(row.candidates)), n=len(row.candidates)) if row.candidates else Cell()


def _n_draws(row: RowRuns) -> Cell:
    """Mean over targets and trials of the number of choices that the method selected from."""
    members = [float(entry.outcome.members) for entry in row.selected]
    return Cell(_mean(members), n=len(members)) if members else Cell()


def find_run_metrics(selected: SelectedRun) -> RunMetrics | str:
    """Return what ``carft evaluate`` saved for a selected run, or why there is nothing."""
    from domainbed_carft.results.evaluations import metrics_path

    folder = Path(selected.run.folder)
    step = int(selected.outcome.step)
    path = metrics_path(folder, step)
    mtime_ns = path.stat().st_mtime_ns if path.exists() else 0

    metrics = _read_metrics(folder, step, mtime_ns)
    if isinstance(metrics, str) or metrics.facts.matches(selected.run.job):
        return metrics
    return "the evaluation belongs to another job; run carft evaluate on the sweep"


@functools.lru_cache(maxsize=_CACHED_SUMMARIES)
def _read_metrics(folder: Path, step: int, mtime_ns: int) -> RunMetrics | str:
    """Cache `find_metrics` for all columns; a changed ``mtime_ns`` invalidates the cache."""
    from domainbed_carft.results.evaluations import find_metrics

    return find_metrics(folder, step)


def _target_metric(
    metric: Callable[[SplitMetrics], float | None], scale: float = PERCENT
) -> Measure:
    """Measure a metric of each selected run on its held-out environment, times ``scale``."""

    def get_run_metric(metrics: RunMetrics, target: int) -> float | None:
        part = metrics.get_environment(target)
        return metric(part) if part else None

    return _run_metric(get_run_metric, scale)


def _run_metric(
    metric: Callable[[RunMetrics, int], float | None], scale: float = PERCENT
) -> Measure:
    """Measure a metric of each selected run and target, times ``scale``.

    The cell is the mean over trials of each trial's mean over the environments. If some runs have
    no such metric, the cell is incomplete and names these runs.
    """

    def measure(row: RowRuns) -> Cell:
        values = []
        unmeasured: list[str] = []
        places_by_problem: dict[str, list[str]] = {}
        for selected in row.selected:
            metrics = find_run_metrics(selected)
            place = f"{row.environments[selected.target]} trial {selected.trial}"
            if isinstance(metrics, str):
                places_by_problem.setdefault(metrics, []).append(place)
                continue
            value = metric(metrics, selected.target)
            if value is None:
                unmeasured.append(place)
            else:
                values.append((selected.trial, scale * value))

        if places_by_problem:
            reasons = [
                f"{problem}: {', '.join(sorted(places))}"
                for problem, places in places_by_problem.items()
            ]
            return Cell(missing=tuple(reasons))
        cell = row.mean_over_targets(values, scale=1)
        if values and unmeasured:
            reason = f"not evaluated for: {', '.join(sorted(unmeasured))}"
            return cell._replace(missing=(*cell.missing, reason))
        return cell

    return measure


def _scaled(name: str) -> Callable[[SplitMetrics], float | None]:
    """Return the calibration metric ``name`` at the fitted temperature, or None without one."""
    return lambda part: getattr(part.scaled, name) if part.scaled else None


_GAINED = _target_metric(lambda part: part.gained_share)
_LOST = _target_metric(lambda part: part.lost_share)
_NET = _target_metric(lambda part: part.gained_share - part.lost_share)


def _flips(row: RowRuns) -> Cell:
    """Gained minus lost images in percent, labelled with both."""
    gained = _GAINED(row)
    lost = _LOST(row)
    net = _NET(row)
    if gained.mean is None or lost.mean is None:
        return net
    return net._replace(label=f"{gained.mean:.1f} gained, {lost.mean:.1f} lost")


_AT_TEMPERATURE = "the same at the temperature fitted on the training environments."

# fmt: off
RECORD_COLUMNS = (
    Column(AVERAGE, "Avg", "%", "Avg: mean of the row's cells.",
           _average, is_ranked=True, placeholder=NO_VALUE),
    Column("out-of-domain", "Out of domain", "%",
           "Out of domain: mean over trials of each trial's mean over the held-out environments.",
           _out_of_domain, is_ranked=True),
    Column("worst", "Worst", "%", "Worst: the held-out environment with the lowest mean.",
           _worst, is_ranked=True),
    Column(IN_DOMAIN, "In-domain", "%",
           "In-domain: mean accuracy on the out-splits of the training environments at the chosen "
           "checkpoints, averaged like Out of domain.",
           _in_domain, is_ranked=True),
    Column("step-seconds", "s/step", "s",
           "s/step: seconds per training step, mean over the chosen jobs, without each job's first "
           "record.",
           _selected_cost(lambda cost: cost.step_seconds, _mean, "step_time"),
           cost_text, is_cost=True),
    Column("training-hours", "Training h", "h",
           "Training h: hours of training of all jobs that the row was chosen from.",
           _candidate_cost(lambda cost: cost.training_hours, math.fsum, "step_time"),
           cost_text, is_cost=True),
    Column("evaluation-hours", "Evaluation h", "h",
           "Evaluation h: hours of evaluation of all jobs that the row was chosen from.",
           _candidate_cost(lambda cost: cost.evaluation_hours, math.fsum, "evaluation_time"),
           cost_text, is_cost=True),
    Column("memory", "GiB", "GiB", "GiB: the highest GPU memory use of a chosen job.",
           _selected_cost(lambda cost: cost.memory_gb, max, "memory of a GPU (mem_gb)"),
           cost_text, is_cost=True),
    Column("parameters", "Trained", "",
           "Trained: the highest number of parameters that a chosen job trained.",
           _selected_cost(lambda cost: cost.trained_parameters, max, "trained_parameters"),
           count_text),
    Column("jobs", "Jobs", "",
           "Jobs: number of jobs with a record that the method chooses from.",
           _n_jobs, count_text),
    Column("draws", "Draws", "",
           "Draws: number of hyperparameter choices (draws or members of a search) that the method "
           "chose from, mean over environments and trials.",
           _n_draws, count_text),
)
EVALUATION_COLUMNS = (
    Column("accuracy", "Accuracy", "%",
           "Accuracy: on the held-out environment, of the weights that carft evaluate measured.",
           _target_metric(lambda part: part.accuracy), is_ranked=True),
    Column("in-domain-unaugmented", "In-domain, unaugmented", "%",
           "In-domain, unaugmented: mean accuracy on the out-splits of the training environments, "
           "through the test transform like all other metrics of carft evaluate.",
           _run_metric(lambda metrics, target: metrics.in_domain), is_ranked=True),
    Column("per-class", "Per class", "%", "Per class: mean of the classes' accuracies.",
           _target_metric(lambda part: part.mean_per_class), is_ranked=True),
    Column("worst-class", "Worst class", "%", "Worst class: accuracy of the worst class.",
           _target_metric(lambda part: part.worst_class.accuracy), is_ranked=True),
    Column("ece", "ECE", "%", "ECE: expected calibration error over 15 bins.",
           _target_metric(lambda part: part.calibration.ece)),
    Column("ece-scaled", "ECE/T", "%", f"ECE/T: {_AT_TEMPERATURE}",
           _target_metric(_scaled("ece"))),
    Column("nll", "NLL", "nats", "NLL: mean negative log-likelihood in nats.",
           _target_metric(lambda part: part.calibration.nll, scale=1), score_text),
    Column("nll-scaled", "NLL/T", "nats", f"NLL/T: {_AT_TEMPERATURE}",
           _target_metric(_scaled("nll"), scale=1), score_text),
    Column("brier", "Brier", "", "Brier: Brier score, from 0 to 2.",
           _target_metric(lambda part: part.calibration.brier, scale=1), score_text),
    Column("brier-scaled", "Brier/T", "", f"Brier/T: {_AT_TEMPERATURE}",
           _target_metric(_scaled("brier"), scale=1), score_text),
    Column("temperature", "T", "", "T: the fitted temperature.",
           _target_metric(lambda part: part.temperature, scale=1), score_text),
    Column("zero-shot", "Zero-shot", "%", "Zero-shot: accuracy of the original CLIP model.",
           _target_metric(lambda part: part.zero_shot_accuracy)),
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
COLUMNS = {column.name: column for column in (*RECORD_COLUMNS, *EVALUATION_COLUMNS)}

# Names for several columns
ALL = "all"
EVALUATED = "evaluated"
COLUMN_SETS = {
    ALL: (ENVIRONMENTS, *(column.name for column in RECORD_COLUMNS)),
    EVALUATED: tuple(column.name for column in EVALUATION_COLUMNS),
}
NAMES = (ENVIRONMENTS, *COLUMNS, *COLUMN_SETS)


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct column names, with the names of COLUMN_SETS expanded.

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
    """Return the columns with these names, in this order.

    Each of the ``environments`` (titles of the targets) becomes a column. A cost has a column for
    each
    device that ``runs`` were trained on, because costs are never averaged over devices.
    """
    devices = list(dict.fromkeys(sorted(run.cost.device for run in runs)))
    chosen: list[Column] = []
    for name in expand(names):
        if name == ENVIRONMENTS:
            chosen += [environment_column(*numbered) for numbered in enumerate(environments)]
        elif COLUMNS[name].is_cost:
            chosen += [
                COLUMNS[name].on_device(device, name_in_title=len(devices) > 1)
                for device in devices
            ]
        else:
            chosen.append(COLUMNS[name])
    return tuple(chosen)


_WITHIN_COLUMNS = (
    "In-domain accuracies are measured on augmented images, as in DomainBed, and the others are "
    "not, so compare within a column, not in-domain with out-of-domain."
)


def comparison_warnings(columns: Iterable[Column]) -> list[str]:
    """Return warnings about columns that cannot be compared: augmented and unaugmented images."""
    names = {column.name for column in columns}
    out_of_domain = {ENVIRONMENTS, AVERAGE, "out-of-domain", "worst"}
    return [_WITHIN_COLUMNS] if IN_DOMAIN in names and names & out_of_domain else []


def explanations(columns: Iterable[Column]) -> list[str]:
    """Return the captions of the printed columns, and the devices on which costs were measured."""
    columns = list(columns)
    sentences = [column.explanation for column in columns if column.name not in DEFAULT_COLUMNS]
    devices = dict.fromkeys(column.device for column in columns if column.device)
    if devices:
        sentences.append(f"Costs were measured on {'; '.join(devices)}.")
    return list(dict.fromkeys([*sentences, *comparison_warnings(columns)]))


BEST = 1
SECOND = 2
OTHER = 0


def rank_cells(cells: Sequence[Cell], column: Column) -> list[int]:
    """Rank the cells of a column; incomplete cells and unranked columns get OTHER."""
    return rank_means(
        [cell.mean if column.is_ranked and not cell.is_incomplete else None for cell in cells]
    )


def rank_means(means: Sequence[float | None]) -> list[int]:
    """Rank a column's means in percent as BEST, SECOND or OTHER; None is OTHER.

    Means with the same first decimal share a rank, so that there can be several of each. The lower
    of
    two means is the worst one, so it is not SECOND.
    """
    printed = [None if mean is None else float(f"{mean:.1f}") for mean in means]
    values = [value for value in printed if value is not None]
    highest = sorted(set(values), reverse=True)
    rank_of_value = dict(zip(highest, (BEST, SECOND) if len(values) > 2 else (BEST,)))
    return [OTHER if value is None else rank_of_value.get(value, OTHER) for value in printed]
