"""Selection of checkpoints and hyperparameters: DomainBed's rules, to the last bit.

As in domainbed/model_selection.py at b93c22a, the reported accuracy is on the target's in-split,
and among choices with equal validation accuracy the one with the highest hparams_seed counts.
Members of a declared search are choices too, and the later one ranks higher. Selection by CLIPood's
protocol, which other papers share, chooses nothing and reports on the target's out-split. Runs that
held nothing out count at their last step, with the accuracy on each environment's out-split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Choice, Job
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.method_names import CLIPOOD as CLIPOOD
from domainbed_carft.results.method_names import IN_DOMAIN as IN_DOMAIN
from domainbed_carft.results.method_names import LEAVE_ONE_OUT as LEAVE_ONE_OUT
from domainbed_carft.results.method_names import ORACLE
from domainbed_carft.results.method_names import TRAINING_DOMAIN as TRAINING_DOMAIN

Floats = npt.NDArray[np.float64]


class Candidates(NamedTuple):
    """The runs of one target in one trial, from which a method selects.

    Attributes:
        dataset: name of the dataset.
        row: the tables' name of the row.
        target: number of the environment held out.
        trial: the trial seed.
        singles: choice of hyperparameters -> the run that held out the target, alone or with
            others.
        pairs: choice -> a second environment -> the run that held out both.
    """

    dataset: str
    row: str
    target: int
    trial: int
    singles: dict[Choice, RecordedRun]
    pairs: dict[Choice, dict[int, RecordedRun]]


class Outcome(NamedTuple):
    """The outcome of one choice of hyperparameters; accuracies in [0, 1].

    Attributes:
        choice: the hyperparameters.
        step: step of the chosen checkpoint.
        validation: validation accuracy there.
        accuracy: reported accuracy there.
        runs: the runs that the method used, first the one whose accuracy is reported.
        members: number of choices that the method chose from: draws and members of a search (in two
            stages, the members of the first). 1 if there was no choice.
    """

    choice: Choice
    step: float
    validation: float
    accuracy: float
    runs: Sequence[RecordedRun]
    members: int = 1

    @property
    def run(self) -> RecordedRun:
        """The run whose accuracy is reported."""
        return self.runs[0]

    @property
    def hparams_seed(self) -> int:
        """The seed of the draw; 0 for the default hyperparameters."""
        return self.choice.hparams_seed

    @property
    def values(self) -> Mapping[str, Any]:
        """Searched hyperparameter -> chosen value; empty without a declared search."""
        return self.run.job.role.values


class SelectedRun(NamedTuple):
    """The run and outcome that count for one (dataset, row, target, trial).

    Attributes:
        dataset: name of the dataset.
        row: the tables' name of the row: the algorithm, unless ``--by`` divides it.
        target: number of the environment held out.
        trial: the trial seed.
        outcome: the chosen outcome.
    """

    dataset: str
    row: str
    target: int
    trial: int
    outcome: Outcome

    @property
    def run(self) -> RecordedRun:
        """The run whose accuracy is reported."""
        return self.outcome.runs[0]

    @property
    def algorithm(self) -> str:
        return self.run.algorithm


class Method(NamedTuple):
    """A selection method.

    Attributes:
        title: DomainBed's name of the method.
        outcome: returns the outcome of one choice of hyperparameters, or None if there is none.
        holds_out: True if its jobs hold environments out.
        is_default: True if tables show it without a declaration or a request.
        chooses: False if it expects a single choice of hyperparameters.
    """

    title: str
    outcome: Callable[[Candidates, Choice], Outcome | None]
    holds_out: bool = True
    is_default: bool = True
    chooses: bool = True


def candidates_by_target(runs: Iterable[RecordedRun], holds_out: bool = True) -> list[Candidates]:
    """Return the candidates of each (dataset, row, target, trial).

    The order is that of DomainBed's groups, on which the last bit of a mean depends.

    Args:
        runs: the runs.
        holds_out: False for the runs that hold nothing out, of which every environment is a target.
    """
    if not holds_out:
        runs = sorted(runs, key=lambda run: run.job.candidate)

    by_target: dict[tuple[str, str, int, int], Candidates] = {}
    for run in runs:
        if bool(run.test_envs) != holds_out:
            continue
        key = run.job.key
        for target in run.test_envs or range(run.n_environments):
            candidates = by_target.setdefault(
                (key.dataset, run.row, target, key.trial),
                Candidates(key.dataset, run.row, target, key.trial, singles={}, pairs={}),
            )
            if count_held_out(run.job) < 2:
                candidates.singles[run.job.choice] = run
            elif len(key.test_envs) == 2:
                second_env = sum(key.test_envs) - target
                candidates.pairs.setdefault(run.job.choice, {})[second_env] = run
    return list(by_target.values())


def rank_outcomes(candidates: Candidates, method: Method) -> list[Outcome]:
    """Return the outcomes of all choices that have one, the one with the best validation first."""
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
    """Select from the runs of one group by the method ``name``, a key of METHODS.

    Raises CarftError if there are several choices and the method does not choose.
    """
    method = METHODS[name]
    selected = []
    for candidates in candidates_by_target(runs, method.holds_out):
        outcome = choose(candidates, method)
        if outcome is not None:
            best = SelectedRun(
                dataset=candidates.dataset,
                row=candidates.row,
                target=candidates.target,
                trial=candidates.trial,
                outcome=outcome,
            )
            selected.append(best)
    return selected


def choose(candidates: Candidates, method: Method) -> Outcome | None:
    """Return the outcome with the best validation, or None if no choice has one.

    Raises CarftError if there are several choices and the method does not choose.
    """
    if not method.chooses:
        _require_one_choice(candidates, method)
    return next(iter(rank_outcomes(candidates, method)), None)


def _require_one_choice(candidates: Candidates, method: Method) -> None:
    """Raise CarftError if there are several choices of hyperparameters."""
    if len(candidates.singles) > 1:
        choices = ", ".join(map(str, sorted(candidates.singles)))
        raise CarftError(
            f"{candidates.row} on {candidates.dataset} has {len(candidates.singles)} choices of "
            f"hyperparameters in trial {candidates.trial} ({choices}), but selection by "
            f"{method.title} needs exactly one; use --by to make each value a row, or select by "
            f"{TRAINING_DOMAIN}"
        )


def count_held_out(job: Job) -> int:
    """Count the environments that a job holds out; together they count as one target."""
    return 1 if job.role.holds_out_together else len(job.args["test_envs"])


def candidate_runs(
    runs: Iterable[RecordedRun], name: str
) -> dict[tuple[str, str], list[RecordedRun]]:
    """Map (dataset, row) to the runs that the method ``name`` can choose from."""
    counts = {1, 2} if name == LEAVE_ONE_OUT else {1 if METHODS[name].holds_out else 0}
    runs_by_row: dict[tuple[str, str], list[RecordedRun]] = {}
    for run in runs:
        if count_held_out(run.job) in counts:
            runs_by_row.setdefault((run.dataset, run.row), []).append(run)
    return runs_by_row


def accuracies(run: RecordedRun) -> tuple[Floats, Floats]:
    """Return accuracies in [0, 1] on in-splits and on out-splits, nan if a record has none.

    Both have the shape (checkpoints, environments).
    """
    table = np.frombuffer(run.accuracies).reshape(-1, 2, run.n_environments)
    return table[:, 0], table[:, 1]


def in_domain_accuracies(run: RecordedRun) -> Floats:
    """Mean accuracy over the out-splits of the training environments, (checkpoints,)."""
    training_envs = [env for env in range(run.n_environments) if env not in run.test_envs]
    _, out_splits = accuracies(run)

    # Numpy sums a contiguous row in its order for a list, as DomainBed sums.
    return np.ascontiguousarray(out_splits[:, training_envs]).mean(axis=1)


def in_domain_accuracy(outcome: Outcome) -> float:
    """In-domain accuracy of the outcome's run at the chosen checkpoint."""
    index = outcome.run.steps.index(outcome.step)
    return float(in_domain_accuracies(outcome.run)[index])


def is_swad(run: RecordedRun) -> bool:
    """Return True if only the last checkpoint counts, since SWAD has chosen among the steps."""
    return bool(run.recorded.get("average") == "swad")


def final_out_accuracy(run: RecordedRun) -> float:
    """Mean accuracy on the out-splits at the last step, for a run without targets."""
    _, out_splits = accuracies(run)
    return float(out_splits[_last_index(run)].mean())


def _training_domain(candidates: Candidates, choice: Choice) -> Outcome | None:
    run = candidates.singles[choice]
    if run.n_environments < 2:
        return None

    validation = in_domain_accuracies(run)
    best_index = _last_index(run) if is_swad(run) else _argmax(validation)
    return _make_outcome(candidates, choice, best_index, validation[best_index], [run])


def _oracle(candidates: Candidates, choice: Choice) -> Outcome | None:
    run = candidates.singles[choice]
    last_index = _last_index(run)
    _, out_splits = accuracies(run)
    return _make_outcome(
        candidates, choice, last_index, out_splits[last_index, candidates.target], [run]
    )


def _clipood(candidates: Candidates, choice: Choice) -> Outcome | None:
    """Accuracy on the target's out-split at the last step, as in thuml/CLIPood's main.py."""
    run = candidates.singles[choice]
    index = _last_index(run)
    _, out_splits = accuracies(run)
    accuracy = float(out_splits[index, candidates.target])
    if np.isnan(accuracy):
        return None
    validation = float(in_domain_accuracies(run)[index])
    return Outcome(choice, run.steps[index], validation, accuracy, [run])


def _leave_one_domain_out(candidates: Candidates, choice: Choice) -> Outcome | None:
    run = candidates.singles[choice]
    pairs = candidates.pairs.get(choice, {})
    validation_envs = [env for env in range(run.n_environments) if env != candidates.target]
    if not validation_envs or any(env not in pairs for env in validation_envs):
        return None

    runs = [run, *(pairs[env] for env in validation_envs)]
    index_of_step = [{step: index for index, step in enumerate(run.steps)} for run in runs]
    common_steps = sorted(set(index_of_step[0]).intersection(*index_of_step[1:]))
    if not common_steps:
        return None

    columns = []
    for env, indices in zip(validation_envs, index_of_step[1:]):
        in_splits, _ = accuracies(pairs[env])
        columns.append(in_splits[[indices[step] for step in common_steps], env])
    # Contiguous rows are summed as DomainBed sums; see `in_domain_accuracies`.
    table = np.ascontiguousarray(np.stack(columns, axis=1))
    validation = table.sum(axis=1) / len(validation_envs)

    best = len(common_steps) - 1 if is_swad(run) else _argmax(validation)
    best_index = index_of_step[0][common_steps[best]]
    return _make_outcome(candidates, choice, best_index, validation[best], runs)


def _in_domain(candidates: Candidates, choice: Choice) -> Outcome | None:
    """Accuracy on the target's out-split at the last step; validation is the mean over all."""
    run = candidates.singles[choice]
    index = _last_index(run)
    validation = final_out_accuracy(run)
    if np.isnan(validation):
        return None
    _, out_splits = accuracies(run)
    accuracy = float(out_splits[index, candidates.target])
    return Outcome(choice, run.steps[index], validation, accuracy, [run])


def _argmax(validation: Floats) -> int:
    """Return the index of the highest value; nan is never the highest."""
    return int(np.nan_to_num(validation, nan=-1.0).argmax())


def _last_index(run: RecordedRun) -> int:
    """Return the index of the checkpoint with the highest step."""
    return int(np.frombuffer(run.steps).argmax())


def _make_outcome(
    candidates: Candidates,
    choice: Choice,
    index: int,
    validation: float,
    runs: Sequence[RecordedRun],
) -> Outcome | None:
    """Return the outcome at one checkpoint, or None if one of its accuracies is nan."""
    in_splits, _ = accuracies(runs[0])
    accuracy = float(in_splits[index, candidates.target])
    if np.isnan(accuracy) or np.isnan(validation):
        return None
    return Outcome(choice, runs[0].steps[index], float(validation), accuracy, runs)


METHODS = {
    TRAINING_DOMAIN: Method("training-domain validation set", _training_domain),
    LEAVE_ONE_OUT: Method(
        "leave-one-domain-out cross-validation", _leave_one_domain_out, is_default=False
    ),
    ORACLE: Method("test-domain validation set (oracle)", _oracle),
    IN_DOMAIN: Method("nothing held out, out-splits at the last step", _in_domain, holds_out=False),
    CLIPOOD: Method(
        "CLIPood's protocol (last step, the target's out-split)",
        _clipood,
        is_default=False,
        chooses=False,
    ),
}
