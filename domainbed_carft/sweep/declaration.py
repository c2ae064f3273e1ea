"""A declared sweep: its keys, their types and ranges, and the jobs that follow.

Editors read the keys as a JSON schema, ``assets/sweep.schema.json`` (``tools/sweep_schema.py``).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
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

from domainbed_carft.jobs.job import Job, identity, seed_hash
from domainbed_carft.jobs.manifest import Dataset

TASK = "domain_generalization"


def spelled(dataset: str) -> str:
    """A data set's name, or a path in our harness's form: ``./pets`` for ``pets/``."""
    if os.sep not in dataset:
        return dataset
    path = os.path.normpath(dataset)
    return path if os.sep in path else os.path.join(os.curdir, path)


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


_Item = TypeVar("_Item")
_ForAll = TypeVar("_ForAll")
_ForEach = TypeVar("_ForEach")
_Distinct = Annotated[list[_Item], Field(min_length=1), AfterValidator(_require_distinct)]
# Tags in angle brackets are left out of the places in messages.
_OneOrEach = Annotated[
    Annotated[_ForAll, Tag("<all>")] | Annotated[_ForEach, Tag("<each>")],
    Discriminator(lambda value: "<each>" if isinstance(value, dict) else "<all>"),
]
_Count = Annotated[int, Field(ge=1, le=10**9)]
_Index = Annotated[int, Field(ge=0, le=10**9)]
_Dataset = Annotated[str, StringConstraints(min_length=1), AfterValidator(spelled)]
_Datasets = _Distinct[_Dataset]
_Algorithms = _Distinct[Annotated[str, Field(min_length=1)]]
_Setting = Annotated[
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
_Hparams = dict[str, _Setting]
_Environment = Annotated[
    Annotated[_Index, Tag("<index>")] | Annotated[str, Tag("<label>")],
    Discriminator(lambda value: "<index>" if isinstance(value, int) else "<label>"),
]
_Environments = Annotated[list[_Environment], Field(min_length=1)]
_Method = Literal["training-domain", "leave-one-domain-out", "oracle"]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Folder = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$")]


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Seeds(_Mapping):
    """A range of hparams seeds or of trial seeds."""

    first: _Index = Field(default=0, alias="from")
    n: _Count


class Variant(_Mapping):
    """Settings that override all others, for some algorithms or data sets, or for all."""

    algorithms: _Algorithms = []
    datasets: _Datasets = []
    hparams: _Hparams = {}

    def covers(self, dataset: str, algorithm: str) -> bool:
        """Whether the settings are for jobs of this algorithm on this data set."""
        has_dataset = not self.datasets or dataset in self.datasets
        has_algorithm = not self.algorithms or algorithm in self.algorithms
        return has_dataset and has_algorithm


class Override(Variant):
    """A variant's settings, and steps; 0 steps are the default."""

    steps: _Count = 0


_Seeds = _OneOrEach[_Count, Seeds]


class Shape(_Mapping):
    """Which jobs a sweep has: docs/sweeps.md says what each key means."""

    model_config = ConfigDict(title="A sweep of domainbed-carft")

    name: _Name
    description: str = ""
    datasets: _Datasets
    algorithms: _Algorithms
    trials: _Seeds = 3
    hparams_seeds: _Seeds = 1
    steps: _OneOrEach[_Count, dict[_Dataset, _Count]] = {}
    hparams: _Hparams = {}
    overrides: list[Override] = []
    variants: dict[_Folder, Variant] = {}
    grid: dict[str, _Distinct[_Setting]] = {}
    test_environments: _OneOrEach[_Environments, dict[_Dataset, _Environments]] = {}
    selection: _Distinct[_Method] = ["training-domain", "oracle"]
    # None is another job than "domainbed"
    protocol: Literal["domainbed", "clip", "wise-ft", "lipsum-ft"] | None = None
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    compare_with: list[str] = []

    @property
    def choices(self) -> range:
        """The hparams seeds."""
        return _range(self.hparams_seeds)

    @property
    def trial_seeds(self) -> range:
        """The trial seeds."""
        return _range(self.trials)

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
            parts = [name, *(f"{key}={value}" for key, value in point.items())]
            label = ",".join(part for part in parts if part)
            folder = "".join(c if c.isalnum() or c in "._=,+-" else "-" for c in label)

            hparams = {**variant.hparams, **point}
            variants_by_folder[folder] = variant.model_copy(update={"hparams": hparams})
        return variants_by_folder

    def listed_environments(self, dataset: str) -> Sequence[int | str]:
        """The environments to leave out of a data set, as declared; empty if each in turn."""
        declared = self.test_environments
        return declared.get(dataset, ()) if isinstance(declared, dict) else declared

    def hparams_of(self, dataset: str, algorithm: str, setting: Variant) -> dict[str, Any]:
        """The hyperparameters that are set; later settings override earlier ones."""
        merged = {"protocol": self.protocol, **self.hparams}
        for layer in (*self.overrides, setting):
            if layer.covers(dataset, algorithm):
                merged |= layer.hparams

        return {name: value for name, value in merged.items() if value is not None}


class Declaration(Shape):
    """A sweep whose names were checked; ``facts``: data set -> its facts; ``text``: of the file."""

    facts: Mapping[str, Dataset] = {}
    text: str = ""

    def steps_of(self, dataset: str, algorithm: str = "") -> int | None:
        """Declared steps; None leaves them to the data set."""
        for override in reversed(self.overrides):
            if override.steps and override.covers(dataset, algorithm):
                return override.steps
        return self.steps.get(dataset) if isinstance(self.steps, dict) else self.steps

    def jobs(self, data_dir: str, output: Path) -> list[Job]:
        """All jobs, variant by variant, trial by trial, whether or not their folders exist.

        Arguments, seeds and folder names are those of upstream file domainbed/scripts/sweep.py at
        b93c22a, so that either tool can resume the other's folder.
        """
        jobs = []
        for (variant, setting), trial, dataset, algorithm in itertools.product(
            self.settings.items(), self.trial_seeds, self.datasets, self.algorithms
        ):
            if not setting.covers(dataset, algorithm):
                continue

            # In this order, which the command lines keep.
            common: dict[str, Any] = {
                "data_dir": data_dir,
                "task": TASK,
                "holdout_fraction": self.holdout_fraction,
                "dataset": dataset,
                "algorithm": algorithm,
                "trial_seed": trial,
            }
            # Part of the identity only where they are given.
            if steps := self.steps_of(dataset, algorithm):
                common["steps"] = steps
            if hparams := self.hparams_of(dataset, algorithm, setting):
                common["hparams"] = json.dumps(hparams, sort_keys=True)

            for test_envs, choice in itertools.product(self.targets(dataset), self.choices):
                seed = seed_hash(dataset, algorithm, test_envs, choice, trial)
                args = {**common, "test_envs": test_envs, "hparams_seed": choice, "seed": seed}
                jobs.append(Job(args, output / variant / identity(args), variant))
        return jobs

    def targets(self, dataset: str) -> list[list[int]]:
        """Test environments of each job: one at a time, and pairs with one of them if needed.

        Leave-one-domain-out cross-validation needs the pairs that contain the target.
        """
        labels = self.facts[dataset].labels
        if len(labels) == 1:  # a user's own data: there is nothing to leave out
            return [[]]

        declared = self.listed_environments(dataset) or range(len(labels))
        indices = {environment_index(environment, labels) for environment in declared}
        targets = [[index] for index in indices if index is not None]
        if "leave-one-domain-out" in self.selection:
            pairs = itertools.combinations(range(len(labels)), 2)
            targets += [list(pair) for pair in pairs if set(pair) & indices]
        return sorted(targets)


def _range(seeds: int | Seeds) -> range:
    return range(seeds) if isinstance(seeds, int) else range(seeds.first, seeds.first + seeds.n)


def environment_index(environment: str | int, labels: Sequence[str]) -> int | None:
    """The index of an environment that is named by its index or label; None if it is unknown."""
    if isinstance(environment, str):
        return labels.index(environment) if environment in labels else None
    return environment if environment < len(labels) else None
