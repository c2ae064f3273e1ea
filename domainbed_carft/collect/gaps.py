"""What a cell of a table lacks: jobs that were not run, and runs that broke off.

Expected are the trials that any algorithm has on the data set, the choices of hyperparameters that
the algorithm has there, and for leave-one-domain-out every pair of environments. What no algorithm
has, such as a third trial, was no part of the sweep as far as one can see; jobs that ``carft
sweep`` has described count as seen.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from domainbed_carft.collect import environments
from domainbed_carft.collect.jobs import identity
from domainbed_carft.collect.records import Planned, Run
from domainbed_carft.collect.selection import IN_DOMAIN, LEAVE_ONE_OUT

_Places = dict[int, list[int]]  # trial -> choices


class Gaps:
    """Answers for one group of runs."""

    def __init__(self, runs: Sequence[Run], planned: Iterable[Planned] = ()) -> None:
        self.runs = {identity(run): run for run in runs}
        self._trials: dict[tuple[str, bool], set[int]] = {}
        self._choices: dict[tuple[str, str, bool], set[int]] = {}
        self._with_pairs = {run.dataset for run in runs if len(run.test_envs) == 2}
        for job in itertools.chain[Run | Planned](runs, planned):
            left_out = bool(job.test_envs)
            self._trials.setdefault((job.dataset, left_out), set()).add(job.trial)
            key = (job.dataset, job.algorithm, left_out)
            self._choices.setdefault(key, set()).add(job.choice)
        # Records are also handed on without the other files of their folders.
        self._marked = {os.path.dirname(run.folder) for run in runs if run.done}
        self._steps: dict[tuple[str, str, bool], dict[float, None]] = {}
        for run in runs:
            key = (run.dataset, run.algorithm, bool(run.test_envs))
            self._steps.setdefault(key, {}).update(dict.fromkeys(run.steps))

    def choices(self, dataset: str, method: str) -> dict[str, int]:
        """Algorithm -> how many choices of hyperparameters it has on a data set."""
        return {
            algorithm: len(choices)
            for (name, algorithm, left_out), choices in self._choices.items()
            if name == dataset and left_out == (method != IN_DOMAIN)
        }

    def of(self, dataset: str, algorithm: str, target: int, method: str, count: int) -> list[str]:
        """Sentences on what the cell lacks, none for a whole one; ``count`` environments."""
        left_out = method != IN_DOMAIN
        trials = sorted(self._trials.get((dataset, left_out), ()))
        choices = sorted(self._choices.get((dataset, algorithm, left_out), ()))
        wanted: list[tuple[int, ...]] = [(target,)] if left_out else [()]
        if method == LEAVE_ONE_OUT:
            pairs = [(min(i, target), max(i, target)) for i in range(count) if i != target]
            if dataset not in self._with_pairs:
                listed = ", ".join(environments.listed(pair) for pair in pairs)
                return [
                    "needs the jobs with two test environments, --test_envs "
                    f"{listed}, of each trial and hparams_seed; the data set has none"
                ]
            wanted = [*wanted, *pairs]
        lacks: dict[str, _Places] = {}
        for envs, trial, choice in itertools.product(wanted, trials, choices):
            if reason := self._reason(dataset, algorithm, envs, trial, choice):
                lacks.setdefault(reason, {}).setdefault(trial, []).append(choice)
        return [f"{why}: {_where(places, trials, choices)}" for why, places in lacks.items()]

    def _reason(self, dataset: str, algorithm: str, envs: Any, trial: int, choice: int) -> str:
        """What is wrong with a job, "" if nothing is."""
        job = f"--test_envs {environments.listed(envs)}".rstrip()
        run = self.runs.get((dataset, algorithm, frozenset(envs), trial, choice))
        if run is None:
            return f"no job {job}"
        expected = self._steps[dataset, algorithm, bool(run.test_envs)]
        if len(run.steps) < len(expected):
            last = max(run.steps)
            if last < max(expected):
                return f"{job} stopped at step {last:g} of {max(expected):g}"
            return f"{job} has {len(run.steps)} of {len(expected)} checkpoints"
        unfinished = not run.done and os.path.dirname(run.folder) in self._marked
        return f"{job} is not finished (no file done)" if unfinished else ""


def _where(places: _Places, trials: Sequence[int], choices: Sequence[int]) -> str:
    if len(places) == len(trials) and all(found == list(choices) for found in places.values()):
        return "in every trial"
    return "; ".join(_of_a_trial(trial, found, choices) for trial, found in places.items())


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
