"""Datasets: lists of environments, each a torch dataset of (input, label) pairs.

Interface, transforms and step counts of upstream file domainbed/datasets.py at b93c22a. A plugin
puts a class into this module's globals and its name into DATASETS.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageFile
from torch.utils.data import TensorDataset

from domainbed.lib import image_folders
from domainbed.lib.command_line import UnknownNameError
from domainbed_carft import suggestions
from domainbed_carft.data import benchmarks
from domainbed_carft.data.comparison import require_same_classes
from domainbed_carft.data.listing import is_list, list_environments
from domainbed_carft.data.verification import report_broken_data, verify_listing
from domainbed_carft.errors import CarftError, collect_problems, raise_for
from domainbed_carft.images.dataset_facts import DatasetFacts
from domainbed_carft.images.dataset_setup import set_up
from domainbed_carft.images.image_lists import ListedFolder
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import get_preset, plan_for_job
from domainbed_carft.jobs import splits

# Upstream reads truncated images instead of failing; its splits contain them.
ImageFile.LOAD_TRUNCATED_IMAGES = True

DATASETS = "Debug28 Debug224 VLCS PACS OfficeHome TerraIncognita DomainNet SVIRO".split()

# Upstream's datasets at b93c22a that this implementation lacks.
NOT_INCLUDED = (
    "ColoredMNIST RotatedMNIST WILDSCamelyon WILDSFMoW SpawriousO2O_easy SpawriousO2O_medium "
    "SpawriousO2O_hard SpawriousM2M_easy SpawriousM2M_medium SpawriousM2M_hard"
).split()


def get_dataset_class(dataset_name: str) -> type[Any]:
    """Return the class that this module's globals hold under a name, or a new class for a path.

    A class that does not derive from MultipleDomainDataset receives it as a further base, and so
    its hooks.

    Args:
        dataset_name: name of a dataset, or path of a folder environment/class/image or of a CSV
            file that lists images.

    Raises:
        UnknownNameError: there is no such dataset; the message lists the valid names.
        CarftError: the folder or file is missing or has no environments.
    """
    dataset_class: Any = globals().get(dataset_name)
    is_public_class = isinstance(dataset_class, type) and not dataset_name.startswith("_")
    if is_public_class and hasattr(dataset_class, "ENVIRONMENTS"):
        has_hooks = issubclass(dataset_class, MultipleDomainDataset)
        return dataset_class if has_hooks else _with_hooks(dataset_class)

    if os.sep in dataset_name or os.path.isdir(dataset_name) or is_list(dataset_name):
        labels = image_folders.environment_names(dataset_name)
        return type(dataset_name, (OwnData,), {"FOLDER": dataset_name, "ENVIRONMENTS": labels})
    if dataset_name in NOT_INCLUDED:
        raise UnknownNameError(
            f"dataset {dataset_name} is not included; use another one ({', '.join(DATASETS)}, "
            "or a folder environment/class/image), or a checkout of facebookresearch/DomainBed"
        )
    raise UnknownNameError(suggestions.unknown("dataset", dataset_name, DATASETS))


@functools.cache
def _with_hooks(dataset_class: type[Any]) -> type[Any]:
    """Derive a class that has MultipleDomainDataset as a further base."""
    content = {"__module__": dataset_class.__module__, "__doc__": dataset_class.__doc__}
    return type(dataset_class.__name__, (dataset_class, MultipleDomainDataset), content)


def num_environments(dataset_name: str) -> int:
    """Return the number of environments of a dataset.

    Raises:
        CarftError: the dataset is unknown, or its class does not list its environments.
    """
    labels = get_dataset_class(dataset_name).ENVIRONMENTS
    if labels is None:
        raise CarftError(
            f"the dataset class {dataset_name} has no ENVIRONMENTS; set them to the list of their "
            "names"
        )
    return len(labels)


class MultipleDomainDataset:
    """Base class of datasets. Subclasses are built with (root, test_envs, hparams).

    Subclasses set `datasets`, `input_shape` and `num_classes`. From EVALUATED_SPLITS on, the
    attributes and `data_problems` are hooks.

    Attributes:
        N_STEPS: default number of training steps.
        CHECKPOINT_FREQ: default number of steps between checkpoints.
        N_WORKERS: default number of loader processes.
        ENVIRONMENTS: names of the environments.
        INPUT_SHAPE: shape of the inputs, by upstream's name.
        datasets: the environments, each a torch dataset of (input, label) pairs.
        input_shape: shape of an input, (C, H, W).
        num_classes: number of classes.
        model_input: the images that a job's model expects; None for upstream's.
        dataset_facts: facts for algorithms that take them; None for a dataset without facts.
        EVALUATED_SPLITS: the kinds of splits, "in" and "out", whose accuracies are recorded.
        data_edition: the copy of the data, for the records; "" is not recorded.
        protocol: the protocol of the transforms, for the records; "" is not recorded.
    """

    N_STEPS = 5001
    CHECKPOINT_FREQ = 100
    N_WORKERS = 8
    ENVIRONMENTS: Sequence[str] | None = None
    INPUT_SHAPE: tuple[int, ...] | None = None

    datasets: list[Any]
    input_shape: tuple[int, ...]
    num_classes: int
    model_input: Preprocessing | None = None
    dataset_facts: DatasetFacts | None = None

    EVALUATED_SPLITS: Sequence[str] = splits.KINDS
    data_edition = ""
    protocol = ""

    @classmethod
    def data_problems(cls, root: str | None) -> Sequence[str]:
        """Return the problems of the data, before anything is loaded.

        Args:
            root: a user's `--data_dir`.

        Returns:
            The problems. If there are any, `train` and `sweep` refuse the job.
        """
        return []

    @classmethod
    def for_job(
        cls,
        root: str | None,
        test_envs: Sequence[int],
        hparams: dict[str, Any],
        model_input: Preprocessing | None,
    ) -> Any:
        """Build the dataset for a job's model, which upstream's constructor does not know.

        Args:
            root: the folder that contains the dataset's folder.
            test_envs: numbers of the test environments.
            hparams: the job's hyperparameters.
            model_input: the images that the model expects; None for upstream's.
        """
        dataset = cls.__new__(cls)
        dataset.model_input = model_input
        cls.__init__(dataset, root, test_envs, hparams)  # type: ignore[call-arg]
        return dataset

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.datasets)


class _Noise(MultipleDomainDataset):
    """Three environments of 16 random inputs with random binary labels, for tests."""

    ENVIRONMENTS: Sequence[str] = ["0", "1", "2"]
    INPUT_SHAPE: tuple[int, ...]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        self.input_shape = self.INPUT_SHAPE
        self.num_classes = 2
        self.datasets = [
            TensorDataset(torch.randn(16, *self.INPUT_SHAPE), torch.randint(2, (16,)))
            for _ in self.ENVIRONMENTS
        ]


class Debug28(_Noise):
    """Noise of MNIST's size."""

    INPUT_SHAPE = (3, 28, 28)


class Debug224(_Noise):
    """Noise of ImageNet's size."""

    INPUT_SHAPE = (3, 224, 224)


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    """Images under root/environment/class/, with environments and classes in sorted order.

    Args:
        root: the folder.
        test_envs: numbers of the test environments.
        augment: if True, all environments except the test environments are augmented.
        hparams: the job's hyperparameters, of which `protocol` and `preprocessing` choose the
            transforms.

    Raises:
        CarftError: there are no images, or the environments have different classes, which would
            make the labels ambiguous.
    """

    def __init__(
        self, root: str, test_envs: Sequence[int], augment: bool, hparams: dict[str, Any]
    ) -> None:
        environments = image_folders.subfolder_names(root)
        listing = list_environments(Path(root))
        plan = plan_for_job(hparams, self.model_input, is_for_model=True)
        report = verify_listing(type(self).__name__, listing)
        with report_broken_data(report, hparams):
            self.datasets = [
                ListedFolder(os.path.join(root, name), images)
                for name, images in listing.paths().items()
            ]
            require_same_classes(listing.counts)

        self.num_classes = len(self.datasets[-1].classes)
        facts = set_up(
            self,
            report,
            plan,
            get_preset(hparams),
            test_envs=test_envs,
            augment=augment,
            names=environments,
        )
        self.protocol, self.data_edition = facts.protocol, facts.edition


class _Benchmark(MultipleEnvironmentImageFolder):
    """A published dataset, with the folder and labels of `domainbed_carft.data.benchmarks`."""

    CHECKPOINT_FREQ = 300
    FOLDER: str

    def __init_subclass__(cls) -> None:
        benchmark = benchmarks.BENCHMARKS.get(cls.__name__)
        if benchmark is not None and "FOLDER" not in vars(cls):
            cls.FOLDER = benchmark.folder
            cls.ENVIRONMENTS = [environment.label for environment in benchmark.environments]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        raise_for(self.data_problems(root))
        self.dir = os.path.join(root or "", self.FOLDER)
        super().__init__(self.dir, test_envs, hparams["data_augmentation"], hparams)

    @classmethod
    def data_problems(cls, root: str | None) -> list[str]:
        """Return a problem if the dataset's folder is missing below `root`; no image is read."""
        if root is None:
            return [f"{cls.__name__} needs --data_dir, the folder that contains {cls.FOLDER}"]
        if absent := benchmarks.data_dir_problems(root):
            return [*absent]
        expected = os.path.join(root, cls.FOLDER)
        if os.path.isdir(expected):
            return []
        return [f"{expected} is missing; pass the --data_dir that contains {cls.FOLDER}"]


class OwnData(_Benchmark):
    """A user's own folder or list of images; `get_dataset_class` derives a class for each."""

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: dict[str, Any]) -> None:
        super().__init__(None, test_envs, hparams)

    @classmethod
    def data_problems(cls, root: str | None) -> list[str]:
        """Return the problems of the environments' and classes' names; no image is read."""
        return collect_problems(image_folders.require_valid_folders, cls.FOLDER, cls.ENVIRONMENTS)


class VLCS(_Benchmark):
    """Caltech101, LabelMe, SUN09, VOC2007; 5 classes."""


class PACS(_Benchmark):
    """Art painting, cartoon, photo, sketch; 7 classes."""


class OfficeHome(_Benchmark):
    """Art, clipart, product, real world; 65 classes."""


class TerraIncognita(_Benchmark):
    """Four camera-trap locations; 10 classes."""


class DomainNet(_Benchmark):
    """Clipart, infograph, painting, quickdraw, real, sketch; 345 classes."""

    CHECKPOINT_FREQ = 1000


class SVIRO(_Benchmark):
    """Rear seats of ten car models."""

    FOLDER = "sviro"
    ENVIRONMENTS = "aclass escape hilux i3 lexus tesla tiguan tucson x5 zoe".split()
