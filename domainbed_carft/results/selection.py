"""Selection of checkpoints and hyperparameters: DomainBed's rules, to the last bit.

As in domainbed/model_selection.py at b93c22a: the reported accuracy is on the target's in-split,
and of choices with equal validation accuracy the one with the highest hparams_seed counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from domainbed_carft.jobs.records import Run

Floats = npt.NDArray[np.float64]


class Test(NamedTuple):
    """The runs with one target left out in one trial, by choice of hyperparameters."""

    dataset: str
    algorithm: str
    target: int
    trial: int
    singles: dict[int, Run]
    pairs: dict[int, dict[int, Run]]  # by choice, then by the other environment left out


class Outcome(NamedTuple):
    """The outcome of one choice of hyperparameters; accuracies in [0, 1]."""

    choice: int
    step: float
    validation: float
    accuracy: float
    runs: Sequence[Run]


class Selected(NamedTuple):
    """The accuracy that counts for one (data set, algorithm, target, trial)."""

    dataset: str
    algorithm: str
    target: int
    trial: int
    outcome: Outcome


class Method(NamedTuple):
    """A rule of selection: DomainBed's name, a choice's outcome, whether its jobs leave any out."""

    title: str
    outcome: Callable[[Test, int], Outcome | None] = lambda test, choice: None
    leaves_out: bool = True


def tests(runs: Iterable[Run]) -> list[Test]:
    """In the order of DomainBed's groups, on which the last bit of a mean depends."""
    found: dict[tuple[str, str, int, int], Test] = {}
    for run in runs:
        dataset, algorithm, envs, trial, choice = run.job.key
        for target in run.test_envs:
            key = dataset, algorithm, target, trial
            test = found.setdefault(key, Test(*key, {}, {}))
            if len(envs) == 1:
                test.singles[choice] = run
            elif len(envs) == 2:
                test.pairs.setdefault(choice, {})[sum(envs) - target] = run
    return list(found.values())


def ranked(test: Test, method: Method) -> list[Outcome]:
    """The outcomes of all choices that have one, the best first."""
    known = filter(None, (method.outcome(test, choice) for choice in sorted(test.singles)))
    return sorted(known, key=lambda outcome: outcome.validation)[::-1]


def select(runs: Iterable[Run], name: str) -> list[Selected]:
    """What the method called ``name``, one of METHODS, selects from runs of one group."""
    method = METHODS[name]
    if not method.leaves_out:
        return _in_domain(runs)
    return [Selected(*test[:4], best[0]) for test in tests(runs) if (best := ranked(test, method))]


def accuracies(run: Run) -> tuple[Floats, Floats]:
    """On in-splits and on out-splits: a row a checkpoint, a column an environment."""
    table = np.frombuffer(run.accuracies).reshape(-1, 2, run.n_environments)
    return table[:, 0], table[:, 1]


def in_domain(run: Run) -> Floats:
    """The mean over the out-splits of what was trained on, a number a checkpoint."""
    training = [i for i in range(run.n_environments) if i not in run.test_envs]
    # A row in one piece is summed in numpy's order for a list, as DomainBed sums.
    return np.ascontiguousarray(accuracies(run)[1][:, training]).mean(axis=1)


def _training_domain(test: Test, choice: int) -> Outcome | None:
    run = test.singles[choice]
    if run.n_environments < 2:
        return None
    validation = in_domain(run)
    best = int(np.nan_to_num(validation, nan=-1.0).argmax())  # nan is never the highest
    return _at(test, choice, best, validation[best], [run])


def _oracle(test: Test, choice: int) -> Outcome | None:
    run = test.singles[choice]
    last = int(np.frombuffer(run.steps).argmax())
    return _at(test, choice, last, accuracies(run)[1][last, test.target], [run])


def _leave_one_domain_out(test: Test, choice: int) -> Outcome | None:
    run = test.singles[choice]
    pairs = test.pairs.get(choice, {})
    others = [i for i in range(run.n_environments) if i != test.target]
    if not others or any(i not in pairs for i in others):
        return None
    runs = [run, *(pairs[i] for i in others)]
    rows = [{step: row for row, step in enumerate(one.steps)} for one in runs]
    steps = sorted(set(rows[0]).intersection(*rows[1:]))
    if not steps:
        return None
    first, *places = [[row[step] for step in steps] for row in rows]
    left_out = [accuracies(pairs[i])[0][at, i] for i, at in zip(others, places)]
    table = np.ascontiguousarray(np.stack(left_out, axis=1))  # summed as DomainBed sums, see above
    validation = table.sum(axis=1) / len(others)
    best = int(np.nan_to_num(validation, nan=-1.0).argmax())  # nan is never the highest
    return _at(test, choice, first[best], validation[best], runs)


def _at(
    test: Test, choice: int, row: int, validation: float, runs: Sequence[Run]
) -> Outcome | None:
    """The outcome at one checkpoint; None if an accuracy that it needs is nan."""
    accuracy = float(accuracies(runs[0])[0][row, test.target])
    if np.isnan(accuracy) or np.isnan(validation):
        return None
    return Outcome(choice, runs[0].steps[row], float(validation), accuracy, runs)


def _in_domain(runs: Iterable[Run]) -> list[Selected]:
    """Accuracy on each out-split at the last step, of the choice with the highest sum of these."""
    best: dict[tuple[str, str, int], tuple[float, list[Outcome]]] = {}
    for run in sorted((one for one in runs if not one.test_envs), key=lambda one: one.job.key):
        dataset, algorithm, _, trial, choice = run.job.key
        last = int(np.frombuffer(run.steps).argmax())
        reached = accuracies(run)[1][last].tolist()
        key, total = (dataset, algorithm, trial), sum(reached)
        if total > best.get(key, (-1, []))[0]:  # nan is not
            mean = total / run.n_environments
            best[key] = total, [Outcome(choice, run.steps[last], mean, a, [run]) for a in reached]
    return [
        Selected(dataset, algorithm, target, trial, outcome)
        for (dataset, algorithm, trial), (_, outcomes) in sorted(best.items(), key=lambda b: b[0])
        for target, outcome in enumerate(outcomes)
    ]


IN_DOMAIN = "in-domain"
LEAVE_ONE_OUT = "leave-one-domain-out"
METHODS = {
    "training-domain": Method("training-domain validation set", _training_domain),
    LEAVE_ONE_OUT: Method("leave-one-domain-out cross-validation", _leave_one_domain_out),
    "oracle": Method("test-domain validation set (oracle)", _oracle),
    IN_DOMAIN: Method("nothing left out, out-splits at the last step", leaves_out=False),
}
