"""A search in two stages as the manifest has it: what was declared, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.jobs.job import Job, Role


@dataclass(frozen=True)
class ChosenValues:
    """What the first stage of a search chose for one variant, data set and algorithm.

    ``test_envs``: the environments left out by the jobs that the choice is for, None where it is
    for all jobs.
    ``members``: among how many these values were chosen; ``validation``: their mean validation
    accuracy in [0, 1].
    """

    cell: str
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...] | None
    values: Mapping[str, Any]
    members: int
    validation: float


@dataclass(frozen=True)
class Search:
    """A search in two stages: every member on the trials ``choose_on``, the chosen on others.

    ``method``: the selection method that chooses; ``choose_by``: "dataset" or "target".
    ``repeats``: number of jobs of the second stage; ``chosen``: empty until the first is done.
    ``command``: the words of the command line that launches what is missing.
    """

    method: str
    choose_by: str
    choose_on: tuple[int, ...]
    repeat_on: tuple[int, ...]
    repeats: int
    chosen: tuple[ChosenValues, ...] = ()
    command: tuple[str, ...] = ()

    def is_chosen(self, job: Job) -> bool:
        """Whether a job of the second stage trains the values that the first one chose."""
        key = job.key
        row = (job.role.cell, key.dataset, key.algorithm)
        chosen_values = [
            chosen.values
            for chosen in self.chosen
            if (chosen.cell, chosen.dataset, chosen.algorithm) == row
            and (chosen.test_envs is None or {*chosen.test_envs} <= key.test_envs)
        ]
        return not chosen_values or job.role.values in chosen_values


def trials_phrase(seeds: Sequence[int]) -> str:
    """``trial 5`` or ``trials 0, 1, 2``."""
    return f"{'trial' if len(seeds) == 1 else 'trials'} {', '.join(map(str, seeds))}"


def parse_search(content: Any) -> Search:
    """The search that a manifest describes; KeyError, TypeError or ValueError if it is none."""
    return Search(
        method=str(content["method"]),
        choose_by=str(content["choose_by"]),
        choose_on=tuple(map(int, content["choose_on"])),
        repeat_on=tuple(map(int, content["repeat_on"])),
        repeats=int(content["repeats"]),
        chosen=tuple(map(_parse_chosen, content["chosen"])),
        command=tuple(map(str, content["command"])),
    )


def _parse_chosen(content: Any) -> ChosenValues:
    test_envs = content["test_envs"]
    return ChosenValues(
        cell=str(content["cell"]),
        dataset=str(content["dataset"]),
        algorithm=str(content["algorithm"]),
        test_envs=None if test_envs is None else tuple(map(int, test_envs)),
        values=dict(content["values"]),
        members=int(content["members"]),
        validation=float(content["validation"]),
    )


def parse_role(content: Any) -> Role:
    """A job's role in a manifest; KeyError, TypeError or ValueError if it is none."""
    return Role(
        cell=str(content["cell"]),
        values=dict(content["values"]),
        member=int(content["member"]),
        stage=str(content["stage"]),
        members=int(content["members"]),
        leaves_out_together=bool(content["leaves_out_together"]),
    )
