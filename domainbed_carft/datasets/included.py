"""The datasets of this package with DomainBed's interface: ImageNet, tasks, and emojis.

In EmojiStyles four teams of artists drew the same things: a small PACS of real drawings.
``assets/README.md`` lists the artists, and describes how the archive was made.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from domainbed_carft.data import (
    benchmarks,
    emoji,
    emoji_styles,
    image_files,
    listing,
    tasks,
    verification,
)
from domainbed_carft.datasets import known_datasets
from domainbed_carft.datasets.requested_clip import get_requested_preprocessing, require_weights
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.images.dataset_setup import set_up
from domainbed_carft.images.image_lists import ImageList, ImagePaths, ListedFolder
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import get_preset, plan_for_job
from domainbed_carft.method import host_lookup
from domainbed_carft.method.hparams import STEPS
from domainbed_carft.suites import imagenet, imagenet_training

HOST_SIZE = 224  # px, the input of the host's networks
EMOJI_SIZE = 48  # px, the resolution of the tiny CLIP; the archive has 64 px, so crops stay sharp


class PackageDataset:
    """Base class of the datasets, to which the plugin adds the base class of the host.

    For algorithms of this package images have the size of their CLIP checkpoint, or of
    ``INPUT_SHAPE`` if it is unknown. For all other algorithms they have ``HOST_SIZE``. Forks that
    pass no ``hparams`` (SWAD, MIRO) resize images themselves, so they get original images.
    """

    N_STEPS = 5001
    CHECKPOINT_FREQ = 300
    N_WORKERS = 8
    ENVIRONMENTS = ["train"]
    INPUT_SHAPE = (3, HOST_SIZE, HOST_SIZE)
    # The images that a job's model expects. Only the included harness sets it, before `__init__`.
    model_input: Preprocessing | None = None
    # True if the harness decodes the files itself, and then normalises for the model.
    HAS_FILES = False
    IS_OF_CHECKOUT = False  # True of the classes that the plugin derives for one

    def __init__(
        self, root: Any, test_envs: Sequence[int] = (), hparams: dict[str, Any] | None = None
    ) -> None:
        if self.IS_OF_CHECKOUT:
            require_weights(hparams)
        values = hparams or {}
        self.environments = list(self.ENVIRONMENTS)
        # A host whose networks read clip_backbone trains its own algorithms on its usual images.
        is_of_package = "context_scale" in values or not host_lookup.has_own_clip()
        trains_clip = "clip_backbone" in values and is_of_package
        plan = plan_for_job(
            values,
            self.model_input or get_requested_preprocessing(hparams),
            default_size=self.INPUT_SHAPE[-1] if trains_clip else HOST_SIZE,
            is_for_model=self.HAS_FILES and self.model_input is not None,
        )
        self.input_shape = (3, plan.size, plan.size)

        self.datasets, report = self.read(root)
        with verification.report_broken_data(report, values):
            self.num_classes = len(self.datasets[0].classes)

        # Hosts that do not pass hparams do not pass test environments either.
        facts = set_up(
            self,
            report,
            plan if hparams is not None else None,
            get_preset(values),
            test_envs=None if hparams is None else test_envs,
            augment=values.get("data_augmentation", True),  # missing in old DomainBed
        )
        self.protocol, self.data_edition = facts.protocol, facts.edition
        if self.IS_OF_CHECKOUT:
            known_datasets.remember(hparams, type(self).__name__, facts)

    def read(self, root: Any) -> tuple[list[Any], verification.DataReport]:
        """Read the dataset below the data folder ``root``.

        Returns:
            The environments without transforms, and the report on the data.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)


class TaskData(PackageDataset):
    """The training split of one of ``tasks.TASKS``, in torchvision's folder below the data."""

    TASK: tasks.Task

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """Return the problems of the data, for the harness before a job starts."""
        task = cls.TASK
        problems = benchmarks.data_dir_problems(root) if root else []
        if problems:
            return problems
        if root and os.path.isdir(os.path.join(root, task.folder)):
            return []
        return [f"{task.name} needs --data_dir, the folder that has {task.folder}; {task.hint}"]

    def read(self, root: Any) -> tuple[list[Any], verification.DataReport]:
        """Read the training split as the only environment. Raises CarftError if it is missing."""
        raise_for(self.data_problems(root))

        training_split = tasks.read_split(self.TASK, root, train=True)
        training_split.root = self.ENVIRONMENTS[0]  # environments are named after their folders
        return [training_split], tasks.make_report(self.TASK, root, [training_split])


TASKS = {name: type(name, (TaskData,), {"TASK": task}) for name, task in tasks.TASKS.items()}


class EmojiStyles(PackageDataset):
    """Ten classes in four styles.

    The images are in the package, and ``root`` is not read. None of their things was in the
    pre-training of the embedded CLIP checkpoint ``tiny`` under the same name. The file
    ``emoji_styles_near_duplicates.csv`` in the assets lists images that look alike.
    """

    N_STEPS = STEPS["EmojiStyles"]
    CHECKPOINT_FREQ = 50
    N_WORKERS = 0  # decoding 64 px is faster than passing an image to another process
    ENVIRONMENTS = ["fluent3d", "line", "noto", "twemoji"]
    INPUT_SHAPE = (3, EMOJI_SIZE, EMOJI_SIZE)

    def read(self, root: Any) -> tuple[list[Any], verification.DataReport]:
        """Read the styles from the unpacked archive of the package, and check them."""
        folder = emoji.environment_folder(type(self).__name__)
        listed = listing.list_environments(folder)
        images = listed.paths()
        environments = [
            ListedFolder(str(folder / name), images[name], loader=_decode_emoji)
            for name in self.ENVIRONMENTS
        ]
        return environments, verification.verify_listing(type(self).__name__, listed)


class EmojiUnseen(EmojiStyles):
    """The same things in styles that were not in the pre-training of `tiny`.

    Each style has the things that its artists drew. Styles of one family form one environment.
    """

    ENVIRONMENTS = emoji_styles.names(emoji_styles.NEVER_SEEN)


class EmojiShift(EmojiStyles):
    """Two thirds of the things in one style, the training set of the suite EmojiShift."""

    ENVIRONMENTS = [emoji.TRAINED_STYLE]


@functools.cache
def _decode_emoji(path: str) -> Image.Image:
    """Decode an image and keep it in memory: all 1,716 take 21 MB, and a job reads each often."""
    return image_files.open_image(path)


class ImageNet(PackageDataset):
    """The training set of ILSVRC2012, with classes in the order of WordNet ids.

    The steps are ten passes in batches of 512. Only the out-split is evaluated, because the
    in-split has a million images.
    """

    N_STEPS = STEPS["ImageNet"]
    CHECKPOINT_FREQ = 2_503
    IMAGES = (imagenet_training.IMAGES,)
    EVALUATED_SPLITS = ("out",)
    HAS_FILES = True

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """Return the problems of the data, for the harness before a job starts."""
        return imagenet_training.training_set_problems(root)

    def read(self, root: Any) -> tuple[list[Any], verification.DataReport]:
        """Read the training set as the only environment. Raises CarftError if it is missing."""
        folder = imagenet_training.find_training_set(root)
        if folder is None:
            raise CarftError(*self.data_problems(root))

        listed = listing.list_classes(folder)
        counts = listed.counts[""]
        raise_for(imagenet_training.folder_problems(folder, list(counts)))
        report = imagenet_training.report(folder, counts, listed.problems, self.IMAGES[0])
        return [ImageList(str(folder), imagenet.class_names(), _list_paths(listed))], report


def _list_paths(listed: listing.Listing) -> ImagePaths:
    """Return the paths and labels of the images, sorted by class folder and name."""
    names = [os.fsencode(path) for path in sorted(listed.images)]
    counts = list(listed.counts[""].values())
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImagePaths(str(listed.root), np.array(names, dtype=np.bytes_), labels)
