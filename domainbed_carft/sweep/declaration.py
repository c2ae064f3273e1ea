"""The keys of a declared sweep, and the jobs that follow from them.

``tools/site/reference.py`` writes the models and their docstrings as a JSON schema for editors,
``assets/sweep.schema.json``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
)

from domainbed_carft.data.benchmarks import shortest_path
from domainbed_carft.files.parsing import YamlPath
from domainbed_carft.jobs.job import CHOOSE, REPEAT, Job, Role, get_folder_name, seed_hash
from domainbed_carft.jobs.manifest import ChosenValues, Dataset

TASK = "domain_generalization"
LEAVE_ONE_OUT = "leave-one-domain-out"
CLIPOOD = "clipood"
# Selection rules by which a search must not choose: they look at the target, or choose nothing.
_RULES_WITHOUT_CHOICE = ("oracle", CLIPOOD)

Values = Mapping[str, Any]

# The text of a validator's ValueError completes "expected ...": see files/validation.py.


def _require_hparam_value(value: Any) -> Any:
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("text, a number, true, false, or a list of words")


def _require_distinct(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"each value once; {value!r} appears twice")
    return values


Item = TypeVar("Item")
ForAll = TypeVar("ForAll")
ForEach = TypeVar("ForEach")
Distinct = Annotated[list[Item], Field(min_length=1), AfterValidator(_require_distinct)]
# Messages omit tags in angle brackets from the places that they name.
OneOrEach = Annotated[
    Annotated[ForAll, Tag("<all>")] | Annotated[ForEach, Tag("<each>")],
    Discriminator(lambda value: "<each>" if isinstance(value, dict) else "<all>"),
]
Count = Annotated[int, Field(ge=1, le=10**9)]
Index = Annotated[int, Field(ge=0, le=10**9)]
DatasetName = Annotated[str, StringConstraints(min_length=1), AfterValidator(shortest_path)]
DatasetNames = Distinct[DatasetName]
AlgorithmNames = Distinct[Annotated[str, Field(min_length=1)]]
HparamValue = Annotated[
    Any,
    BeforeValidator(_require_hparam_value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["string", "number", "boolean"]},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]
Hparams = dict[str, HparamValue]
EnvironmentReference = Annotated[
    Annotated[Index, Tag("<index>")] | Annotated[str, Tag("<label>")],
    Discriminator(lambda value: "<index>" if isinstance(value, int) else "<label>"),
]
EnvironmentReferences = Annotated[list[EnvironmentReference], Field(min_length=1)]
SINGLE_SOURCE = "single-source"


def _get_division_tag(value: Any) -> str:
    """Return the tag of the form in which a division is declared."""
    if value == SINGLE_SOURCE:
        return "<word>"
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        return "<lists>"
    return "<list>"


# The environments to hold out: one at a time, or several together.
Division = Annotated[
    Annotated[Literal["single-source"], Tag("<word>")]
    | Annotated[EnvironmentReferences, Tag("<list>")]
    | Annotated[Annotated[list[EnvironmentReferences], Field(min_length=1)], Tag("<lists>")],
    Discriminator(_get_division_tag),
]
RuleName = Literal["training-domain", "leave-one-domain-out", "oracle", "clipood"]
SweepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$")]


class Keys(BaseModel):
    """A mapping in a declaration, which accepts no other keys and converts no values."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Seeds(Keys):
    """A range of hparams seeds or of trial seeds."""

    first: Index = Field(default=0, alias="from")
    n: Count


SeedRange = OneOrEach[Count, Seeds]


def seed_range(declared: int | Seeds) -> range:
    """Return the declared seeds, which start at 0 if only their number is declared."""
    if isinstance(declared, int):
        return range(declared)
    return range(declared.first, declared.first + declared.n)


class Trials(Keys):
    """The trials of one stage of a search."""

    trials: SeedRange

    @property
    def seeds(self) -> range:
        """The trial seeds."""
        return seed_range(self.trials)


class DeclaredSearch(Keys):
    """Hyperparameters chosen by validation: listed values, draws, or both.

    With ``choose_on`` the search has two stages. The first trains all members on the trials of
    ``choose_on``, and the second trains the chosen member on the trials of ``repeat_on``.
    """

    values: dict[str, Distinct[HparamValue]] = {}
    draws: Count | None = None
    choose_on: Trials | None = None
    repeat_on: Trials | None = None
    choose_by: Literal["dataset", "target"] = "dataset"


class SearchOverride(Keys):
    """Searched values for some algorithms or datasets; an empty list disables the search there."""

    values: dict[str, Annotated[list[HparamValue], AfterValidator(_require_distinct)]]


class Variant(Keys):
    """Settings that override all others, for all algorithms and datasets or only for these."""

    algorithms: AlgorithmNames = []
    datasets: DatasetNames = []
    hparams: Hparams = {}
    checkpoint_freq: Count = 0  # steps between checkpoints; 0 is the dataset's default

    def covers(self, dataset: str, algorithm: str) -> bool:
        """Return True if the settings apply to this algorithm on this dataset."""
        if self.datasets and dataset not in self.datasets:
            return False
        return not self.algorithms or algorithm in self.algorithms


class Override(Variant):
    """Settings, steps and searched values for some algorithms or datasets."""

    steps: Count = 0  # 0 is the default
    search: SearchOverride | None = None


@dataclass(frozen=True)
class SweepCell:
    """A row of the tables: all jobs of a variant, dataset and algorithm, with their settings."""

    name: str  # of the variant, and of the folder of its jobs if nothing is searched
    variant: Variant
    dataset: str
    algorithm: str
    steps: int | None  # None is the dataset's default
    checkpoint_freq: int | None  # None is the dataset's default
    hparams: Values  # that are set
    searched: Mapping[str, Sequence[Any]]  # values by searched hyperparameter
    # Keys of the file that lead to each hyperparameter's value, or to its list of searched values.
    places: Mapping[str, YamlPath]

    def get_place(self, name: str, value: Any) -> YamlPath | None:
        """Return the keys that lead to a hyperparameter's value, or None if it is a default."""
        place = self.places.get(name)
        if place is not None and value in self.searched.get(name, ()):
            return (*place, list(self.searched[name]).index(value))
        return place

    @property
    def members(self) -> list[Values]:
        """The combinations of searched values: one empty mapping if nothing is searched."""
        combinations = itertools.product(*self.searched.values())
        return [dict(zip(self.searched, values)) for values in combinations]


class Shape(Keys):
    """The keys of a sweep file; docs/sweeps.md describes them."""

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
    grid: dict[str, Distinct[HparamValue]] = {}
    search: DeclaredSearch | None = None
    test_environments: OneOrEach[Division, dict[DatasetName, Division]] = {}
    selection: Distinct[RuleName] = ["training-domain", "oracle"]
    # None and "domainbed" train alike, but give jobs different identities.
    protocol: Literal["domainbed", "clip", "wise-ft", "lipsum-ft"] | None = None
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    compare_with: list[str] = []

    @property
    def choices(self) -> range:
        """The hparams seeds."""
        if self.search and self.search.draws:
            return range(self.search.draws)
        return seed_range(self.hparams_seeds)

    @property
    def has_stages(self) -> bool:
        """True if a search chooses on some trials and repeats its choice on others."""
        return bool(self.search and self.search.choose_on)

    @property
    def choosing_trials(self) -> range:
        """The trial seeds on which a search with stages chooses; empty without stages."""
        return self.search.choose_on.seeds if self.search and self.search.choose_on else range(0)

    @property
    def trial_seeds(self) -> range:
        """The trial seeds of the tables: with stages, the trials of the second stage."""
        if self.search and self.search.repeat_on:
            return self.search.repeat_on.seeds
        return seed_range(self.trials)

    @property
    def choosing_rule(self) -> str | None:
        """The first selection rule by which a search can choose, or None."""
        return next((name for name in self.selection if name not in _RULES_WITHOUT_CHOICE), None)

    def cells(self) -> Iterator[SweepCell]:
        """Iterate over all cells, variant by variant; each variant is repeated at each grid point.

        A cell's settings are those of the sweep, its overrides and its variant; later ones override
        earlier ones.
        """
        variants = self.variants or {"": Variant()}
        for name, variant in variants.items():
            rows = itertools.product(self.datasets, self.algorithms)
            covered = [row for row in rows if variant.covers(*row)]
            # Never a list of all points, of which a file can declare more than memory can hold.
            numbered = (enumerate(values) for values in self.grid.values())
            for point in itertools.product(*numbered) if covered else ():
                values = {key: value for key, (_, value) in zip(self.grid, point)}
                places = {key: ("grid", key, index) for key, (index, _) in zip(self.grid, point)}
                folder = folder_name(name, values)
                at_point = variant.model_copy(update={"hparams": {**variant.hparams, **values}})
                blocks = [*self.override_blocks, (("variants", name), at_point)]
                for dataset, algorithm in covered:
                    yield self._get_cell(folder, blocks, places, dataset, algorithm)

    @property
    def override_blocks(self) -> list[tuple[YamlPath, Variant]]:
        """The overrides, each with the keys that lead to it."""
        return [(("overrides", index), block) for index, block in enumerate(self.overrides)]

    def _get_cell(
        self,
        name: str,
        blocks: Sequence[tuple[YamlPath, Variant]],
        grid_places: Mapping[str, YamlPath],
        dataset: str,
        algorithm: str,
    ) -> SweepCell:
        """Return a cell with the settings of the sweep and then of the blocks that cover it.

        The last block is the variant.
        """
        hparams: dict[str, Any] = {**self.hparams}
        places: dict[str, YamlPath] = {key: ("hparams", key) for key in self.hparams}
        if self.protocol is not None:
            hparams = {"protocol": self.protocol, **hparams}
            places = {"protocol": ("protocol",), **places}
        steps = self.steps.get(dataset) if isinstance(self.steps, dict) else self.steps
        checkpoint_freq = 0
        searched: dict[str, Sequence[Any]] = dict(self.search.values) if self.search else {}
        searched_places: dict[str, YamlPath] = {key: ("search", "values", key) for key in searched}

        for path, block in blocks:
            if not block.covers(dataset, algorithm):
                continue
            hparams |= block.hparams
            places |= {key: (*path, "hparams", key) for key in block.hparams}
            checkpoint_freq = block.checkpoint_freq or checkpoint_freq
            if isinstance(block, Override):
                steps = block.steps or steps
                values = block.search.values if block.search else {}
                searched |= values
                searched_places |= {key: (*path, "search", "values", key) for key in values}

        searched = {key: values for key, values in searched.items() if values}
        return SweepCell(
            name=name,
            variant=blocks[-1][1],
            dataset=dataset,
            algorithm=algorithm,
            steps=steps,
            checkpoint_freq=checkpoint_freq or None,
            hparams=hparams,
            searched=searched,
            places={**places, **grid_places, **{key: searched_places[key] for key in searched}},
        )

    def get_division(self, dataset: str) -> Division:
        """Return the environments to hold out of a dataset, as declared; empty: each in turn."""
        declared = self.test_environments
        return declared.get(dataset, []) if isinstance(declared, dict) else declared

    def holds_out_together(self, dataset: str) -> bool:
        """Return True if a job can hold out several environments that are all targets."""
        division = self.get_division(dataset)
        return division == SINGLE_SOURCE or any(isinstance(item, list) for item in division)

    def targets(self, dataset: str, labels: Sequence[str]) -> list[list[int]]:
        """Return the sorted test environments of each job on a dataset with these environments.

        Jobs hold out one target at a time, or the environments that are declared together.
        Leave-one-domain-out cross-validation adds pairs that contain a target. Unknown environments
        are ignored.
        """
        if len(labels) == 1:  # a user's own data: there is no environment to hold out
            return [[]]

        environments = range(len(labels))
        division = self.get_division(dataset)
        if division == SINGLE_SOURCE:
            return [[env for env in environments if env != source] for source in environments]
        if self.holds_out_together(dataset):
            joint_targets = {tuple(sorted(_find_indices(item, labels))) for item in division}
            return sorted(map(list, joint_targets))

        targets = _find_indices(division or environments, labels)
        test_envs = [[target] for target in targets]
        if LEAVE_ONE_OUT in self.selection:
            pairs = itertools.combinations(environments, 2)
            test_envs += [list(pair) for pair in pairs if {*pair} & targets]
        return sorted(test_envs)


def folder_name(cell: str, values: Values) -> str:
    """Return the folder of a cell's jobs with these values, such as ``zero-shot,lr=0.1``."""
    parts = [cell, *(f"{name}={value}" for name, value in values.items())]
    label = ",".join(part for part in parts if part)
    return "".join(c if c.isalnum() or c in "._=,+-" else "-" for c in label)


def find_environment(environment: str | int, labels: Sequence[str]) -> int | None:
    """Return the index of an environment, given as index or label, or None if it is unknown."""
    if isinstance(environment, str):
        return labels.index(environment) if environment in labels else None
    return environment if environment < len(labels) else None


def _find_indices(environments: Any, labels: Sequence[str]) -> set[int]:
    """Return the indices of environments, given as indices or labels, without unknown ones."""
    listed = environments if isinstance(environments, (list, range)) else [environments]
    indices = {find_environment(environment, labels) for environment in listed}
    return {index for index in indices if index is not None}


class Declaration(Shape):
    """A sweep file whose names and values were checked."""

    facts: Mapping[str, Dataset] = {}  # by the names of the datasets
    unread: Mapping[str, Sequence[str]] = {}  # by algorithm, searched names without an effect
    text: str = ""  # of the file

    def cells(self) -> Iterator[SweepCell]:
        """Iterate over all cells, without the searched values that have no effect on them."""
        for cell in super().cells():
            unread = self.unread.get(cell.algorithm, ())
            searched = {key: values for key, values in cell.searched.items() if key not in unread}
            yield replace(cell, searched=searched)

    def jobs(
        self, data_dir: str, output: Path, chosen: Sequence[ChosenValues] | None = None
    ) -> list[Job]:
        """Return the jobs of a launch, variant by variant and trial by trial.

        With stages, these are the jobs of the first stage, in which each member of the search has a
        folder, such as ``lr=0.1/``. With the values ``chosen`` by the first stage, they are the
        jobs of the second stage. There, cells without a choice train the last member, so that their
        jobs can be counted in advance.
        """
        # Arguments, seeds and folder names equal upstream file domainbed/scripts/sweep.py at
        # b93c22a, so that either tool can resume a sweep of the other.
        is_first_stage = self.has_stages and chosen is None
        trials = self.choosing_trials if is_first_stage else self.trial_seeds
        jobs = []
        for name, cells in itertools.groupby(self.cells(), key=lambda cell: cell.name):
            for trial, cell in itertools.product(trials, cells):
                targets = self.targets(cell.dataset, self.facts[cell.dataset].labels)
                for test_envs, choice in itertools.product(targets, self.choices):
                    for role in self._get_roles(cell, test_envs, chosen):
                        args = self._get_arguments(cell, role, data_dir, trial, test_envs, choice)
                        folder = folder_name(name, {} if role.stage == REPEAT else role.values)
                        path = output / folder / get_folder_name(args)
                        jobs.append(Job(args, path, folder, role))
        return jobs

    def _get_roles(
        self, cell: SweepCell, test_envs: Sequence[int], chosen: Sequence[ChosenValues] | None
    ) -> list[Role]:
        """Return the roles of a cell's jobs: one for each member that they train."""
        members = cell.members
        numbers = list(range(len(members)))
        stage = CHOOSE if self.has_stages else ""
        if stage and len(members) < 2:  # there is nothing to choose
            numbers = []
        if chosen is not None:
            stage = REPEAT
            row = (cell.name, cell.dataset, cell.algorithm)
            numbers = [
                members.index(dict(choice.values))
                for choice in chosen
                if (choice.cell, choice.dataset, choice.algorithm) == row
                and (choice.test_envs is None or {*choice.test_envs} <= {*test_envs})
            ] or [len(members) - 1]

        has_joint_targets = self.holds_out_together(cell.dataset) and len(test_envs) > 1
        return [
            Role(
                cell=cell.name,
                values=members[number],
                member=number,
                stage=stage,
                members=len(members) if stage == REPEAT else 0,
                holds_out_together=has_joint_targets,
            )
            # A role that adds nothing to the arguments is empty.
            if has_joint_targets or members[number] or stage
            else Role()
            for number in dict.fromkeys(numbers)
        ]

    def _get_arguments(
        self,
        cell: SweepCell,
        role: Role,
        data_dir: str,
        trial: int,
        test_envs: Sequence[int],
        choice: int,
    ) -> dict[str, Any]:
        """Return the arguments of a job."""
        hparams = {**cell.hparams, **role.values}
        # Defaults stay out, because every argument is part of a job's identity.
        declared = {
            "steps": cell.steps,
            "checkpoint_freq": cell.checkpoint_freq,
            "hparams": json.dumps(hparams, sort_keys=True) if hparams else None,
        }
        return {
            "data_dir": data_dir,
            "task": TASK,
            "holdout_fraction": self.holdout_fraction,
            "dataset": cell.dataset,
            "algorithm": cell.algorithm,
            "trial_seed": trial,
            **{name: value for name, value in declared.items() if value},
            "test_envs": test_envs,
            "hparams_seed": choice,
            "seed": seed_hash(cell.dataset, cell.algorithm, test_envs, choice, trial),
        }
