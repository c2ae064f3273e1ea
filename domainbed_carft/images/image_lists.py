"""Environments as lists of image files with a plan, and shuffled passes through them.

Paths and labels are arrays, because each loader process would copy the objects of a list.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torchvision.datasets import ImageFolder, VisionDataset

from domainbed_carft.data.image_files import ImageDataset, load_image
from domainbed_carft.data.listing import IMAGE_EXTENSIONS
from domainbed_carft.errors import CarftError
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.transforms import get_plan

# Value of the hparam `sampling`; with any other, all images are shuffled for each pass.
WITH_REPLACEMENT = "with-replacement"


@dataclass(frozen=True)
class ImagePaths(Sequence[tuple[str, int]]):
    """Image files with their labels."""

    root: str
    names: np.ndarray  # (N,), bytes: paths below the root
    labels: np.ndarray  # (N,), int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Any) -> Any:
        path = os.path.join(self.root, os.fsdecode(self.names[position]))
        return path, int(self.labels[position])


class ImageList(ImageDataset):
    """A map-style dataset of an environment's images, up to millions, below ``root``."""

    def __init__(self, root: str, classes: Sequence[str], samples: ImagePaths) -> None:
        super().__init__(samples, classes)
        self.root = root
        self.targets = samples.labels


class ListedFolder(ImageFolder):
    """torchvision's ImageFolder of images that are already listed; does not read folders.

    Args:
        root: the folder of the class folders.
        images: paths of the images below ``root``, by class.
        loader: function from a path to a Pillow image.

    Raises:
        CarftError: there are no classes, or a class has no images.
    """

    def __init__(
        self,
        root: str,
        images: Mapping[str, Sequence[str]],
        loader: Callable[[str], Any] = load_image,
    ) -> None:
        fault = f"Couldn't find any class folder in {root}"
        empty = [name for name, paths in images.items() if not paths]
        if empty:
            supported = ", ".join(IMAGE_EXTENSIONS)
            fault = (
                f"Found no valid file for the classes {', '.join(empty)}. Supported extensions "
                f"are: {supported}"
            )
        if empty or not images:
            raise CarftError(
                f"{root} has classes without images; expected one sub-folder of images per class "
                f"({fault})"
            )
        # ImageFolder's constructor would read the folders.
        VisionDataset.__init__(self, root)
        self.loader = loader
        self.extensions = IMAGE_EXTENSIONS
        self.classes = list(images)
        self.class_to_idx = {name: label for label, name in enumerate(images)}
        self.samples = self.imgs = [
            (path, label) for label, paths in enumerate(images.values()) for path in paths
        ]
        self.targets = [label for _, label in self.samples]


def get_file_plan(environment: Any) -> ImagePlan | None:
    """Return the plan by which `loading` can read an environment's files; None for others.

    Others have a changed transform, or read their items in another way.
    """
    is_listed = type(environment) is ImageList or (
        type(environment) is ListedFolder
        and environment.loader is load_image
        and environment.target_transform is None
    )
    return get_plan(environment.transform) if is_listed else None


class Passes:
    """Sampling without replacement: each pass visits every item once, in a new order.

    Args:
        size: number of items.
        seed: determines all batches, together with their numbers.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._cached_order = functools.lru_cache(maxsize=2)(self._shuffle)

    def batch(self, number: int, size: int) -> list[int]:
        """Return the positions of the items in batch ``number`` of ``size`` items."""
        first = number * size
        positions = list[int]()
        while size > len(positions):
            pass_number, start = divmod(first + len(positions), self._size)
            missing = size - len(positions)
            positions += self._cached_order(pass_number)[start : start + missing].tolist()
        return positions

    def _shuffle(self, pass_number: int) -> np.ndarray:
        """Return the positions of all items, (size,), in the order of a pass."""
        return np.random.default_rng((self._seed, pass_number)).permutation(self._size)
