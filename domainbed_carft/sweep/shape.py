"""The keys of a declared sweep, and what follows from them: cells, members, targets, trials.

Editors read the keys as a JSON schema, ``assets/sweep.schema.json`` (``tools/sweep_schema.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from domainbed_carft.sweep.fields import (
    SINGLE_SOURCE,
    AlgorithmNames,
    Count,
    DatasetName,
    DatasetNames,
    Distinct,
    Division,
    FolderName,
    Hparams,
    Keys,
    MethodName,
    OneOrEach,
    Override,
    Search,
    SeedRange,
    Setting,
    SweepName,
    Variant,
    seeds_of,
)

TASK = "domain_generalization"
LEAVE_ONE_OUT = "leave-one-domain-out"
# Selection methods that look at the target, so that no search may choose by them.
_METHODS_WITH_TARGET = ("oracle",)

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What has its own row in a table: a variant's jobs on one data set, of one algorithm.

    ``name``: the variant's, the folder of its jobs where nothing is searched.
    """

    name: str
    variant: Variant
    dataset: str
    algorithm: str


class Shape(Keys):
    """Which jobs a sweep has: docs/sweeps.md says what each key means."""

    model_config = ConfigDict(title="A sweep of domainbed-carft")

    name: SweepName
    description: str = ""
    datasets: DatasetNames
    algorithms: AlgorithmNames
    trials: SeedRange = 3
    hparams_seeds: SeedRange = 1
    steps: OneOrEach[Count, dict[DatasetName, Count]] = {}
    hparams: Hparams = {}
    overrides: list[Override] = []
    variants: dict[FolderName, Variant] = {}
    grid: dict[str, Distinct[Setting]] = {}
    search: Search | None = None
    test_environments: OneOrEach[Division, dict[DatasetName, Division]] = {}
    selection: Distinct[MethodName] = ["training-domain", "oracle"]
    # None is another job than "domainbed"
    protocol: Literal["domainbed", "clip", "wise-ft", "lipsum-ft"] | None = None
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    compare_with: list[str] = []

    @property
    def choices(self) -> range:
        """The hparams seeds."""
        if self.search and self.search.draws:
            return range(self.search.draws)
        return seeds_of(self.hparams_seeds)

    @property
    def has_stages(self) -> bool:
        """Whether a search chooses on some trials, and its choice is repeated on others."""
        return bool(self.search and self.search.choose_on)

    @property
    def choosing_trials(self) -> range:
        """The trial seeds on which a search with stages chooses; else none."""
        return self.search.choose_on.seeds if self.search and self.search.choose_on else range(0)

    @property
    def trial_seeds(self) -> range:
        """The trial seeds of the tables; of a search with stages those of the second one."""
        if self.search and self.search.repeat_on:
            return self.search.repeat_on.seeds
        return seeds_of(self.trials)

    @property
    def choosing_method(self) -> str | None:
        """The first selection method that looks at no target; None if there is none."""
        return next((name for name in self.selection if name not in _METHODS_WITH_TARGET), None)

    @property
    def settings(self) -> dict[str, Variant]:
        """The variants by folder name, such as ``lr=3,amp=bf16``, or one without a name.

        With a grid, each variant at each of its points.
        """
        variants = self.variants or {"": Variant()}
        points = itertools.product(*self.grid.values())

        variants_by_folder = {}
        for (name, variant), values in itertools.product(variants.items(), points):
            point = dict(zip(self.grid, values))
            hparams = {**variant.hparams, **point}
            folder = folder_name(name, point)
            variants_by_folder[folder] = variant.model_copy(update={"hparams": hparams})
        return variants_by_folder

    def cells(self) -> Iterator[Cell]:
        """All cells, variant by variant."""
        for (name, variant), dataset, algorithm in itertools.product(
            self.settings.items(), self.datasets, self.algorithms
        ):
            if variant.covers(dataset, algorithm):
                yield Cell(name, variant, dataset, algorithm)

    def members(self, dataset: str, algorithm: str) -> list[Values]:
        """The combinations of searched values; a single empty one if nothing is searched."""
        searched = self.searched_values(dataset, algorithm)
        return [dict(zip(searched, values)) for values in itertools.product(*searched.values())]

    def searched_values(self, dataset: str, algorithm: str) -> dict[str, Sequence[Any]]:
        """Hyperparameter -> its searched values; those of later overrides replace earlier ones."""
        searched: dict[str, Sequence[Any]] = dict(self.search.values) if self.search else {}
        for override in self.overrides:
            if override.search and override.covers(dataset, algorithm):
                searched |= override.search.values
        return {name: values for name, values in searched.items() if values}

    def division_of(self, dataset: str) -> Division:
        """The environments to leave out of a data set, as declared; empty if each in turn."""
        declared = self.test_environments
        return declared.get(dataset, []) if isinstance(declared, dict) else declared

    def hparams_of(self, dataset: str, algorithm: str, setting: Variant) -> dict[str, Any]:
        """The hyperparameters that are set; later settings override earlier ones."""
        merged = {"protocol": self.protocol, **self.hparams}
        for layer in (*self.overrides, setting):
            if layer.covers(dataset, algorithm):
                merged |= layer.hparams

        return {name: value for name, value in merged.items() if value is not None}

    def steps_of(self, dataset: str, algorithm: str = "") -> int | None:
        """Declared steps; None leaves them to the data set."""
        for override in reversed(self.overrides):
            if override.steps and override.covers(dataset, algorithm):
                return override.steps
        return self.steps.get(dataset) if isinstance(self.steps, dict) else self.steps

    def leaves_out_together(self, dataset: str) -> bool:
        """Whether each job leaves several environments out that are all targets."""
        division = self.division_of(dataset)
        return division == SINGLE_SOURCE or any(isinstance(item, list) for item in division)

    def targets(self, dataset: str, labels: Sequence[str]) -> list[list[int]]:
        """Test environments of each job on a data set with these environments, sorted.

        One at a time, and pairs with one of them, if leave-one-domain-out cross-validation needs
        them; or those that are declared together. Unknown ones are left out.
        """
        if len(labels) == 1:  # a user's own data: there is nothing to leave out
            return [[]]

        environments = range(len(labels))
        division = self.division_of(dataset)
        if division == SINGLE_SOURCE:
            return [[env for env in environments if env != source] for source in environments]
        if self.leaves_out_together(dataset):
            together = {tuple(sorted(_indices(item, labels))) for item in division}
            return sorted(map(list, together))

        targets = _indices(division or environments, labels)
        test_envs = [[target] for target in targets]
        if LEAVE_ONE_OUT in self.selection:
            pairs = itertools.combinations(environments, 2)
            test_envs += [list(pair) for pair in pairs if {*pair} & targets]
        return sorted(test_envs)


def folder_name(cell: str, values: Values) -> str:
    """The folder of the jobs of a cell with these values: ``zero-shot,lr=0.1``."""
    parts = [cell, *(f"{name}={value}" for name, value in values.items())]
    label = ",".join(part for part in parts if part)
    return "".join(c if c.isalnum() or c in "._=,+-" else "-" for c in label)


def environment_index(environment: str | int, labels: Sequence[str]) -> int | None:
    """The index of an environment that is named by its index or label; None if it is unknown."""
    if isinstance(environment, str):
        return labels.index(environment) if environment in labels else None
    return environment if environment < len(labels) else None


def _indices(environments: Any, labels: Sequence[str]) -> set[int]:
    """The indices of environments, each named by its index or label, without unknown ones."""
    listed = environments if isinstance(environments, (list, range)) else [environments]
    indices = {environment_index(environment, labels) for environment in listed}
    return {index for index in indices if index is not None}
