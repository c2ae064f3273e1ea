"""An environment of any size, in folders or in shards, and the order of a pass through it.

Places and labels are arrays: each loader process would copy a list's million objects, one by one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domainbed_carft.data.shards import Index
from domainbed_carft.data.tasks import PictureDataset

# Of the hparam `sampling`; with neither, each picture comes once before any comes again.
WITH_REPLACEMENT, PASSES_BY_SHARD = "with-replacement", "passes-by-shard"

WINDOW = 16  # shards that are read from at a time


@dataclass(frozen=True)
class ImagePaths(Sequence[tuple[str, int]]):
    """The files ``names``, (N,), bytes, below ``root``, with their ``labels``, (N,)."""

    root: str
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Any) -> Any:
        path = os.path.join(self.root, os.fsdecode(self.names[position]))
        return path, int(self.labels[position])


class ImageList(PictureDataset):
    """Pictures that may be a million, below ``root``."""

    def __init__(self, root: str, classes: Sequence[str], samples: ImagePaths | Index) -> None:
        super().__init__(samples, classes)
        self.root, self.targets = root, samples.labels


def shards_of(dataset: Any) -> np.ndarray | None:
    """The number of the shard of each item, (N,), also of a subset; None without shards."""
    if hasattr(dataset, "indices"):
        whole = shards_of(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    samples = getattr(dataset, "samples", None)
    return samples.locations[:, 0] if isinstance(samples, Index) else None


class Passes:
    """Which items the batches of a training have, each item once a pass.

    A batch is a function of ``seed`` and its number. With the ``shards`` of the items, (``size``,),
    a pass takes the shards in an order of its own, WINDOW at a time, and mixes their items.
    """

    def __init__(self, size: int, seed: int, shards: np.ndarray | None = None) -> None:
        self._size, self._seed, self._shards = size, seed, shards
        self._order = functools.lru_cache(maxsize=2)(self._ordered)

    def batch(self, number: int, size: int) -> list[int]:
        """The positions of the items in a batch."""
        first, found = number * size, list[int]()
        while size > len(found):
            turn, place = divmod(first + len(found), self._size)
            found += self._order(turn)[place : place + size - len(found)].tolist()
        return found

    def _ordered(self, turn: int) -> np.ndarray:
        random = np.random.default_rng((self._seed, turn))
        order = random.permutation(self._size)
        if self._shards is not None:
            windows = random.permutation(int(self._shards.max()) + 1) // WINDOW
            order = order[np.argsort(windows[self._shards[order]], kind="stable")]
        return order
