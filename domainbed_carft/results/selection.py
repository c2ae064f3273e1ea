"""Selection of checkpoints and hyperparameters: DomainBed's rules, to the last bit.

As in domainbed/model_selection.py at b93c22a: the reported accuracy is on the target's in-split,
and of choices with equal validation accuracy the one with the highest hparams_seed counts. The
members of a declared search are choices too, the later one higher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from domainbed_carft.jobs.job import Choice
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.method_names import IN_DOMAIN as IN_DOMAIN
from domainbed_carft.results.method_names import LEAVE_ONE_OUT as LEAVE_ONE_OUT
from domainbed_carft.results.method_names import ORACLE
from domainbed_carft.results.method_names import TRAINING_DOMAIN as TRAINING_DOMAIN

Floats = npt.NDArray[np.float64]


class Candidates(NamedTuple):
    """The runs among which a method selects: of one target in one trial.

    ``singles``: choice of hyperparameters -> the run that left out the target, alone or with
    other targets. ``pairs``: choice -> a second environment -> the run that left out both.
    """

    dataset: str
    row: str
    target: int
    trial: int
    singles: dict[Choice, RecordedRun]
    pairs: dict[Choice, dict[int, RecordedRun]]


class Outcome(NamedTuple):
    """The outcome of one choice of hyperparameters; accuracies in [0, 1].

    ``runs``: those that the method used, the one whose accuracy counts first. ``members``: among
    how many choices this one was chosen: draws and members of a search; of a search in two stages
    the members of its first one. It is 1 where there was nothing to choose.
    """

    choice: Choice
    step: float
    validation: float
    accuracy: float
    runs: Sequence[RecordedRun]
    members: int = 1

    @property
    def run(self) -> RecordedRun:
        """The run whose accuracy counts."""
        return self.runs[0]

    @property
    def hparams_seed(self) -> int:
        """The seed of the draw; 0 for the default hyperparameters."""
        return self.choice.hparams_seed

    @property
    def values(self) -> Mapping[str, Any]:
        """Searched hyperparameter -> the chosen value; empty if no search was declared."""
        return self.run.job.role.values


class SelectedRun(NamedTuple):
    """The outcome that counts for one (dataset, row, target, trial).

    ``row``: what tables call the row, which is the algorithm's name unless ``--by`` divides it.
    """

    dataset: str
    row: str
    target: int
    trial: int
    outcome: Outcome

    @property
    def run(self) -> RecordedRun:
        """The run whose accuracy counts."""
        return self.outcome.runs[0]

    @property
    def algorithm(self) -> str:
        """The name of the algorithm, whatever the row is called."""
        return self.run.algorithm


class Method(NamedTuple):
    """A rule of selection.

    ``title``: DomainBed's name; ``outcome``: that of one choice of hyperparameters, if it has one;
    ``holds_out``: whether its jobs leave environments out.
    """

    title: str
    outcome: Callable[[Candidates, Choice], Outcome | None] = lambda candidates, choice: None
    holds_out: bool = True


def candidates_by_target(runs: Iterable[RecordedRun]) -> list[Candidates]:
    """The candidates of each (dataset, row, target, trial) among ``runs``.

    They come in the order of DomainBed's groups, on which the last bit of a mean depends.
    """
    by_target: dict[tuple[str, str, int, int], Candidates] = {}
    for run in runs:
        dataset, row, test_envs, trial, choice = run.job.candidate
        for target in run.test_envs:
            candidates = by_target.setdefault(
                (dataset, row, target, trial),
                Candidates(dataset, row, target, trial, singles={}, pairs={}),
            )
            if len(test_envs) == 1 or run.job.role.holds_out_together:
                candidates.singles[choice] = run
            elif len(test_envs) == 2:
                second_env = sum(test_envs) - target
                candidates.pairs.setdefault(choice, {})[second_env] = run
    return list(by_target.values())


def ranked_outcomes(candidates: Candidates, method: Method) -> list[Outcome]:
    """The outcomes of all choices that have one, the best first."""
    outcomes = []
    for choice in sorted(candidates.singles):
        outcome = method.outcome(candidates, choice)
        if outcome is not None:
            outcomes.append(outcome)

    ranked = sorted(outcomes, key=lambda outcome: outcome.validation)[::-1]
    return [
        outcome._replace(members=outcome.run.job.role.members or len(ranked)) for outcome in ranked
    ]


def select(runs: Iterable[RecordedRun], name: str) -> list[SelectedRun]:
    """What the method called ``name``, one of METHODS, selects from runs of one group."""
    method = METHODS[name]
    if not method.holds_out:
        return _in_domain(runs)

    selected = []
    for candidates in candidates_by_target(runs):
        outcomes = ranked_outcomes(candidates, method)
        if outcomes:
            best = SelectedRun(
                dataset=candidates.dataset,
                row=candidates.row,
                target=candidates.target,
                trial=candidates.trial,
                outcome=outcomes[0],
            )
            selected.append(best)
    return selected


def candidate_runs(runs: Sequence[RecordedRun], name: str) -> list[RecordedRun]:
    """The runs that the method called ``name`` can choose from, each once."""
    if not METHODS[name].holds_out:
        return [run for run in runs if not run.test_envs]

    candidate_runs: dict[int, RecordedRun] = {}
    for candidates in candidates_by_target(runs):
        of_method = [*candidates.singles.values()]
        if name == LEAVE_ONE_OUT:
            of_method += [run for pairs in candidates.pairs.values() for run in pairs.values()]
        candidate_runs |= {id(run): run for run in of_method}
    return list(candidate_runs.values())


def accuracies(run: RecordedRun) -> tuple[Floats, Floats]:
    """Accuracies in [0, 1] on in-splits and on out-splits, nan where a record has none.

    Both have a row for each checkpoint and a column for each environment.
    """
    table = np.frombuffer(run.accuracies).reshape(-1, 2, run.n_environments)
    return table[:, 0], table[:, 1]


def in_domain(run: RecordedRun) -> Floats:
    """Each checkpoint's mean accuracy over the out-splits of the environments trained on."""
    training_envs = [env for env in range(run.n_environments) if env not in run.test_envs]
    _, out_splits = accuracies(run)

    # Numpy sums a contiguous row in its order for a list, as DomainBed sums.
    return np.ascontiguousarray(out_splits[:, training_envs]).mean(axis=1)


def in_domain_at(outcome: Outcome) -> float:
    """The `in_domain` accuracy of the outcome's run at its checkpoint."""
    row = outcome.run.steps.index(outcome.step)
    return float(in_domain(outcome.run)[row])


def counts_last_record(run: RecordedRun) -> bool:
    """Whether only the last checkpoint of ``run`` counts: SWAD chooses among weights by itself."""
    return bool(run.recorded.get("average") == "swad")


def final_out_accuracy(run: RecordedRun) -> float:
    """Mean accuracy on the out-splits at the last step, for a run that left nothing out."""
    _, out_splits = accuracies(run)
    return float(out_splits[_last_row(run)].mean())


def _training_domain(candidates: Candidates, choice: Choice) -> Outcome | None:
    run = candidates.singles[choice]
    if run.n_environments < 2:
        return None

    validation = in_domain(run)
    best_row = _last_row(run) if counts_last_record(run) else _highest(validation)
    return _outcome_at(candidates, choice, best_row, validation[best_row], [run])


def _oracle(candidates: Candidates, choice: Choice) -> Outcome | None:
    run = candidates.singles[choice]
    last_row = _last_row(run)
    _, out_splits = accuracies(run)
    return _outcome_at(candidates, choice, last_row, out_splits[last_row, candidates.target], [run])


def _leave_one_domain_out(candidates: Candidates, choice: Choice) -> Outcome | None:
    run = candidates.singles[choice]
    pairs = candidates.pairs.get(choice, {})
    validation_envs = [env for env in range(run.n_environments) if env != candidates.target]
    if not validation_envs or any(env not in pairs for env in validation_envs):
        return None

    runs = [run, *(pairs[env] for env in validation_envs)]
    row_of_step = [{step: row for row, step in enumerate(run.steps)} for run in runs]
    common_steps = sorted(set(row_of_step[0]).intersection(*row_of_step[1:]))
    if not common_steps:
        return None

    columns = []
    for env, rows in zip(validation_envs, row_of_step[1:]):
        in_splits, _ = accuracies(pairs[env])
        columns.append(in_splits[[rows[step] for step in common_steps], env])
    # Contiguous rows are summed as DomainBed sums; see `in_domain`.
    table = np.ascontiguousarray(np.stack(columns, axis=1))
    validation = table.sum(axis=1) / len(validation_envs)

    best = len(common_steps) - 1 if counts_last_record(run) else _highest(validation)
    best_row = row_of_step[0][common_steps[best]]
    return _outcome_at(candidates, choice, best_row, validation[best], runs)


def _highest(validation: Floats) -> int:
    """The row of the highest value; nan is never the highest."""
    return int(np.nan_to_num(validation, nan=-1.0).argmax())


def _last_row(run: RecordedRun) -> int:
    """The row of the checkpoint with the highest step."""
    return int(np.frombuffer(run.steps).argmax())


def _outcome_at(
    candidates: Candidates, choice: Choice, row: int, validation: float, runs: Sequence[RecordedRun]
) -> Outcome | None:
    """The outcome at one checkpoint; None if an accuracy that it needs is nan."""
    in_splits, _ = accuracies(runs[0])
    accuracy = float(in_splits[row, candidates.target])
    if np.isnan(accuracy) or np.isnan(validation):
        return None
    return Outcome(choice, runs[0].steps[row], float(validation), accuracy, runs)


def _in_domain(runs: Iterable[RecordedRun]) -> list[SelectedRun]:
    """Accuracy on each out-split at the last step, of the choice with the highest sum of these."""
    highest_total: dict[tuple[str, str, int], float] = {}
    outcomes: dict[tuple[str, str, int], list[Outcome]] = {}

    runs_without_targets = [run for run in runs if not run.test_envs]
    n_choices = Counter(_trial_of(run) for run in runs_without_targets)
    for run in sorted(runs_without_targets, key=lambda run: run.job.candidate):
        key = _trial_of(run)
        row = _last_row(run)
        _, out_splits = accuracies(run)
        last_accuracies = out_splits[row].tolist()

        total = float(np.sum(last_accuracies))
        if total > highest_total.get(key, -1):  # nan is not
            highest_total[key] = total
            outcomes[key] = [
                Outcome(
                    choice=run.job.choice,
                    step=run.steps[row],
                    validation=total / run.n_environments,
                    accuracy=accuracy,
                    runs=[run],
                    members=run.job.role.members or n_choices[key],
                )
                for accuracy in last_accuracies
            ]

    return [
        SelectedRun(dataset, row, target, trial, outcome)
        for dataset, row, trial in sorted(outcomes)
        for target, outcome in enumerate(outcomes[dataset, row, trial])
    ]


def _trial_of(run: RecordedRun) -> tuple[str, str, int]:
    """Dataset, row and trial of a run that left nothing out."""
    key = run.job.key
    return key.dataset, run.row, key.trial


METHODS = {
    TRAINING_DOMAIN: Method("training-domain validation set", _training_domain),
    LEAVE_ONE_OUT: Method("leave-one-domain-out cross-validation", _leave_one_domain_out),
    ORACLE: Method("test-domain validation set (oracle)", _oracle),
    IN_DOMAIN: Method("nothing left out, out-splits at the last step", holds_out=False),
}
