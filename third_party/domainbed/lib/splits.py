"""How each environment is divided into what is trained on and what is held out.

The division is that of upstream file domainbed/scripts/train.py at b93c22a, to the item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from domainbed.lib import misc


@dataclass(frozen=True)
class Split:
    """Some items of an environment, and their sampling weights if classes are balanced."""

    data: misc.SplitDataset
    weights: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Environment:
    """One environment's splits.

    Attributes:
        in_split: trained on, unless the environment is a test environment; the reported accuracy
            of a test environment is that of its in-split.
        out_split: held out, for model selection.
        uda_split: of a test environment, what domain adaptation may see without labels.
    """

    in_split: Split
    out_split: Split
    uda_split: Split


def split_environments(
    environments: Sequence[Any],
    test_envs: Sequence[int],
    trial_seed: int,
    holdout_fraction: float,
    uda_holdout_fraction: float,
    balanced: bool,
) -> list[Environment]:
    """Divide each environment, with a seed made of the trial and the environment's index.

    Args:
        environments: torch data sets of (input, label).
        test_envs: indices of the environments that are not trained on.
        trial_seed: the trial's number.
        holdout_fraction: share of every environment that is held out.
        uda_holdout_fraction: share of a test environment's in-split that becomes its uda-split.
        balanced: whether to weigh items so that classes are drawn equally often.
    """
    result = []
    for index, environment in enumerate(environments):
        seed = misc.seed_hash(trial_seed, index)
        held_out = int(len(environment) * holdout_fraction)
        out_split, in_split = misc.split_dataset(environment, held_out, seed)
        uda_split = misc.SplitDataset(in_split, [])
        if index in test_envs:
            unlabeled = int(len(in_split) * uda_holdout_fraction)
            uda_split, in_split = misc.split_dataset(in_split, unlabeled, seed)
        weigh = misc.make_weights_for_balanced_classes if balanced else lambda split: None
        parts = (in_split, out_split, uda_split)
        result.append(Environment(*(Split(part, weigh(part)) for part in parts)))
    return result


def named_splits(
    environments: Sequence[Environment], unlabeled: Sequence[Split]
) -> dict[str, misc.SplitDataset]:
    """Return what is evaluated, by the name in the records.

    Upstream counts the uda-splits from 0, whichever environments they belong to.
    """
    named = {f"env{i}_in": e.in_split.data for i, e in enumerate(environments)}
    named |= {f"env{i}_out": e.out_split.data for i, e in enumerate(environments)}
    named |= {f"env{i}_uda": split.data for i, split in enumerate(unlabeled)}
    return named
