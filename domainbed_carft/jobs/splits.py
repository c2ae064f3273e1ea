"""The division of environments into splits, as in domainbed/scripts/train.py at b93c22a."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

# Kinds of splits: for training, model selection, and domain adaptation.
KINDS = ("in", "out", "uda")


class HostFunctions(Protocol):
    """Functions of a host's `domainbed.lib.misc`, which forks can change."""

    def seed_hash(self, *args: Any) -> int:
        """Return a seed for some values, in [0, 2^31)."""

    def split_dataset(self, dataset: Any, n: int, seed: int = 0) -> tuple[Any, Any]:
        """Split a dataset into ``n`` items, drawn with ``seed``, and the remaining ones."""


class EnvironmentSplits(NamedTuple):
    """The splits of one environment, each a map-style dataset."""

    in_split: Any  # for training, unless the environment is a target
    out_split: Any  # for model selection
    uda_split: Any  # for domain adaptation; empty unless the environment is a target


class Split(NamedTuple):
    """A split with its name in the records, such as env0_in."""

    name: str
    environment: int  # index of the environment
    items: Any  # a map-style dataset

    @property
    def kind(self) -> str:
        """The kind of the split, from KINDS."""
        return self.name.rpartition("_")[2]


def split_environments(
    environments: Iterable[Any],
    targets: Collection[int],
    trial_seed: int,
    holdout_fraction: float,
    uda_holdout_fraction: float,
    host_functions: HostFunctions,
) -> list[EnvironmentSplits]:
    """Divide each environment at random by the trial seed and its index.

    Args:
        environments: map-style datasets.
        targets: indices of the test environments.
        trial_seed: trial of the job.
        holdout_fraction: fraction of the items that form the out-split.
        uda_holdout_fraction: fraction of a target's in-split that becomes its uda-split.
        host_functions: the host's `domainbed.lib.misc`.
    """
    splits = []
    for index, environment in enumerate(environments):
        seed = host_functions.seed_hash(trial_seed, index)
        n_out = int(len(environment) * holdout_fraction)
        out_split, in_split = host_functions.split_dataset(environment, n_out, seed)

        uda_split: Any = ()
        if index in targets:
            n_uda = int(len(in_split) * uda_holdout_fraction)
            uda_split, in_split = host_functions.split_dataset(in_split, n_uda, seed)

        splits.append(EnvironmentSplits(in_split, out_split, uda_split))
    return splits


def name_splits(environments: Sequence[EnvironmentSplits]) -> list[Split]:
    """Name all splits in the order of the records: in-splits, out-splits, uda-splits.

    Like upstream, number the non-empty uda-splits from 0, whichever environment they belong to.
    """
    in_splits = [
        Split(f"env{index}_in", index, splits.in_split) for index, splits in enumerate(environments)
    ]
    out_splits = [
        Split(f"env{index}_out", index, splits.out_split)
        for index, splits in enumerate(environments)
    ]

    adapted = [index for index, splits in enumerate(environments) if len(splits.uda_split)]
    uda_splits = [
        Split(f"env{number}_uda", index, environments[index].uda_split)
        for number, index in enumerate(adapted)
    ]
    return [*in_splits, *out_splits, *uda_splits]


def select_evaluated(
    splits: Iterable[Split], kinds: Collection[str], skipped_environments: Collection[int] = ()
) -> list[Split]:
    """Select the splits to evaluate: all ``kinds``, except in-splits of skipped environments."""
    return [
        split
        for split in splits
        if split.kind in kinds
        and not (split.kind == "in" and split.environment in skipped_environments)
    ]
