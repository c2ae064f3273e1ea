"""The columns of tables, an entry each: functions from the runs of a row to its cell.

Columns hold accuracies, costs, counts, and the metrics of ``carft evaluate``. Importing this module
loads no numpy, so that command lines can list the columns quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.cells import (
    DOMAINBED,
    NO_VALUE,
    NOT_ALL,
    NOT_DECLARED,
    PERCENT,
    Cell,
    ErrorKind,
    accuracy_text,
    cost_text,
    count_text,
    list_incomplete,
    mean_of_cells,
    mean_over_trials,
    score_text,
)
from domainbed_carft.suggestions import unknown

if TYPE_CHECKING:
    from domainbed_carft.results.metrics import ImageSetMetrics, RunMetrics
    from domainbed_carft.results.selection import SelectedRun

ENVIRONMENTS = "environments"
AVERAGE = "average"
OUT_OF_DOMAIN = "out-of-domain"
WORST = "worst"
IN_DOMAIN = "in-domain"
MEMORY = "memory"
DEFAULT_COLUMNS = (ENVIRONMENTS, AVERAGE)


@dataclass(frozen=True)
class RowRuns:
    """The runs from which a row is computed: one algorithm on one dataset, by one selection rule.

    Attributes:
        dataset_title: title of the dataset.
        accuracies: environment -> the cell of its accuracy, in the order of the environments.
        selected: the selected run of each target and trial.
        candidates: all runs from which the rule selected.
        error: kind of error of the cells.
        is_partial: True if jobs are declared for some of the targets only.
    """

    dataset_title: str
    accuracies: Mapping[str, Cell]
    selected: Sequence[SelectedRun]
    candidates: Sequence[RecordedRun]
    error: ErrorKind = DOMAINBED
    is_partial: bool = False

    @property
    def selected_runs(self) -> list[RecordedRun]:
        """The distinct selected runs."""
        return list({id(selected.run): selected.run for selected in self.selected}.values())

    @property
    def lacking_results(self) -> tuple[str, ...]:
        """The environments that lack results, as a reason why a mean over them is incomplete."""
        names = list_incomplete(self.accuracies)
        return (f"incomplete in {self.dataset_title}: {names}",) if names else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The reasons why a mean over the environments is incomplete."""
        return self.lacking_results or ((NOT_ALL,) if self.is_partial else ())

    def mean_over_targets(
        self,
        values: Iterable[tuple[int, float]],
        *,
        scale: float = PERCENT,
        missing: Sequence[str] = (),
    ) -> Cell:
        """Average over the trials each trial's mean over its targets.

        Args:
            values: (trial, value) pairs.
            scale: factor from the values to the unit of the cell.
            missing: reasons why the mean is incomplete, besides those of the row.
        """
        by_trial = sorted(values, key=lambda pair: pair[0])  # in DomainBed's order of the trials
        if not by_trial:
            return Cell(missing=self.lacking_results)
        missing = (*self.missing, *missing)
        return mean_over_trials(by_trial, missing=missing, error=self.error, scale=scale)

    def mean_accuracy(self) -> Cell:
        """Average over the trials each trial's mean accuracy over its targets."""
        return self.mean_over_targets(
            (entry.trial, entry.outcome.accuracy) for entry in self.selected
        )

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
    """A column of a table, with its place as the key of a cell: ``name``, ``of`` and ``device``.

    Attributes:
        name: value of ``--columns``; ENVIRONMENTS for the column of an environment.
        title: header of the column.
        unit: unit of the means, such as "%" or "s".
        explanation: a sentence for captions, if the column needs one.
        measure: computes a row's cell; empty by default, for cells that are made elsewhere.
        write: formats the cell; an empty text without a value.
        is_ranked: True if a higher value is better.
        is_cost: True if each device has its own column.
        placeholder: text of a cell that has no value and needs none.
        of: the environment, dataset or test set, if several columns have the same name.
        device: device of this column, for costs.
    """

    name: str
    title: str = field(compare=False)
    unit: str = field(compare=False)
    explanation: str = field(default="", compare=False)
    measure: Measure = field(default=lambda row: Cell(), compare=False)
    write: Callable[[Cell], str] = field(default=accuracy_text, compare=False)
    is_ranked: bool = field(default=False, compare=False)
    is_cost: bool = field(default=False, compare=False)
    placeholder: str = field(default=NOT_DECLARED, compare=False)
    of: str = ""
    device: str = ""

    @property
    def key(self) -> dict[str, str]:
        """The place of the column's cells, in JSON."""
        return {"column": self.name, "of": self.of, "device": self.device}

    def on_device(self, device: str, name_in_title: bool) -> Column:
        """Return the column of a cost on one device, named in the title if there are several."""
        return replace(
            self,
            title=f"{self.title}, {device}" if name_in_title else self.title,
            measure=lambda row: self.measure(row.on_device(device)),
            device=device,
        )


def environment_column(environment: str) -> Column:
    """Return the column for the accuracy on an environment."""
    return Column(
        ENVIRONMENTS,
        title=environment,
        unit="%",
        measure=lambda row: row.accuracies[environment],
        is_ranked=True,
        of=environment,
    )


def _average(row: RowRuns) -> Cell:
    """Mean of the row's cells, if every expected cell has a value."""
    mean = mean_of_cells(row.accuracies.values())
    return Cell(mean, missing=row.lacking_results if mean is None else row.missing)


def _out_of_domain(row: RowRuns) -> Cell:
    """Accuracy on the held-out environments; empty if the runs held none out."""
    if row.selected and not any(entry.run.test_envs for entry in row.selected):
        return Cell()
    return row.mean_accuracy()


def _in_domain(row: RowRuns) -> Cell:
    """Validation accuracy of the selected runs of all targets."""
    from domainbed_carft.results.selection import in_domain_accuracy

    return row.mean_over_targets(
        (entry.trial, in_domain_accuracy(entry.outcome)) for entry in row.selected
    )


def _worst(row: RowRuns) -> Cell:
    """The cell with the lowest mean, if every expected cell has one."""
    expected = {name: cell for name, cell in row.accuracies.items() if cell.is_expected}
    means = {name: cell.mean for name, cell in expected.items() if cell.mean is not None}
    if not means or len(means) < len(expected):
        return Cell(missing=row.lacking_results)

    worst = min(means, key=means.__getitem__)
    return expected[worst]._replace(label=worst, missing=row.missing)


def _selected_cost(get_cost: CostFunction, combine: Combine, key: str) -> Measure:
    """Combine the costs of the selected runs; ``key`` names the record's key of the cost."""
    return lambda row: _cost_cell(row, row.selected_runs, get_cost, combine, key)


def _candidate_cost(get_cost: CostFunction, combine: Combine, key: str) -> Measure:
    """Combine the costs of all candidate runs; ``key`` names the record's key of the cost."""
    return lambda row: _cost_cell(row, row.candidates, get_cost, combine, key)


def _cost_cell(
    row: RowRuns,
    runs: Sequence[RecordedRun],
    get_cost: CostFunction,
    combine: Combine,
    key: str,
) -> Cell:
    """Combine the costs of runs; no value without runs, or if a run has not recorded the cost."""
    if not runs:
        return Cell()

    costs = [get_cost(run.cost) for run in runs]
    recorded_costs = [cost for cost in costs if cost is not None]
    if len(recorded_costs) < len(costs):
        return Cell(missing=(f"the records have no {key}",))
    return Cell(combine(recorded_costs), n=len(recorded_costs), missing=row.lacking_results)


def _memory(row: RowRuns) -> Cell:
    """The highest GPU memory use; empty on a device that is no GPU, for which records have 0."""
    memory_gb = _selected_cost(lambda cost: cost.memory_gb, max, "memory of a GPU (mem_gb)")
    cell = memory_gb(row)
    return Cell() if cell.mean == 0 else cell


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _n_jobs(row: RowRuns) -> Cell:
    return Cell(float(len(row.candidates)), n=len(row.candidates)) if row.candidates else Cell()


def _n_draws(row: RowRuns) -> Cell:
    """Mean over targets and trials of the number of choices that the rule selected from."""
    members = [float(entry.outcome.members) for entry in row.selected]
    if not members:
        return Cell()
    return Cell(_mean(members), n=len(members), missing=row.lacking_results)


def load_run_metrics(
    selected: SelectedRun, suite: str = "", alpha: float | None = None
) -> RunMetrics:
    """Return what ``carft evaluate`` saved for a selected run.

    Args:
        selected: the selected run.
        suite: name of a suite of test sets; empty for the environments of the dataset.
        alpha: alpha of WiSE-FT; None for the weights of the checkpoint.

    Raises:
        CarftError: with the reason why there are no metrics.
    """
    from domainbed_carft.results.metrics import EvaluationKey, load_metrics

    key = EvaluationKey(int(selected.outcome.step), suite, alpha)
    metrics = load_metrics(Path(selected.run.folder), key)
    if not metrics.facts.matches(selected.run.job):
        raise CarftError("the evaluation belongs to another job; run carft evaluate on the sweep")
    return metrics


@dataclass(frozen=True)
class TargetMetric:
    """A metric of each selected run on its held-out environment, or on a test set.

    Attributes:
        get: returns the metric on one environment, or None if it was not measured.
        scale: factor from the metric to the unit of its cell.
    """

    get: Callable[[ImageSetMetrics], float | None]
    scale: float = PERCENT

    def __call__(self, row: RowRuns) -> Cell:
        """Measure the metric of each selected run on its held-out environment."""
        return _run_metric(self._get_on_target, self.scale)(row)

    def _get_on_target(self, metrics: RunMetrics, target: int) -> float | None:
        part = metrics.get_environment(target)
        return self.get(part) if part else None


def _run_metric(
    metric: Callable[[RunMetrics, int], float | None], scale: float = PERCENT
) -> Measure:
    """Measure a metric of each selected run and target, times ``scale``.

    The cell is the mean over trials of each trial's mean over the environments. If some runs have
    no such metric, the cell is incomplete and names these runs.
    """

    def measure(row: RowRuns) -> Cell:
        environments = list(row.accuracies)
        values = []
        unmeasured: list[str] = []
        places_by_problem: dict[str, list[str]] = {}
        for selected in row.selected:
            place = f"{environments[selected.target]} trial {selected.trial}"
            try:
                metrics = load_run_metrics(selected)
            except CarftError as error:
                places_by_problem.setdefault(str(error), []).append(place)
                continue
            value = metric(metrics, selected.target)
            if value is None:
                unmeasured.append(place)
            else:
                values.append((selected.trial, scale * value))

        if places_by_problem:
            return Cell(missing=tuple(describe_problems(places_by_problem)))
        missing = [f"not evaluated for: {', '.join(sorted(unmeasured))}"] if unmeasured else []
        return row.mean_over_targets(values, scale=1, missing=missing)

    return measure


def describe_problems(places_by_problem: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a reason for each problem of evaluations, with the environments and trials."""
    return [
        f"{problem}: {', '.join(sorted(places))}" for problem, places in places_by_problem.items()
    ]


def _scaled(name: str) -> Callable[[ImageSetMetrics], float | None]:
    """Return the calibration metric ``name`` at the fitted temperature, or None without one."""
    return lambda part: getattr(part.scaled, name) if part.scaled else None


_GAINED = TargetMetric(lambda part: part.gained_share)
_LOST = TargetMetric(lambda part: part.lost_share)
_NET = TargetMetric(lambda part: part.net_gained_share)


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
    Column(OUT_OF_DOMAIN, "Out of domain", "%",
           "Out of domain: mean over trials of each trial's mean over the held-out environments.",
           _out_of_domain, is_ranked=True),
    Column(WORST, "Worst", "%", "Worst: the held-out environment with the lowest mean.",
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
    Column(MEMORY, "GiB", "GiB", "GiB: the highest GPU memory use of a chosen job.",
           _memory, cost_text, is_cost=True),
    Column("parameters", "Trained", "",
           "Trained: the highest number of parameters that a chosen job trained.",
           _selected_cost(lambda cost: cost.trained_parameters, max, "trained_parameters"),
           count_text),
    Column("jobs", "Jobs", "",
           "Jobs: number of jobs with a record that the rule chooses from.",
           _n_jobs, count_text),
    Column("draws", "Draws", "",
           "Draws: number of hyperparameter choices (draws or members of a search) that the rule "
           "chose from, mean over environments and trials.",
           _n_draws, count_text),
)
EVALUATION_COLUMNS = (
    Column("accuracy", "Accuracy", "%",
           "Accuracy: on the held-out environment, of the weights that carft evaluate measured.",
           TargetMetric(lambda part: part.accuracy), is_ranked=True),
    Column("in-domain-unaugmented", "In-domain, unaugmented", "%",
           "In-domain, unaugmented: mean accuracy on the out-splits of the training environments, "
           "through the test transform like all other metrics of carft evaluate.",
           _run_metric(lambda metrics, target: metrics.in_domain), is_ranked=True),
    Column("per-class", "Per class", "%", "Per class: mean of the classes' accuracies.",
           TargetMetric(lambda part: part.mean_per_class), is_ranked=True),
    Column("worst-class", "Worst class", "%", "Worst class: accuracy of the worst class.",
           TargetMetric(lambda part: part.worst_class.accuracy if part.worst_class else None),
           is_ranked=True),
    Column("ece", "ECE", "%", "ECE: expected calibration error over 15 bins.",
           TargetMetric(lambda part: part.calibration.ece)),
    Column("ece-scaled", "ECE/T", "%", f"ECE/T: {_AT_TEMPERATURE}",
           TargetMetric(_scaled("ece"))),
    Column("nll", "NLL", "nats", "NLL: mean negative log-likelihood in nats.",
           TargetMetric(lambda part: part.calibration.nll, scale=1), score_text),
    Column("nll-scaled", "NLL/T", "nats", f"NLL/T: {_AT_TEMPERATURE}",
           TargetMetric(_scaled("nll"), scale=1), score_text),
    Column("brier", "Brier", "", "Brier: Brier score, from 0 to 2.",
           TargetMetric(lambda part: part.calibration.brier, scale=1), score_text),
    Column("brier-scaled", "Brier/T", "", f"Brier/T: {_AT_TEMPERATURE}",
           TargetMetric(_scaled("brier"), scale=1), score_text),
    Column("temperature", "T", "", "T: the fitted temperature.",
           TargetMetric(lambda part: part.temperature, scale=1), score_text),
    Column("zero-shot", "Zero-shot", "%", "Zero-shot: accuracy of the original CLIP model.",
           TargetMetric(lambda part: part.zero_shot_accuracy)),
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

# Metrics of carft evaluate that tables of suites can show, by the name of their column
SUITE_METRICS: dict[str, TargetMetric] = {
    column.name: column.measure
    for column in EVALUATION_COLUMNS
    if isinstance(column.measure, TargetMetric)
} | {"flips": _NET}

# Names for several columns
ALL = "all"
EVALUATED = "evaluated"
COLUMN_SETS = {
    ALL: (ENVIRONMENTS, *(column.name for column in RECORD_COLUMNS)),
    EVALUATED: tuple(column.name for column in EVALUATION_COLUMNS),
}
NAMES = (ENVIRONMENTS, *COLUMNS, *COLUMN_SETS)


def expand_columns(names: Iterable[str]) -> tuple[str, ...]:
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

    Each of the ``environments`` becomes a column. A cost has a column for each device that ``runs``
    were trained on, because costs are never averaged over devices.
    """
    names = expand_columns(names)
    devices: list[str] = []
    if any(name in COLUMNS and COLUMNS[name].is_cost for name in names):  # costs are read again
        devices = sorted({run.cost.device for run in runs})
    chosen: list[Column] = []
    for name in names:
        if name == ENVIRONMENTS:
            chosen += map(environment_column, environments)
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
    out_of_domain = {ENVIRONMENTS, AVERAGE, OUT_OF_DOMAIN, WORST}
    return [_WITHIN_COLUMNS] if IN_DOMAIN in names and names & out_of_domain else []


def explain_columns(columns: Iterable[Column]) -> list[str]:
    """Return the captions of the printed columns, and the devices on which costs were measured."""
    columns = list(columns)
    sentences = [column.explanation for column in columns if column.name != AVERAGE]
    devices = dict.fromkeys(column.device for column in columns if column.device)
    if devices:
        sentences.append(f"Costs were measured on {'; '.join(devices)}.")
    return list(dict.fromkeys(filter(None, [*sentences, *comparison_warnings(columns)])))
