"""Selection of hyperparameters and checkpoints, and their accuracy on the test environment.

Interface of upstream file domainbed/model_selection.py at b93c22a. The rules are those by which
`carft collect` selects, but SWAD's last checkpoint, and those of diverged runs, are like any other.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed.lib.query import Q
from domainbed_carft.jobs import records as job_records
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.job import Choice, Job
from domainbed_carft.results import method_names, selection

# The records that a rule gets are of one choice.
_CHOICE = Choice(hparams_seed=0)


def get_test_records(records: Q) -> Q:
    """The records of jobs with a single test environment."""
    return records.filter(lambda record: len(record["args"]["test_envs"]) == 1)


class SelectionMethod:
    """A rule of selection. Never built: everything is a class method. Subclasses give `run_acc`.

    An outcome is a dict: "val_acc", the accuracy that decides, and "test_acc", the one reported.
    Records are all of one dataset, algorithm, trial and test environment.
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
        """The outcome of the last record; of several at its step, of the last of these."""
        return _outcome(method_names.ORACLE, get_test_records(run_records)[::-1])


class IIDAccuracySelectionMethod(SelectionMethod):
    """Looks at the mean accuracy over the training environments' out-splits."""

    name = "training-domain validation set"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """The best record's outcome, judged on the training environments' out-splits."""
        return _outcome(method_names.TRAINING_DOMAIN, get_test_records(run_records))


class LeaveOneOutSelectionMethod(SelectionMethod):
    """Looks at all jobs that leave out one more environment, at how they do on that one."""

    name = "leave-one-domain-out cross-validation"

    @classmethod
    def run_acc(cls, run_records: Q) -> dict[str, float] | None:
        """The best step's outcome, judged by the jobs that leave out one more environment.

        Steps of which several records are judged do not count.
        """
        singles = get_test_records(run_records)
        counts = Counter(singles.select("step"))
        singles = singles.filter(lambda record: counts[record["step"]] == 1)

        pairs: dict[frozenset[int], Q] = {}
        for record in run_records:
            if len(record["args"]["test_envs"]) == 2:
                pairs.setdefault(frozenset(record["args"]["test_envs"]), Q()).append(record)
        return _outcome(method_names.LEAVE_ONE_OUT, singles, pairs)


def _outcome(
    rule: str, singles: Q, pairs: Mapping[frozenset[int], Q] | None = None
) -> dict[str, float] | None:
    """The outcome by a rule of `selection`, if it has one, of these records.

    ``singles``: of jobs that left out the test environment alone; ``pairs``: both test
    environments -> records of jobs that left out one more.
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
    outcome = selection.METHODS[rule].outcome(candidates, _CHOICE)
    return outcome and {"val_acc": outcome.validation, "test_acc": outcome.accuracy}


def _run(records: Q) -> job_records.RecordedRun:
    """The checkpoints in records of one job, or of one that was run twice, and nothing else."""
    first: dict[str, Any] = records[0]
    count = next(i for i in itertools.count() if f"env{i}_out_acc" not in first)
    return job_records.RecordedRun(
        job=Job(first["args"], Path()),
        done=True,
        environments=(),
        n_environments=count,
        steps=array("d", records.select("step")),
        accuracies=job_records.collect_accuracies(records, count),
        setting={},
        recorded={},
        diverged_at=None,
        cost=Cost(),
    )
