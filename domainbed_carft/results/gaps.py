"""What a cell of a table lacks: jobs that were not run, and runs that broke off.

Expected are the trials that any algorithm has on the data set, the choices of hyperparameters that
the algorithm has there, and for leave-one-domain-out every pair of environments. What no algorithm
has, such as a third trial, was no part of the sweep as far as one can see; jobs that ``carft
sweep`` has described count as seen. Where a launched sweep declares jobs of an algorithm on a data
set, these are expected instead, and a cell that it declares none for lacks nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs.planned import Planned
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import labels, selection
from domainbed_carft.results.jobs import identity
from domainbed_carft.results.selection import IN_DOMAIN, LEAVE_ONE_OUT

_Places = dict[int, list[int]]  # trial -> choices


class Gaps:
    """Answers for one group of runs."""

    def __init__(self, runs: Sequence[Run], planned: Sequence[Planned] = ()) -> None:
        self.runs = {identity(run): run for run in runs}
        self._unusable = {identity(job) for job in planned if job.unusable}
        described = {identity(job) for job in planned if not job.declared}
        declared = {identity(job): job for job in planned if job.declared}
        self._undescribed = {key: j.folder for key, j in declared.items() if key not in described}
        self._declared = {(j.dataset, j.algorithm, bool(j.test_envs)) for j in declared.values()}
        self._places: dict[tuple[Any, ...], dict[int, set[int]]] = {}
        self._reasons: dict[tuple[Any, ...], str] = {}  # each is asked for by several methods
        self._trials: dict[tuple[str, bool], set[int]] = {}
        self._choices: dict[tuple[str, str, bool], set[int]] = {}
        self._with_pairs: set[str] = set()
        for job in itertools.chain[Run | Planned](runs, planned):
            left_out = bool(job.test_envs)
            if len(job.test_envs) == 2:
                self._with_pairs.add(job.dataset)
            self._trials.setdefault((job.dataset, left_out), set()).add(job.trial)
            key = (job.dataset, job.algorithm, left_out)
            self._choices.setdefault(key, set()).add(job.choice)
            places = self._places.setdefault((*key[:2], job.test_envs), {})
            places.setdefault(job.trial, set()).add(job.choice)
        self._marked = {os.path.dirname(run.folder) for run in runs if run.done}
        self._steps: dict[tuple[Any, ...], dict[float, None]] = {}
        for run in runs:
            self._steps.setdefault(_schedule(run), {}).update(dict.fromkeys(run.steps))

    def choices(self, dataset: str, method: str) -> dict[str, int]:
        """Algorithm -> how many choices of hyperparameters it has on a data set."""
        return {
            algorithm: len(choices)
            for (name, algorithm, left_out), choices in self._choices.items()
            if name == dataset and left_out == (method != IN_DOMAIN)
        }

    def is_asked_for(self, dataset: str, algorithm: str, target: int, method: str) -> bool:
        """Not so a cell that no job is for, where the jobs are declared."""
        left_out = method != IN_DOMAIN
        if (dataset, algorithm, left_out) in self._declared:
            return bool(self._expected(dataset, algorithm, target, method))
        if (dataset, algorithm, left_out) in self._choices:
            return True
        own = [key[:2] for key in self._declared if key[2] == left_out]
        return not any(key[0] == dataset for key in own) or not any(
            key[1] == algorithm for key in own
        )

    def of(self, dataset: str, algorithm: str, target: int, method: str, count: int) -> list[str]:
        """Sentences on what the cell lacks, none for a whole one; ``count`` environments."""
        if count == 1 and method in selection.ON_OTHERS and self._is_recorded(dataset):
            return ["there is no environment besides it for the method to validate on"]
        if method == LEAVE_ONE_OUT and dataset not in self._with_pairs:
            listed = ", ".join(labels.listed(pair) for pair in _pairs(target, count))
            return [
                f"needs the jobs with two test environments, --test_envs {listed}, of each trial "
                "and hparams_seed; there are no such jobs on this data set"
            ]
        expected = self._expected(dataset, algorithm, target, method)
        lacks = self._lacks(dataset, algorithm, target, method, count)
        return [f"{why}: {_where(places, expected)}" for why, places in lacks.items()]

    def _is_recorded(self, dataset: str) -> bool:
        return any(run.dataset == dataset for run in self.runs.values())

    def by_trial(
        self, dataset: str, algorithm: str, target: int, method: str, count: int
    ) -> dict[int, list[str]]:
        """What each trial of the cell lacks, of those that lack something."""
        expected = self._expected(dataset, algorithm, target, method)
        found: dict[int, list[str]] = {}
        for why, places in self._lacks(dataset, algorithm, target, method, count).items():
            for trial, lost in places.items():
                which = (
                    "" if lost == expected[trial] else f" hparams_seed {', '.join(_spans(lost))}"
                )
                found.setdefault(trial, []).append(why + which)
        return found

    def _expected(self, dataset: str, algorithm: str, target: int, method: str) -> _Places:
        """Each trial with its choices of hyperparameters."""
        left_out = method != IN_DOMAIN
        if (dataset, algorithm, left_out) in self._declared:
            targets = (target,) if left_out else ()
            places = self._places.get((dataset, algorithm, targets), {})
            return {trial: sorted(choices) for trial, choices in sorted(places.items())}
        choices = sorted(self._choices.get((dataset, algorithm, left_out), ()))
        return dict.fromkeys(sorted(self._trials.get((dataset, left_out), ())), choices)

    def _lacks(
        self, dataset: str, algorithm: str, target: int, method: str, count: int
    ) -> dict[str, _Places]:
        """Reason -> where it holds."""
        wanted: list[tuple[int, ...]] = [()] if method == IN_DOMAIN else [(target,)]
        if method == LEAVE_ONE_OUT:
            wanted += _pairs(target, count)
        found: dict[str, _Places] = {}
        expected = self._expected(dataset, algorithm, target, method)
        places = [(trial, choice) for trial, choices in expected.items() for choice in choices]
        for envs, (trial, choice) in itertools.product(wanted, places):
            job = (dataset, algorithm, envs, trial, choice)
            if job not in self._reasons:
                self._reasons[job] = self._reason(*job)
            if reason := self._reasons[job]:
                found.setdefault(reason, {}).setdefault(trial, []).append(choice)
        return found

    def _reason(self, dataset: str, algorithm: str, envs: Any, trial: int, choice: int) -> str:
        """What is wrong with a job, "" if nothing is."""
        job = f"--test_envs {labels.listed(envs)}".rstrip()
        key = (dataset, algorithm, frozenset(envs), trial, choice)
        run = self.runs.get(key)
        if run is None:
            return self._why_not_run(key, job)
        expected = self._steps[_schedule(run)]
        last, end = max(run.steps), max(*expected, _last_step(run))
        if last < end:
            return f"{job} stopped at step {last:g} of {end:g}"
        if len(run.steps) < len(expected):
            return f"{job} has {len(run.steps)} of {len(expected)} checkpoints"
        if self._is_unfinished(run):
            return f"{job} is not finished (no file done)"
        if run.diverged_from is not None:
            return f"{job} diverged, and has no accuracies from step {run.diverged_from:g} on"
        return f"{job} has accuracies that are no numbers in [0, 1]" if _has_nan(run) else ""

    def _why_not_run(self, key: tuple[Any, ...], job: str) -> str:
        if key in self._unusable:
            return f"{job} has no usable record"
        folder = self._undescribed.get(key)
        launched = folder is None or os.path.isdir(folder)
        return f"no job {job}" if launched else f"{job} was not launched"

    def _is_unfinished(self, run: Run) -> bool:
        """Whether a file is lacking: records are also handed on without the others."""
        if run.done:
            return False
        beside = (job_folder.OUTPUT, job_folder.DESCRIPTION)
        return os.path.dirname(run.folder) in self._marked or any(
            os.path.exists(os.path.join(run.folder, name)) for name in beside
        )


def _pairs(target: int, count: int) -> list[tuple[int, ...]]:
    """The target with each of the other environments, in their order."""
    return [(min(i, target), max(i, target)) for i in range(count) if i != target]


def _schedule(run: Run) -> tuple[Any, ...]:
    """What runs have to share to have checkpoints at the same steps."""
    amounts = (run.setting.get("steps"), run.setting.get("checkpoint_freq"))
    return (run.dataset, run.algorithm, bool(run.test_envs), *amounts)


def _last_step(run: Run) -> int:
    """That of ``--steps``; -1 where the data set's own number counts, which is not recorded."""
    steps = run.setting.get("steps", "")
    return int(steps) - 1 if steps.isdigit() else -1


def _has_nan(run: Run) -> bool:
    """Whether an accuracy on an out-split, or on a target's in-split, is no number in [0, 1]."""
    ins, outs = selection.accuracies(run)
    return bool(np.isnan(outs).any() or np.isnan(ins[:, list(run.test_envs)]).any())


def _where(places: _Places, expected: _Places) -> str:
    if places == expected:
        return "in every trial"
    return "; ".join(_of_a_trial(trial, found, expected[trial]) for trial, found in places.items())


def _of_a_trial(trial: int, found: Sequence[int], choices: Sequence[int]) -> str:
    if list(found) == list(choices):
        return f"trial {trial}"
    return f"trial {trial} hparams_seed {', '.join(_spans(found))}"


def _spans(numbers: Sequence[int]) -> Iterator[str]:
    """1, 2, 3, 7 as 1-3, 7."""
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is None or number != previous + 1:
            yield f"{start}" if start == previous else f"{start}-{previous}"
            start = number if number is not None else start
        previous = number if number is not None else previous
