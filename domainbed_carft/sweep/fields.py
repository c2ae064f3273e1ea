"""The types of a declaration's keys: names, settings, seeds, searches, environments."""

from __future__ import annotations

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
Environment = Annotated[
    Annotated[Index, Tag("<index>")] | Annotated[str, Tag("<label>")],
    Discriminator(lambda value: "<index>" if isinstance(value, int) else "<label>"),
]
Environments = Annotated[list[Environment], Field(min_length=1)]
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
    | Annotated[Environments, Tag("<list>")]
    | Annotated[Annotated[list[Environments], Field(min_length=1)], Tag("<lists>")],
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


class Search(Keys):
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
    """Searched values for some algorithms or data sets; no values: not searched there."""

    values: dict[str, Annotated[list[Setting], AfterValidator(_require_distinct)]]


class Variant(Keys):
    """Settings that override all others, for some algorithms or data sets, or for all.

    ``checkpoint_freq``: steps from one checkpoint to the next; 0 leaves them to the data set.
    """

    algorithms: AlgorithmNames = []
    datasets: DatasetNames = []
    hparams: Hparams = {}
    checkpoint_freq: Count = 0

    def covers(self, dataset: str, algorithm: str) -> bool:
        """Whether the settings are for jobs of this algorithm on this data set."""
        has_dataset = not self.datasets or dataset in self.datasets
        has_algorithm = not self.algorithms or algorithm in self.algorithms
        return has_dataset and has_algorithm


class Override(Variant):
    """A variant's settings, steps, and searched values; 0 steps are the default."""

    steps: Count = 0
    search: SearchOverride | None = None
