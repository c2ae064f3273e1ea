"""The division of a job's environments into splits, as domainbed/scripts/train.py at b93c22a."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

# The kinds of splits: trained on, for model selection, and for domain adaptation.
KINDS = ("in", "out", "uda")


class HostFunctions(Protocol):
    """What this module needs of a host's `domainbed.lib.misc`, which a fork may have changed."""

    def seed_hash(self, *args: Any) -> int:
        """A seed made from some values, in [0, 2^31)."""

    def split_dataset(self, dataset: Any, n: int, seed: int = 0) -> tuple[Any, Any]:
        """``n`` items of a dataset, drawn with ``seed``, and the others."""


class EnvironmentSplits(NamedTuple):
    """One environment's splits, each a map-style dataset."""

    in_split: Any  # trained on, unless the environment is a target
    out_split: Any  # for model selection
    uda_split: Any  # of a target, for domain adaptation; empty for others


class NamedSplit(NamedTuple):
    """A split by its name in the records, such as env0_in."""

    name: str
    environment: int  # its index
    items: Any  # a map-style dataset

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.name.rpartition("_")[2]


def split_environments(
    environments: Iterable[Any],
    targets: Collection[int],
    trial_seed: int,
    holdout_fraction: float,
    uda_holdout_fraction: float,
    host_functions: HostFunctions,
) -> list[EnvironmentSplits]:
    """Divide each environment, a map-style dataset, by the trial seed and its index.

    ``holdout_fraction`` of its items form the out-split. ``uda_holdout_fraction`` of the in-split
    of each of the ``targets`` forms the uda-split.
    """
    divided = []
    for index, environment in enumerate(environments):
        seed = host_functions.seed_hash(trial_seed, index)
        n_out = int(len(environment) * holdout_fraction)
        out_split, in_split = host_functions.split_dataset(environment, n_out, seed)

        uda_split: Any = ()
        if index in targets:
            n_uda = int(len(in_split) * uda_holdout_fraction)
            uda_split, in_split = host_functions.split_dataset(in_split, n_uda, seed)

        divided.append(EnvironmentSplits(in_split, out_split, uda_split))
    return divided


def name_splits(environments: Sequence[EnvironmentSplits]) -> list[NamedSplit]:
    """All splits in the order of the records: the in-splits, the out-splits, the uda-splits.

    Upstream counts uda-splits that are not empty from 0, whichever environments they belong to.
    """
    in_splits = [
        NamedSplit(f"env{index}_in", index, splits.in_split)
        for index, splits in enumerate(environments)
    ]
    out_splits = [
        NamedSplit(f"env{index}_out", index, splits.out_split)
        for index, splits in enumerate(environments)
    ]

    adapted = [index for index, splits in enumerate(environments) if len(splits.uda_split)]
    uda_splits = [
        NamedSplit(f"env{number}_uda", index, environments[index].uda_split)
        for number, index in enumerate(adapted)
    ]
    return [*in_splits, *out_splits, *uda_splits]


def select_evaluated(
    splits: Iterable[NamedSplit], kinds: Collection[str], skipped_environments: Collection[int] = ()
) -> list[NamedSplit]:
    """The splits that a record has accuracies of: those of ``kinds``, of KINDS.

    The in-splits of ``skipped_environments`` are left out.
    """
    return [
        split
        for split in splits
        if split.kind in kinds
        and not (split.kind == "in" and split.environment in skipped_environments)
    ]
