"""Reasons why a cell of a table is incomplete: missing jobs and runs that stopped early.

Without a manifest, a row is expected to have all trials of its dataset, the row's own choices of
hyperparameters in each, and for leave-one-domain-out every pair of environments.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from domainbed_carft.jobs.job import Candidate, Choice, format_held_out
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import selection
from domainbed_carft.results.groups import Group
from domainbed_carft.results.selection import LEAVE_ONE_OUT, METHODS

_Choices = dict[int, list[Choice]]  # trial -> choices of hyperparameters
_Kind = tuple[str, str, bool]  # dataset, row, True if an environment is held out


class Gaps:
    """Finds the missing jobs of a group of runs, given the planned jobs of its manifests.

    Attributes:
        runs: job -> its run.
        keys: all jobs that were run or planned.
    """

    def __init__(self, group: Group) -> None:
        self.runs = {run.job.candidate: run for run in group.runs}
        self._listed = {job.candidate for job in group.planned}
        self._marks_done = bool(group.planned) or any(run.done for run in group.runs)
        self._environments = group.environments

        self.keys = {**dict.fromkeys(self.runs), **dict.fromkeys(self._listed)}
        self._keys_by_kind: dict[_Kind, list[Candidate]] = {}
        for key in self.keys:
            self._keys_by_kind.setdefault(_kind(key), []).append(key)

        # All jobs of a group that hold out several targets together hold out the same ones.
        self._divisions = {
            job.key.dataset: job.key.test_envs
            for job in (*group.planned, *(run.job for run in group.runs))
            if job.role.holds_out_together
        }

        self._steps_by_schedule: dict[tuple[object, ...], set[float]] = {}
        for run in group.runs:
            self._steps_by_schedule.setdefault(_schedule(run), set()).update(run.steps)

    def get_candidates(self, method: str) -> list[Candidate]:
        """Return the jobs from which a selection method selects."""
        holds_out = METHODS[method].holds_out
        return [
            key
            for key in self.keys
            if bool(key.held_out) == holds_out
            # A second held-out environment would be another target's.
            and not (method == LEAVE_ONE_OUT and key.dataset in self._divisions)
        ]

    def find_missing(self, dataset: str, row: str, target: int, method: str) -> list[str] | None:
        """Return reasons why a cell is incomplete, or None if no job is expected for it."""
        holds_out = METHODS[method].holds_out
        kind = (dataset, row, holds_out)
        if kind not in self._keys_by_kind:
            return None if self._listed else ["no job of the algorithm on this dataset"]

        test_envs = frozenset({target} if holds_out else ())
        if holds_out and dataset in self._divisions:
            test_envs = self._divisions[dataset]
            if target not in test_envs:
                return None

        held_out = format_held_out(test_envs)
        expected_choices = self._expected_choices(kind, held_out)
        if not expected_choices:
            return None

        needed = [held_out]
        if method == LEAVE_ONE_OUT:
            second_envs = [env for env in range(len(self._environments[dataset])) if env != target]
            needed += [format_held_out({target, env}) for env in second_envs]

        choices_by_reason: dict[str, _Choices] = {}
        for numbers, (trial, choices) in itertools.product(needed, expected_choices.items()):
            for choice in choices:
                reason = self._reason(Candidate(dataset, row, numbers, trial, choice))
                if reason:
                    missing_choices = choices_by_reason.setdefault(reason, {})
                    missing_choices.setdefault(trial, []).append(choice)

        return [
            f"{reason}: {_describe_choices(missing_choices, expected_choices)}"
            for reason, missing_choices in choices_by_reason.items()
        ]

    def _expected_choices(self, kind: _Kind, held_out: str) -> _Choices:
        """Map each expected trial to its choices of hyperparameters."""
        keys = self._keys_by_kind[kind]
        if not self._listed.isdisjoint(keys):
            expected: _Choices = {}
            for key in sorted(key for key in keys if key.held_out == held_out):
                expected.setdefault(key.trial, []).append(key.choice)
            return expected

        trials = {
            key.trial
            for (dataset, _, holds_out), candidates in self._keys_by_kind.items()
            for key in candidates
            if (dataset, holds_out) == (kind[0], kind[2])
        }
        return dict.fromkeys(sorted(trials), sorted({key.choice for key in keys}))

    def _reason(self, key: Candidate) -> str:
        """Return the reason why a job does not count in full; empty if it does."""
        job = f"--test_envs {key.held_out}".rstrip()
        run = self.runs.get(key)
        if run is None:
            return f"{job} has no record" if key in self._listed else f"no job {job}"

        expected_steps = self._steps_by_schedule[_schedule(run)]
        last_step = max(run.steps)
        last_expected = max(expected_steps)
        # The dataset's default number of steps is not recorded.
        declared = run.setting.get("steps", "")
        if declared.isdigit():
            last_expected = max(last_expected, int(declared) - 1)

        if last_step < last_expected:
            return f"{job} stopped at step {last_step:g} of {last_expected:g}"
        if len(run.steps) < len(expected_steps):
            return f"{job} has {len(run.steps)} of {len(expected_steps)} checkpoints"
        if self._marks_done and not run.done:
            return f"{job} is not finished (no file 'done')"
        if run.diverged_at is not None:
            return f"{job} diverged, so it has no accuracies from step {run.diverged_at:g} on"

        in_splits, out_splits = selection.accuracies(run)
        if np.isnan(out_splits).any() or np.isnan(in_splits[:, list(run.test_envs)]).any():
            return f"{job} has accuracies that are not numbers in [0, 1]"
        return ""


def _kind(key: Candidate) -> _Kind:
    return key.dataset, key.row, bool(key.held_out)


def _schedule(run: RecordedRun) -> tuple[object, ...]:
    """Return the settings that runs share if their checkpoints are at the same steps."""
    frequency = run.setting.get("checkpoint_freq")
    return (*_kind(run.job.candidate), run.setting.get("steps"), frequency)


def _describe_choices(choices: _Choices, expected: _Choices) -> str:
    """List trials, with their choices if not all expected ones are among ``choices``."""
    if choices == expected:
        return "in every trial"

    descriptions = []
    for trial, missing in choices.items():
        description = f"trial {trial}"
        if missing != expected[trial]:
            description += f" {_list_choices(missing)}"
        descriptions.append(description)
    return "; ".join(descriptions)


def _list_choices(choices: Sequence[Choice]) -> str:
    """List choices, as ``hparams_seed 1, 2``, or ``lr=0.1, lr=0.3`` of a search."""
    if any(choice.values for choice in choices):
        return ", ".join(map(str, choices))
    return f"hparams_seed {', '.join(str(choice.hparams_seed) for choice in choices)}"
