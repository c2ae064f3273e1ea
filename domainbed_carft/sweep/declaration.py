"""A declared sweep: its keys, what follows from them, and its jobs.

Editors read the keys as a JSON schema, ``assets/sweep.schema.json`` (``tools/site/reference.py``).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from domainbed_carft.jobs.job import CHOOSE, REPEAT, Job, Role, get_folder_name, seed_hash
from domainbed_carft.jobs.manifest import ChosenValues, Dataset

TASK = "domain_generalization"
LEAVE_ONE_OUT = "leave-one-domain-out"
# Selection methods that look at the target, so that no search may choose by them.
_METHODS_WITH_TARGET = ("oracle",)

Values = Mapping[str, Any]

# A ValueError of a validator says what is expected: see files/validation.py.


def _require_setting(value: Any) -> Any:
    is_words = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if is_words or isinstance(value, (str, int, float)):
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
# Tags in angle brackets are left out of the places in messages.
OneOrEach = Annotated[
    Annotated[ForAll, Tag("<all>")] | Annotated[ForEach, Tag("<each>")],
    Discriminator(lambda value: "<each>" if isinstance(value, dict) else "<all>"),
]
Count = Annotated[int, Field(ge=1, le=10**9)]
Index = Annotated[int, Field(ge=0, le=10**9)]
DatasetName = Annotated[str, StringConstraints(min_length=1), AfterValidator(shortest_path)]
DatasetNames = Distinct[DatasetName]
AlgorithmNames = Distinct[Annotated[str, Field(min_length=1)]]
Setting = Annotated[
    Any,
    BeforeValidator(_require_setting),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["string", "number", "boolean"]},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]
Hparams = dict[str, Setting]
EnvironmentReference = Annotated[
    Annotated[Index, Tag("<index>")] | Annotated[str, Tag("<label>")],
    Discriminator(lambda value: "<index>" if isinstance(value, int) else "<label>"),
]
EnvironmentReferences = Annotated[list[EnvironmentReference], Field(min_length=1)]
SINGLE_SOURCE = "single-source"


def _division_tag(value: Any) -> str:
    """Which of the forms of a division a value has."""
    if value == SINGLE_SOURCE:
        return "<word>"
    has_lists = isinstance(value, list) and any(isinstance(item, list) for item in value)
    return "<lists>" if has_lists else "<list>"


# The environments to leave out: one at a time, or several together.
Division = Annotated[
    Annotated[Literal["single-source"], Tag("<word>")]
    | Annotated[EnvironmentReferences, Tag("<list>")]
    | Annotated[Annotated[list[EnvironmentReferences], Field(min_length=1)], Tag("<lists>")],
    Discriminator(_division_tag),
]
MethodName = Literal["training-domain", "leave-one-domain-out", "oracle"]
SweepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$")]


class Keys(BaseModel):
    """A mapping of a declaration: strict, frozen, and without other keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Seeds(Keys):
    """A range of hparams seeds or of trial seeds."""

    first: Index = Field(default=0, alias="from")
    n: Count


SeedRange = OneOrEach[Count, Seeds]


def seeds_of(declared: int | Seeds) -> range:
    """The seeds of a range: from 0 if only their number is declared."""
    if isinstance(declared, int):
        return range(declared)
    return range(declared.first, declared.first + declared.n)


class Trials(Keys):
    """The trials of one stage of a search."""

    trials: SeedRange

    @property
    def seeds(self) -> range:
        """The trial seeds."""
        return seeds_of(self.trials)


class DeclaredSearch(Keys):
    """Hyperparameters that are chosen by validation: listed values, draws, or both.

    With ``choose_on`` the search has two stages: all members are trained on these trials, and the
    chosen one on those of ``repeat_on``.
    """

    values: dict[str, Distinct[Setting]] = {}
    draws: Count | None = None
    choose_on: Trials | None = None
    repeat_on: Trials | None = None
    choose_by: Literal["dataset", "target"] = "dataset"


class SearchOverride(Keys):
    """Searched values for some algorithms or datasets; no values: not searched there."""

    values: dict[str, Annotated[list[Setting], AfterValidator(_require_distinct)]]


class Variant(Keys):
    """Settings that override all others, for some algorithms or datasets, or for all.

    ``checkpoint_freq``: steps from one checkpoint to the next; 0 leaves them to the dataset.
    """

    algorithms: AlgorithmNames = []
    datasets: DatasetNames = []
    hparams: Hparams = {}
    checkpoint_freq: Count = 0

    def covers(self, dataset: str, algorithm: str) -> bool:
        """Whether the settings are for jobs of this algorithm on this dataset."""
        has_dataset = not self.datasets or dataset in self.datasets
        has_algorithm = not self.algorithms or algorithm in self.algorithms
        return has_dataset and has_algorithm


class Override(Variant):
    """A variant's settings, steps, and searched values; 0 steps are the default."""

    steps: Count = 0
    search: SearchOverride | None = None


@dataclass(frozen=True)
class SweepCell:
    """What has its own row in a table: a variant's jobs on one dataset, of one algorithm.

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
    search: DeclaredSearch | None = None
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

    def cells(self) -> Iterator[SweepCell]:
        """All cells, variant by variant."""
        for (name, variant), dataset, algorithm in itertools.product(
            self.settings.items(), self.datasets, self.algorithms
        ):
            if variant.covers(dataset, algorithm):
                yield SweepCell(name, variant, dataset, algorithm)

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
        """The environments to leave out of a dataset, as declared; empty if each in turn."""
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
        """Declared steps; None leaves them to the dataset."""
        for override in reversed(self.overrides):
            if override.steps and override.covers(dataset, algorithm):
                return override.steps
        return self.steps.get(dataset) if isinstance(self.steps, dict) else self.steps

    def leaves_out_together(self, dataset: str) -> bool:
        """Whether each job leaves several environments out that are all targets."""
        division = self.division_of(dataset)
        return division == SINGLE_SOURCE or any(isinstance(item, list) for item in division)

    def targets(self, dataset: str, labels: Sequence[str]) -> list[list[int]]:
        """Test environments of each job on a dataset with these environments, sorted.

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


# The roles that jobs of a cell with these test environments have.
_RolesOf = Callable[[SweepCell, Sequence[int]], list[Role]]


class Declaration(Shape):
    """A sweep whose names were checked; ``facts``: dataset -> its facts; ``text``: of the file."""

    facts: Mapping[str, Dataset] = {}
    text: str = ""

    def checkpoint_freq_of(self, cell: SweepCell) -> int:
        """Declared steps from one checkpoint to the next; 0 leaves them to the dataset."""
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

        def roles_of_members(cell: SweepCell, test_envs: Sequence[int]) -> list[Role]:
            members = self.members(cell.dataset, cell.algorithm)
            if self.has_stages and len(members) < 2:  # there is nothing to choose
                return []
            return [Role(cell.name, values, number, stage) for number, values in enumerate(members)]

        return self._jobs(trials, roles_of_members, data_dir, output)

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

        def roles_of_chosen_values(cell: SweepCell, test_envs: Sequence[int]) -> list[Role]:
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

        return self._jobs(self.trial_seeds, roles_of_chosen_values, data_dir, output)

    def targets(self, dataset: str, labels: Sequence[str] | None = None) -> list[list[int]]:
        """As of `Shape`, of the dataset's own environments."""
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

            cell = SweepCell(name, variant, dataset, algorithm)
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
        self, cell: SweepCell, values: Mapping[str, Any], data_dir: str, trial: int
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

    def _job(self, args: Mapping[str, Any], cell: SweepCell, role: Role, output: Path) -> Job:
        """A job in its folder; without a role that says more than its arguments."""
        folder = cell.name if role.stage == REPEAT else folder_name(cell.name, role.values)
        together = self.leaves_out_together(cell.dataset) and len(args["test_envs"]) > 1
        if together or role.values or role.stage:
            role = replace(role, leaves_out_together=together)
        else:
            role = Role()
        return Job(args, output / folder / get_folder_name(args), folder, role)
