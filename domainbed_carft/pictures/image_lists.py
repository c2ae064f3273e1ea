"""An environment's pictures as they were listed, in folders or in shards; passes through them.

Paths and labels are arrays: each loader process would copy a list's million objects, one by one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torchvision.datasets import ImageFolder

from domainbed_carft.data.listing import PICTURE_EXTENSIONS
from domainbed_carft.data.picture_files import PictureDataset
from domainbed_carft.data.shards import Index

# Values of the hparam `sampling`. With any other, all pictures are shuffled for each pass.
WITH_REPLACEMENT = "with-replacement"
PASSES_BY_SHARD = "passes-by-shard"

WINDOW = 16  # shards that are read from at a time


@dataclass(frozen=True)
class ImagePaths(Sequence[tuple[str, int]]):
    """Files of pictures with their labels."""

    root: str
    names: np.ndarray  # (N,), bytes: paths below the root
    labels: np.ndarray  # (N,), int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Any) -> Any:
        path = os.path.join(self.root, os.fsdecode(self.names[position]))
        return path, int(self.labels[position])


class ImageList(PictureDataset):
    """An environment's pictures, up to millions, below ``root``; a map-style data set."""

    def __init__(self, root: str, classes: Sequence[str], samples: ImagePaths | Index) -> None:
        super().__init__(samples, classes)
        self.root = root
        self.targets = samples.labels


class ListedFolder(ImageFolder):
    """torchvision's ImageFolder of pictures that are listed already: it reads no folder.

    ``pictures``: class -> paths of its pictures below ``root``. Raises FileNotFoundError, as
    ImageFolder does, without any class and for a class without pictures.
    """

    def __init__(self, root: str, pictures: Mapping[str, Sequence[str]], **options: Any) -> None:
        self._listed_pictures = pictures
        super().__init__(root, **options)
        del self._listed_pictures

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """The listed classes, and their labels."""
        classes = list(self._listed_pictures)
        if not classes:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return classes, {name: label for label, name in enumerate(classes)}

    def make_dataset(self, directory: Any, class_to_idx: Mapping[str, int], **_: Any) -> Any:
        """The listed pictures with their labels."""
        empty = [name for name, paths in self._listed_pictures.items() if not paths]
        if empty:
            supported = ", ".join(PICTURE_EXTENSIONS)
            raise FileNotFoundError(
                f"Found no valid file for the classes {', '.join(empty)}. Supported extensions "
                f"are: {supported}"
            )
        return [
            (path, class_to_idx[name])
            for name, paths in self._listed_pictures.items()
            for path in paths
        ]


def shards_of(dataset: Any) -> np.ndarray | None:
    """The number of each item's shard, (N,), also in a subset; None for data without shards."""
    if hasattr(dataset, "indices"):
        shards = shards_of(dataset.dataset)
        return None if shards is None else shards[np.asarray(dataset.indices, dtype=np.int64)]
    samples = getattr(dataset, "samples", None)
    return samples.locations[:, 0] if isinstance(samples, Index) else None


class Passes:
    """Which items the batches of a training have, each item once a pass.

    A batch is a function of ``seed`` and its number. With the ``shards`` of the items, (``size``,),
    each pass takes the shards in another order, WINDOW at a time, and mixes their items.
    """

    def __init__(self, size: int, seed: int, shards: np.ndarray | None = None) -> None:
        self._size = size
        self._seed = seed
        self._shards = shards
        self._cached_order = functools.lru_cache(maxsize=2)(self._order)

    def batch(self, number: int, size: int) -> list[int]:
        """The positions of the items in a batch of ``size``."""
        first = number * size
        positions = list[int]()
        while size > len(positions):
            pass_number, start = divmod(first + len(positions), self._size)
            missing = size - len(positions)
            positions += self._cached_order(pass_number)[start : start + missing].tolist()
        return positions

    def _order(self, pass_number: int) -> np.ndarray:
        """The positions of all items, (size,), in the order of a pass."""
        generator = np.random.default_rng((self._seed, pass_number))
        order = generator.permutation(self._size)
        if self._shards is not None:
            windows = generator.permutation(int(self._shards.max()) + 1) // WINDOW
            order = order[np.argsort(windows[self._shards[order]], kind="stable")]
        return order
