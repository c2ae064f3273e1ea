"""A declared sweep whose names were checked, and the jobs that follow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.job import CHOOSE, REPEAT, Job, Role, identity, seed_hash
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.jobs.search import ChosenValues
from domainbed_carft.sweep.shape import Cell, Shape, folder_name

TASK = "domain_generalization"

# The roles that jobs of a cell with these test environments have.
_RolesOf = Callable[[Cell, Sequence[int]], list[Role]]


class Declaration(Shape):
    """A sweep whose names were checked; ``facts``: data set -> its facts; ``text``: of the file."""

    facts: Mapping[str, Dataset] = {}
    text: str = ""

    def checkpoint_freq_of(self, cell: Cell) -> int:
        """Declared steps from one checkpoint to the next; 0 leaves them to the data set."""
        for layer in (cell.variant, *reversed(self.overrides)):
            if layer.checkpoint_freq and layer.covers(cell.dataset, cell.algorithm):
                return layer.checkpoint_freq
        return 0

    def jobs(self, data_dir: str, output: Path) -> list[Job]:
        """All jobs, variant by variant, trial by trial, whether or not their folders exist.

        Of a search with stages those of the first one; `repeated_jobs` has the others. Arguments,
        seeds and folder names are those of upstream file domainbed/scripts/sweep.py at b93c22a, so
        that either tool can resume the other's folder. The members of a search have folders of
        their own, such as ``lr=0.1/``.
        """
        stage = CHOOSE if self.has_stages else ""
        trials = self.choosing_trials if self.has_stages else self.trial_seeds

        def roles(cell: Cell, test_envs: Sequence[int]) -> list[Role]:
            members = self.members(cell.dataset, cell.algorithm)
            if self.has_stages and len(members) < 2:  # there is nothing to choose
                return []
            return [Role(cell.name, values, number, stage) for number, values in enumerate(members)]

        return self._jobs(trials, roles, data_dir, output)

    def repeated_jobs(
        self, data_dir: str, output: Path, chosen: Iterable[ChosenValues]
    ) -> list[Job]:
        """The jobs of a search's second stage, which train the ``chosen`` values.

        Where nothing was chosen, they train the last member, so that they can be counted before.
        """
        chosen_of_cell: dict[tuple[str, str, str], list[ChosenValues]] = {}
        for choice in chosen:
            row = (choice.cell, choice.dataset, choice.algorithm)
            chosen_of_cell.setdefault(row, []).append(choice)

        def roles(cell: Cell, test_envs: Sequence[int]) -> list[Role]:
            members = self.members(cell.dataset, cell.algorithm)
            values = [
                choice.values
                for choice in chosen_of_cell.get((cell.name, cell.dataset, cell.algorithm), ())
                if choice.test_envs is None or {*choice.test_envs} <= {*test_envs}
            ]
            numbers = [members.index(dict(item)) for item in values] or [len(members) - 1]
            return [
                Role(cell.name, members[number], number, REPEAT, members=len(members))
                for number in dict.fromkeys(numbers)
            ]

        return self._jobs(self.trial_seeds, roles, data_dir, output)

    def targets(self, dataset: str, labels: Sequence[str] | None = None) -> list[list[int]]:
        """As of `Shape`, of the data set's own environments."""
        return super().targets(dataset, labels or self.facts[dataset].labels)

    def _jobs(
        self, trials: Iterable[int], roles_of: _RolesOf, data_dir: str, output: Path
    ) -> list[Job]:
        """The jobs of all cells, with each role that ``roles_of`` gives them."""
        jobs = []
        for (name, variant), trial, dataset, algorithm in itertools.product(
            self.settings.items(), trials, self.datasets, self.algorithms
        ):
            if not variant.covers(dataset, algorithm):
                continue

            cell = Cell(name, variant, dataset, algorithm)
            for test_envs, choice in itertools.product(self.targets(dataset), self.choices):
                seed = seed_hash(dataset, algorithm, test_envs, choice, trial)
                for role in roles_of(cell, test_envs):
                    # In this order, which the command lines keep.
                    args = {
                        **self._common_arguments(cell, role.values, data_dir, trial),
                        "test_envs": test_envs,
                        "hparams_seed": choice,
                        "seed": seed,
                    }
                    jobs.append(self._job(args, cell, role, output))
        return jobs

    def _common_arguments(
        self, cell: Cell, values: Mapping[str, Any], data_dir: str, trial: int
    ) -> dict[str, Any]:
        """The arguments that a cell's jobs of one trial and member share."""
        arguments: dict[str, Any] = {
            "data_dir": data_dir,
            "task": TASK,
            "holdout_fraction": self.holdout_fraction,
            "dataset": cell.dataset,
            "algorithm": cell.algorithm,
            "trial_seed": trial,
        }
        # Part of the identity only where they are given.
        if steps := self.steps_of(cell.dataset, cell.algorithm):
            arguments["steps"] = steps
        if checkpoint_freq := self.checkpoint_freq_of(cell):
            arguments["checkpoint_freq"] = checkpoint_freq
        hparams = {**self.hparams_of(cell.dataset, cell.algorithm, cell.variant), **values}
        if hparams:
            arguments["hparams"] = json.dumps(hparams, sort_keys=True)
        return arguments

    def _job(self, args: Mapping[str, Any], cell: Cell, role: Role, output: Path) -> Job:
        """A job in its folder; without a role that says more than its arguments."""
        folder = cell.name if role.stage == REPEAT else folder_name(cell.name, role.values)
        together = self.leaves_out_together(cell.dataset) and len(args["test_envs"]) > 1
        if together or role.values or role.stage:
            role = replace(role, leaves_out_together=together)
        else:
            role = Role()
        return Job(args, output / folder / identity(args), folder, role)
