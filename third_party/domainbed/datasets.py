"""Data sets: a list of environments, each a torch data set of (input, label).

Interface, folder names, transforms and step counts of upstream file domainbed/datasets.py at
b93c22a. A plugin registers a data set by putting its class into this module's globals and its
name into DATASETS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import TensorDataset

from domainbed.lib import errors, image_folders, mnist, names, own_data

DATASETS = [
    "Debug28",
    "Debug224",
    "ColoredMNIST",
    "RotatedMNIST",
    "VLCS",
    "PACS",
    "OfficeHome",
    "TerraIncognita",
    "DomainNet",
    "SVIRO",
]

# What plugins know about data: functions of the folder of each data set's environments by its name,
# of the algorithms' names, and of the hyperparameters that the user set. They return sentences that
# say why nothing may be trained.
DATA_CHECKS: list[
    Callable[[Mapping[str, str], Sequence[str], Mapping[str, Any]], Sequence[str]]
] = []

# Data set to a function that downloads it into a data folder; plugins put them here, for
# domainbed.scripts.download.
DOWNLOADERS: dict[str, Callable[[str], object]] = {}


def get_dataset_class(dataset_name: str) -> type[Any]:
    """Return the class that this module's globals hold under `dataset_name`.

    For a user's own data (`lib.own_data`) it is made for that folder.

    Raises:
        UnknownNameError: no data set has that name, and the message lists the valid ones; or
            upstream has one and we do not, and the message says what to do instead.
        UsageError: it is the user's own data, and there is no such folder, or no domain in it.
    """
    found = globals().get(dataset_name)
    declares = hasattr(found, "ENVIRONMENTS") or dataset_name in DATASETS
    taken = isinstance(found, type) and declares and not dataset_name.startswith("_")
    folder = own_data.folder_of(dataset_name, taken)
    if folder is not None:
        return _own(dataset_name, folder)
    if taken:
        return found
    if dataset_name in names.DATASETS_NOT_INCLUDED:
        raise names.UnknownNameError(names.dataset_not_included(dataset_name))
    raise names.UnknownNameError(names.unknown_name("Dataset", dataset_name, DATASETS))


def num_environments(dataset_name: str) -> int:
    """Return how many environments the data set called `dataset_name` has.

    Raises:
        UnknownNameError: no data set has that name.
        UsageError: its class does not say what its environments are.
    """
    labels = getattr(get_dataset_class(dataset_name), "ENVIRONMENTS", None)
    if labels is None:
        raise errors.UsageError(
            [
                f"Dataset {dataset_name} does not say what its environments are: its class needs "
                "ENVIRONMENTS, a list of their names in the order in which it holds them."
            ]
        )
    return len(labels)


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

    @classmethod
    def data_problems(cls, root: str | None) -> list[str]:
        """Say, without reading any, which data is not where it has to be for `root`."""
        return []

    @classmethod
    def picture_folder(cls, root: str | None) -> str | None:
        """Return the folder of the environments' folders; None for data of another kind."""
        return None

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.datasets)


def _require_data(dataset_class: type[MultipleDomainDataset], root: str | None) -> None:
    """Raise a UsageError if the data is not where `root` says it is."""
    problems = dataset_class.data_problems(root)
    if problems:
        raise errors.UsageError(problems)


def _no_root(dataset_class: type[MultipleDomainDataset], what: str) -> str:
    return f"{dataset_class.__name__} needs a data folder: give --data_dir, {what}."


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


class MultipleEnvironmentMNIST(MultipleDomainDataset):
    """MNIST's digits, shuffled, dealt out to the environments in turn, and changed in each.

    Args:
        root: folder with MNIST/raw.
        environments: for each environment what `dataset_transform` is told of it.
        dataset_transform: (images, labels, environment) to a data set.
        input_shape: shape of one input.
        num_classes: number of labels.

    Raises:
        Failure: the digits' files could not be downloaded.
        UsageError: there is no folder for them, or one is damaged.
    """

    def __init__(
        self,
        root: str | None,
        environments: Sequence[Any],
        dataset_transform: Callable[[torch.Tensor, torch.Tensor, Any], Any],
        input_shape: tuple[int, ...],
        num_classes: int,
    ) -> None:
        _require_data(type(self), root)
        images, labels = mnist.read(str(root))
        order = torch.randperm(len(images))
        count = len(environments)
        dealt = [order[first::count] for first in range(count)]
        self.datasets = [
            dataset_transform(images[hand], labels[hand], environment)
            for hand, environment in zip(dealt, environments, strict=True)
        ]
        self.input_shape = input_shape
        self.num_classes = num_classes

    @classmethod
    def data_problems(cls, root: str | None) -> list[str]:
        return [] if root is not None else [_no_root(cls, "the folder that holds MNIST/raw")]


class ColoredMNIST(MultipleEnvironmentMNIST):
    """Digits below 5 against the others, with a colour that mostly tells, until it misleads."""

    ENVIRONMENTS = ["+90%", "+80%", "-90%"]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        super().__init__(root, [0.1, 0.2, 0.9], mnist.coloured, (2, 28, 28), 2)


class RotatedMNIST(MultipleEnvironmentMNIST):
    """Ten digits, in each environment turned by another angle."""

    ENVIRONMENTS = ["0", "15", "30", "45", "60", "75"]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        angles = [int(label) for label in self.ENVIRONMENTS]
        super().__init__(root, angles, mnist.rotated, (1, 28, 28), 10)


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    """Pictures under root/environment/class/, environments and classes in sorted order.

    Args:
        root: folder whose sub-folders are the environments.
        test_envs: indices of the environments that are never augmented.
        augment: whether to augment the other environments.
        hparams: the run's hyperparameters.

    Raises:
        UsageError: `root` is no folder, there is no environment or one without pictures, or the
            environments' classes differ, in which case one label would mean different things in
            different environments.
    """

    def __init__(
        self, root: str, test_envs: Sequence[int], augment: bool, hparams: dict[str, Any]
    ) -> None:
        environments = image_folders.subfolders(root)
        plain, augmented = image_folders.plain_transform(), image_folders.augmenting_transform()
        self.datasets = [
            image_folders.read(
                os.path.join(root, environment),
                augmented if augment and index not in test_envs else plain,
            )
            for index, environment in enumerate(environments)
        ]
        image_folders.require_same_classes(
            environments, [folder.classes for folder in self.datasets]
        )
        self.input_shape = (3, 224, 224)
        self.num_classes = len(self.datasets[-1].classes)


class _Benchmark(MultipleEnvironmentImageFolder):
    """A published image-folder set: the folder's name under the data folder, and its labels."""

    CHECKPOINT_FREQ = 300
    FOLDER: str

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        _require_data(type(self), root)
        self.dir = os.path.join(str(root), self.FOLDER)
        super().__init__(self.dir, test_envs, hparams["data_augmentation"], hparams)

    @classmethod
    def data_problems(cls, root: str | None) -> list[str]:
        if root is None:
            return [_no_root(cls, f"the folder that holds {cls.FOLDER}")]
        expected = os.path.join(root, cls.FOLDER)
        if os.path.isdir(expected):
            return []
        return [
            f"{cls.__name__} is not there: expected the folder {expected} with one sub-folder an "
            f"environment. Is --data_dir {root} the folder that holds it?"
        ]

    @classmethod
    def picture_folder(cls, root: str | None) -> str | None:
        return None if root is None else os.path.join(root, cls.FOLDER)


class OwnData(MultipleEnvironmentImageFolder):
    """A user's own folder domain/class; made for each by `get_dataset_class`."""

    CHECKPOINT_FREQ = 300
    FOLDER: str

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        super().__init__(self.FOLDER, test_envs, hparams["data_augmentation"], hparams)

    @classmethod
    def data_problems(cls, root: str | None) -> list[str]:
        return own_data.problems(cls.FOLDER)

    @classmethod
    def picture_folder(cls, root: str | None) -> str | None:
        return cls.FOLDER


def _own(name: str, folder: str) -> type[OwnData]:
    domains = own_data.environments(folder)
    return type(name, (OwnData,), {"FOLDER": folder, "ENVIRONMENTS": domains})


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


class SVIRO(_Benchmark):
    """The rear seats of ten car models."""

    FOLDER = "sviro"
    ENVIRONMENTS = [
        *("aclass", "escape", "hilux", "i3", "lexus"),
        *("tesla", "tiguan", "tucson", "x5", "zoe"),
    ]
