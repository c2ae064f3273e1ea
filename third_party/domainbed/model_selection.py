"""Selection of hyperparameters and checkpoints, and their accuracy on the test environment.

Interface of upstream file domainbed/model_selection.py at b93c22a. Uses the same rules as
`carft collect`, but does not treat SWAD's last checkpoint and diverged runs in a special way.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed.lib.query import Q
from domainbed_carft.jobs.job import Choice, Job
from domainbed_carft.jobs.records import RecordedRun, collect_accuracies
from domainbed_carft.results import rule_names, selection

# All records passed to a rule belong to one choice of hyperparameters.
_CHOICE = Choice(hparams_seed=0)


def get_test_records(records: Q) -> Q:
    """Return the records of jobs with a single test environment."""
    return records.filter(lambda record: len(record["args"]["test_envs"]) == 1)


class SelectionMethod:
    """A selection rule, used as a class without instances. Subclasses define `run_acc`.

    All records passed to a rule belong to one dataset, algorithm, trial and test environment. An
    outcome is a dict of "val_acc", the accuracy used for selection, and "test_acc", the reported
    accuracy.

    Attributes:
        name: name of the rule in tables.
    """

    name: str

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} has no instances; use the class itself")

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """Return the outcome of one choice of hyperparameters.

        Args:
            run_records: records of jobs with these hyperparameters.

        Returns:
            The outcome, or None if records are missing.
        """
        raise NotImplementedError

    @classmethod
    def hparams_accs(cls, records: Q) -> list[tuple[dict[str, float], Q]]:
        """Return (outcome, records) of every choice of hyperparameters, the best first.

        Of equal choices, the one with the larger hparams_seed comes first.
        """
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
    """Select by the test environment's out-split, at the last checkpoint."""

    name = "test-domain validation set (oracle)"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """Return the outcome of the last record of the last step."""
        return _outcome(rule_names.ORACLE, get_test_records(run_records)[::-1])


class IIDAccuracySelectionMethod(SelectionMethod):
    """Select by the mean accuracy over the training environments' out-splits."""

    name = "training-domain validation set"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """Return the outcome of the best record on the training environments' out-splits."""
        return _outcome(rule_names.TRAINING_DOMAIN, get_test_records(run_records))


class LeaveOneOutSelectionMethod(SelectionMethod):
    """Select by jobs with a second test environment, and their accuracy on this environment."""

    name = "leave-one-domain-out cross-validation"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """Return the outcome of the best step in jobs with a second test environment.

        Steps with several records do not count.
        """
        singles = get_test_records(run_records)
        counts = Counter(singles.select("step"))
        singles = singles.filter(lambda record: counts[record["step"]] == 1)

        pairs: dict[frozenset[int], Q] = {}
        for record in run_records:
            if len(record["args"]["test_envs"]) == 2:
                pairs.setdefault(frozenset(record["args"]["test_envs"]), Q()).append(record)
        return _outcome(rule_names.LEAVE_ONE_OUT, singles, pairs)


# In the order of the tables.
SELECTION_METHODS: tuple[type[SelectionMethod], ...] = (
    IIDAccuracySelectionMethod,
    LeaveOneOutSelectionMethod,
    OracleSelectionMethod,
)


def _outcome(
    rule: str, singles: Q, pairs: Mapping[frozenset[int], Q] | None = None
) -> dict[str, float] | None:
    """Return the outcome of a rule in `selection`, or None if it has none.

    Args:
        rule: name of the rule.
        singles: records of jobs with one test environment.
        pairs: two test environments -> records of jobs with both.
    """
    if not singles:
        return None

    (target,) = singles[0]["args"]["test_envs"]
    pair_runs = {sum(envs) - target: _run(records) for envs, records in (pairs or {}).items()}
    candidates = selection.Candidates(
        dataset="",
        row="",
        target=target,
        trial=0,
        singles={_CHOICE: _run(singles)},
        pairs={_CHOICE: pair_runs},
    )
    outcome = selection.RULES[rule].outcome(candidates, _CHOICE)
    return outcome and {"val_acc": outcome.validation, "test_acc": outcome.accuracy}


def _run(records: Q) -> RecordedRun:
    """Return the checkpoints in the records of a job, including repeated ones, as a run."""
    first: dict[str, Any] = records[0]
    count = next(i for i in itertools.count() if f"env{i}_out_acc" not in first)
    return RecordedRun(
        job=Job(first["args"], Path()),
        done=True,
        environments=(),
        n_environments=count,
        steps=array("d", records.select("step")),
        accuracies=collect_accuracies(records, count),
        drift=array("d"),
        setting={},
        recorded={},
        diverged_at=None,
    )
