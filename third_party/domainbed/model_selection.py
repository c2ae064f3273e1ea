"""Selection of hyperparameters and checkpoints, and their accuracy on the test environment.

As upstream file domainbed/model_selection.py at b93c22a; reported is the in-split accuracy.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from domainbed.lib.query import Q


def get_test_records(records: Q) -> Q:
    """The records of jobs with a single test environment."""
    return records.filter(lambda record: len(record["args"]["test_envs"]) == 1)


def _num_envs(record: dict[str, Any]) -> int:
    return next(i for i in itertools.count() if f"env{i}_out_acc" not in record)


def _test_env(record: dict[str, Any]) -> int:
    return int(record["args"]["test_envs"][0])


def _outcome(record: dict[str, Any], val_acc: float) -> dict[str, float]:
    return {"val_acc": val_acc, "test_acc": record[f"env{_test_env(record)}_in_acc"]}


class SelectionMethod:
    """A rule of selection. Never built: everything is a class method. Subclasses give `run_acc`.

    An outcome is a dict: "val_acc", the accuracy that decides, and "test_acc", the one reported.
    Records are all of one data set, algorithm, trial and test environment.
    """

    name: str

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} has no instances; use the class itself")

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """Return the outcome of one choice of hyperparameters, or None if it is unknown."""
        raise NotImplementedError

    @classmethod
    def hparams_accs(cls, records: Q) -> list[tuple[dict[str, float], Q]]:
        """(outcome, records) of every choice of hyperparameters, the best and later ones first."""
        outcomes = records.group_map(
            "args.hparams_seed", lambda _, run_records: (cls.run_acc(run_records), run_records)
        )
        complete = outcomes.filter(lambda pair: pair[0] is not None)
        ascending = complete.sorted(key=lambda pair: pair[0]["val_acc"])
        return list(ascending)[::-1]

    @classmethod
    def sweep_acc(cls, records: Q) -> float | None:
        """Return the test accuracy of the best hyperparameters, or None if there are none."""
        ranked = cls.hparams_accs(records)
        return ranked[0][0]["test_acc"] if ranked else None


class OracleSelectionMethod(SelectionMethod):
    """Looks at the test environment's out-split; always takes the last checkpoint."""

    name = "test-domain validation set (oracle)"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """The last record's outcome, judged on the test environment's out-split."""
        candidates = get_test_records(run_records)
        if not candidates:
            return None

        last = candidates.sorted(lambda record: record["step"])[-1]
        return _outcome(last, last[f"env{_test_env(last)}_out_acc"])


class IIDAccuracySelectionMethod(SelectionMethod):
    """Looks at the mean accuracy over the training environments' out-splits."""

    name = "training-domain validation set"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """The best record's outcome, judged on the training environments' out-splits."""
        candidates = get_test_records(run_records)
        return candidates.map(cls._step_acc).argmax("val_acc") if candidates else None

    @classmethod
    def _step_acc(cls, record: dict[str, Any]) -> dict[str, float]:
        training = [i for i in range(_num_envs(record)) if i != _test_env(record)]
        return _outcome(record, float(np.mean([record[f"env{i}_out_acc"] for i in training])))


class LeaveOneOutSelectionMethod(SelectionMethod):
    """Looks at all jobs that leave out one more environment, at how they do on that one."""

    name = "leave-one-domain-out cross-validation"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """The best step's outcome, judged by the jobs that leave out one more environment."""
        outcomes = run_records.group_map("step", lambda _, records: cls._step_acc(records))
        complete = outcomes.filter_not_none()
        return complete.argmax("val_acc") if complete else None

    @classmethod
    def _step_acc(cls, records: Q) -> dict[str, float] | None:
        test_records = get_test_records(records)
        if len(test_records) != 1:
            return None

        test_env = _test_env(test_records[0])
        validation_accuracies = {}
        for record in records:
            match record["args"]["test_envs"]:
                case [first, second]:
                    validation_env = second if first == test_env else first
                    validation_accuracies[validation_env] = record[f"env{validation_env}_in_acc"]

        training_envs = [i for i in range(_num_envs(records[0])) if i != test_env]
        if any(i not in validation_accuracies for i in training_envs):
            return None
        total = np.sum([validation_accuracies[i] for i in training_envs])
        return _outcome(test_records[0], float(total / len(training_envs)))
