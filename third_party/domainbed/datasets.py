"""Data sets: a list of environments, each a torch data set of (input, label).

Interface, folder names, transforms and step counts of upstream file domainbed/datasets.py at
b93c22a. A plugin registers a data set by putting its class into this module's globals and its
name into DATASETS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import ImageFile
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from domainbed.lib import names

# Upstream reads cut-off pictures instead of failing on them; the splits count on it.
ImageFile.LOAD_TRUNCATED_IMAGES = True

DATASETS = [
    "Debug28",
    "Debug224",
    "VLCS",
    "PACS",
    "OfficeHome",
    "TerraIncognita",
    "DomainNet",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def get_dataset_class(dataset_name: str) -> type[Any]:
    """Return the class that this module's globals hold under `dataset_name`.

    Raises:
        UnknownNameError: no data set has that name; the message lists the valid ones.
    """
    found = globals().get(dataset_name)
    if not (isinstance(found, type) and hasattr(found, "ENVIRONMENTS")):
        raise names.UnknownNameError(names.unknown_name("Dataset", dataset_name, DATASETS))
    return found


def num_environments(dataset_name: str) -> int:
    """Return how many environments the data set called `dataset_name` has."""
    return len(get_dataset_class(dataset_name).ENVIRONMENTS)


class MultipleDomainDataset:
    """Base class. Subclasses set `datasets`, `input_shape` and `num_classes` when built.

    They are built with (root, test_envs, hparams): the data folder, the indices of the test
    environments, and the run's hyperparameters.
    """

    N_STEPS = 5001
    CHECKPOINT_FREQ = 100
    N_WORKERS = 8
    ENVIRONMENTS: Sequence[str] | None = None
    INPUT_SHAPE: tuple[int, ...] | None = None

    datasets: list[Any]
    input_shape: tuple[int, ...]
    num_classes: int

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.datasets)


class _Noise(MultipleDomainDataset):
    """Three environments of 16 random inputs with random binary labels, for trying things out."""

    ENVIRONMENTS = ["0", "1", "2"]
    INPUT_SHAPE: tuple[int, ...]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        self.input_shape = self.INPUT_SHAPE
        self.num_classes = 2
        size = 16
        self.datasets = [
            TensorDataset(
                torch.randn(size, *self.INPUT_SHAPE), torch.randint(self.num_classes, (size,))
            )
            for _ in self.ENVIRONMENTS
        ]


class Debug28(_Noise):
    """Noise of MNIST's size."""

    INPUT_SHAPE = (3, 28, 28)


class Debug224(_Noise):
    """Noise of ImageNet's size."""

    INPUT_SHAPE = (3, 224, 224)


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    """Pictures under root/environment/class/, environments and classes in sorted order.

    Args:
        root: folder whose sub-folders are the environments.
        test_envs: indices of the environments that are never augmented.
        augment: whether to augment the other environments.
        hparams: the run's hyperparameters.

    Raises:
        FileNotFoundError: `root` is no folder.
        ValueError: there is no environment, or the environments' classes differ, in which case
            one label would mean different things in different environments.
    """

    def __init__(
        self, root: str, test_envs: Sequence[int], augment: bool, hparams: dict[str, Any]
    ) -> None:
        environments = _subfolders(root)
        plain, augmented = _plain_transform(), _augmenting_transform()
        self.datasets = [
            ImageFolder(
                os.path.join(root, environment),
                transform=augmented if augment and index not in test_envs else plain,
            )
            for index, environment in enumerate(environments)
        ]
        _require_same_classes(environments, [folder.classes for folder in self.datasets])
        self.input_shape = (3, 224, 224)
        self.num_classes = len(self.datasets[-1].classes)


def _subfolders(root: str) -> list[str]:
    """Return the sorted names of the folders in `root`, of which there must be one."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"expected a folder with one sub-folder an environment: {root}")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not found:
        raise ValueError(f"expected one sub-folder an environment, found none in {root}")
    return found


def _require_same_classes(environments: Sequence[str], classes: Sequence[Sequence[str]]) -> None:
    """Refuse environments whose class folders are not those of the first."""
    for environment, found in zip(environments, classes, strict=True):
        if found != classes[0]:
            differing = sorted(set(found) ^ set(classes[0]))
            raise ValueError(
                f"environments {environments[0]!r} and {environment!r} must have the same class "
                f"folders; only one of them has: {', '.join(differing)}"
            )


def _plain_transform() -> Any:
    """What test pictures go through: squeezed to 224 x 224, ImageNet's mean and deviation."""
    return transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def _augmenting_transform() -> Any:
    """What training pictures go through when data_augmentation is on."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class _Benchmark(MultipleEnvironmentImageFolder):
    """A published image-folder set: the folder's name under the data folder, and its labels."""

    CHECKPOINT_FREQ = 300
    FOLDER: str

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        if root is None:
            raise ValueError(f"{type(self).__name__} needs a data folder: give --data_dir")
        self.dir = os.path.join(root, self.FOLDER)
        super().__init__(self.dir, test_envs, hparams["data_augmentation"], hparams)


class VLCS(_Benchmark):
    """Caltech101, LabelMe, SUN09, VOC2007; 5 classes."""

    FOLDER = "VLCS"
    ENVIRONMENTS = ["C", "L", "S", "V"]


class PACS(_Benchmark):
    """Art painting, cartoon, photo, sketch; 7 classes."""

    FOLDER = "PACS"
    ENVIRONMENTS = ["A", "C", "P", "S"]


class OfficeHome(_Benchmark):
    """Art, clipart, product, real world; 65 classes."""

    FOLDER = "office_home"
    ENVIRONMENTS = ["A", "C", "P", "R"]


class TerraIncognita(_Benchmark):
    """Four camera-trap locations; 10 classes."""

    FOLDER = "terra_incognita"
    ENVIRONMENTS = ["L100", "L38", "L43", "L46"]


class DomainNet(_Benchmark):
    """Clipart, infograph, painting, quickdraw, real, sketch; 345 classes."""

    FOLDER = "domain_net"
    ENVIRONMENTS = ["clip", "info", "paint", "quick", "real", "sketch"]
    CHECKPOINT_FREQ = 1000
