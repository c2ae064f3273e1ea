"""What a cell of a table lacks: jobs without a record, and runs that stopped early.

Where no manifest lists jobs, expected are the trials that any algorithm has on the data set, the
choices that the algorithm has there, and for leave-one-domain-out every pair of environments.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from domainbed_carft.jobs.job import Job, Key
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.selection import LEAVE_ONE_OUT, METHODS

_Places = dict[int, list[int]]  # trial -> choices
_Kind = tuple[str, str, bool]  # data set, algorithm, whether anything is left out


class Gaps:
    """Answers for one group of runs, and the jobs of manifests that belong to it."""

    def __init__(self, runs: Sequence[Run], planned: Sequence[Job] = ()) -> None:
        self.runs = {run.job.key: run for run in runs}
        self._listed = {job.key for job in planned}
        self._marks_done = bool(planned) or any(run.done for run in runs)
        self.keys = {**dict.fromkeys(self.runs), **dict.fromkeys(self._listed)}
        self._of_kind: dict[_Kind, list[Key]] = {}
        for key in self.keys:
            self._of_kind.setdefault(_kind(key), []).append(key)
        self._steps: dict[tuple[object, ...], set[float]] = {}
        for run in runs:
            self._steps.setdefault(_schedule(run), set()).update(run.steps)

    def of(
        self, dataset: str, algorithm: str, target: int, method: str, count: int
    ) -> list[str] | None:
        """What a cell lacks, of ``count`` environments; None where no job is expected."""
        kind = dataset, algorithm, METHODS[method].leaves_out
        if kind not in self._of_kind:
            return None if self._listed else ["no job of the algorithm on this data set"]
        first = {target} if METHODS[method].leaves_out else set()
        wanted = [first]
        if method == LEAVE_ONE_OUT:
            wanted += [{target, other} for other in range(count) if other != target]
        expected = self._expected(kind, first)
        lacks: dict[str, _Places] = {}
        for envs, (trial, choices) in itertools.product(wanted, expected.items()):
            for choice in choices:
                if reason := self._reason(Key(dataset, algorithm, frozenset(envs), trial, choice)):
                    lacks.setdefault(reason, {}).setdefault(trial, []).append(choice)
        told = [f"{why}: {_where(places, expected)}" for why, places in lacks.items()]
        return told if expected else None

    def _expected(self, kind: _Kind, envs: set[int]) -> _Places:
        """Each trial with its choices of hyperparameters."""
        own = self._of_kind[kind]
        if not self._listed.isdisjoint(own):
            places: _Places = {}
            for *_, trial, choice in sorted(key for key in own if key.test_envs == envs):
                places.setdefault(trial, []).append(choice)
            return places
        alike = [keys for other, keys in self._of_kind.items() if other[::2] == kind[::2]]
        trials = sorted({key.trial for keys in alike for key in keys})
        return dict.fromkeys(trials, sorted({key.choice for key in own}))

    def _reason(self, key: Key) -> str:
        """What is wrong with a job, "" if nothing is."""
        job = " ".join(["--test_envs", *map(str, sorted(key.test_envs))])
        run = self.runs.get(key)
        if run is None:
            return f"{job} has no record" if key in self._listed else f"no job {job}"
        expected = self._steps[_schedule(run)]
        # That of --steps, where the data set's own number does not count, which is not recorded.
        declared = run.setting.get("steps", "")
        last, end = max(run.steps), max(*expected, int(declared) - 1 if declared.isdigit() else -1)
        if last < end:
            return f"{job} stopped at step {last:g} of {end:g}"
        if len(run.steps) < len(expected):
            return f"{job} has {len(run.steps)} of {len(expected)} checkpoints"
        if self._marks_done and not run.done:
            return f"{job} is not finished (no file 'done')"
        if run.diverged_at is not None:
            return f"{job} diverged, so it has no accuracies from step {run.diverged_at:g} on"
        ins, outs = selection.accuracies(run)
        if np.isnan(outs).any() or np.isnan(ins[:, list(run.test_envs)]).any():
            return f"{job} has accuracies that are not numbers in [0, 1]"
        return ""


def _kind(key: Key) -> _Kind:
    return key.dataset, key.algorithm, bool(key.test_envs)


def _schedule(run: Run) -> tuple[object, ...]:
    """What runs have to share to have checkpoints at the same steps."""
    return (*_kind(run.job.key), *map(run.setting.get, ("steps", "checkpoint_freq")))


def _where(places: _Places, expected: _Places) -> str:
    told = [
        f"trial {trial}"
        + f" hparams_seed {', '.join(map(str, found))}" * (found != expected[trial])
        for trial, found in places.items()
    ]
    return "in every trial" if places == expected else "; ".join(told)
