"""The datasets of this package under the interface of DomainBed's: ImageNet, tasks, and emojis.

In EmojiStyles four teams of artists drew the same things: a small PACS of real drawings.
``assets/README.md`` says who drew them and how the archive was made.
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
    verify,
)
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.images.image_lists import ImageList, ImagePaths, ListedFolder
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.plugin.image_folders import (
    hand_on_facts,
    requested_preprocessing,
    require_weights,
    warn_of_broken_data,
)
from domainbed_carft.suites import imagenet, imagenet_training

HOST_SIZE = 224  # px; the input of the host's own networks
EMOJI_SIZE = 48  # px, the resolution of the tiny CLIP; the archive has 64 px, so crops stay sharp


class PackageDataset:
    """The base class; the plugin adds the host's own, whose module differs between forks.

    For our algorithms images are as large as their CLIP wants, or as ``INPUT_SHAPE`` says if that
    is not known; for others they have ``HOST_SIZE``. Forks that pass no ``hparams`` (SWAD, MIRO)
    resize images themselves and get them as they are.
    """

    N_STEPS = 5001
    CHECKPOINT_FREQ = 300
    N_WORKERS = 8
    ENVIRONMENTS = ["train"]
    INPUT_SHAPE = (3, HOST_SIZE, HOST_SIZE)

    def __init__(
        self, root: Any, test_envs: Sequence[int] = (), hparams: dict[str, Any] | None = None
    ) -> None:
        self.protocol = hparams.get("protocol", "domainbed") if hparams else "domainbed"
        self.environments = list(self.ENVIRONMENTS)
        require_weights(hparams)
        self.preprocessing = requested_preprocessing(hparams)
        size = self._image_size(for_a_clip="clip_backbone" in (hparams or {}))
        self.input_shape = (3, size, size)

        self.datasets, report = self.read(root)
        self.num_classes = len(self.datasets[0].classes)
        warn_of_broken_data(report, is_for_us="clip_backbone" in (hparams or {}))

        if hparams is None:
            # Such hosts pass no test environments either.
            hand_on_facts(self, report, self.protocol, hparams, test_envs=None)
            return

        augment_training = hparams.get("data_augmentation", True)  # younger than DomainBed
        for index, environment in enumerate(self.datasets):
            augment = augment_training and index not in test_envs
            plan = plan_for(self.protocol, size, augment, self.preprocessing)
            environment.transform = PlanTransform(plan)
        hand_on_facts(self, report, self.protocol, hparams, test_envs)

    def _image_size(self, for_a_clip: bool) -> int:
        """Pixels a side."""
        if self.preprocessing:
            return self.preprocessing.resolution
        return self.INPUT_SHAPE[-1] if for_a_clip else HOST_SIZE

    def read(self, root: Any) -> tuple[list[Any], verify.DataReport]:
        """The environments below the data folder ``root``, not transformed, and their verdict."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)


class TaskData(PackageDataset):
    """The training split of one of ``tasks.TASKS``, as torchvision has it below the data folder."""

    TASK: tasks.Task

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """For our harness: what is wrong with the data, before a job starts."""
        task = cls.TASK
        problems = benchmarks.data_dir_problems(root) if root else []
        if problems:
            return problems
        if root and os.path.isdir(os.path.join(root, task.folder)):
            return []
        return [f"{task.name} needs --data_dir, the folder that has {task.folder}; {task.hint}"]

    def read(self, root: Any) -> tuple[list[Any], verify.DataReport]:
        """The training split as the only environment; CarftError if it is missing."""
        raise_for(self.data_problems(root))

        training_split = tasks.read_split(self.TASK, root, train=True)
        training_split.root = self.ENVIRONMENTS[0]  # an environment is called after its folder
        return [training_split], tasks.make_report(self.TASK, root, [training_split])


TASKS = {name: type(name, (TaskData,), {"TASK": task}) for name, task in tasks.TASKS.items()}


class EmojiStyles(PackageDataset):
    """Ten classes in four styles, 48 px, or as many as the CLIP of one of our algorithms wants.

    ``root`` is not read: the images are in the package. Their things have other names than those
    that the embedded ``tiny`` CLIP was pre-trained on; ``emoji_styles_near_duplicates.csv`` in the
    assets lists those that look alike.
    """

    N_STEPS = 101
    CHECKPOINT_FREQ = 50
    N_WORKERS = 0  # decoding 64 px takes less than handing an image to another process
    ENVIRONMENTS = ["fluent3d", "line", "noto", "twemoji"]
    INPUT_SHAPE = (3, EMOJI_SIZE, EMOJI_SIZE)

    def read(self, root: Any) -> tuple[list[Any], verify.DataReport]:
        """The styles, from the unpacked archive of the package, and their verdict."""
        folder = emoji.environment_folder(type(self).__name__)
        listed = listing.list_environments(folder)
        images = listed.paths()
        environments = [
            ListedFolder(str(folder / name), images[name], loader=_decoded_emoji)
            for name in self.ENVIRONMENTS
        ]
        return environments, verify.verify_listing(type(self).__name__, listed)


class EmojiUnseen(EmojiStyles):
    """The same things in the styles that `tiny` has not seen in pre-training.

    Each style has those of the things that its artists drew. Styles of one family are one unit.
    """

    ENVIRONMENTS = emoji_styles.names(emoji_styles.NEVER_SEEN)


class EmojiShift(EmojiStyles):
    """One style, of two thirds of the things: the training set of the suite EmojiShift."""

    ENVIRONMENTS = [emoji.TRAINED_STYLE]


@functools.cache
def _decoded_emoji(path: str) -> Image.Image:
    """A decoded image, which stays in memory: all 1,716 take 21 MB; a job reads each often."""
    return image_files.open_image(path)


class ImageNet(PackageDataset):
    """ILSVRC2012's training set, its classes in the order of WordNet ids.

    The steps are ten passes in batches of 512. Only the out-split is evaluated: the in-split has a
    million images.
    """

    N_STEPS = 25_030
    CHECKPOINT_FREQ = 2_503
    IMAGES = (imagenet_training.IMAGES,)
    EVALUATED_SPLITS = ("out",)

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """For our harness: what is wrong with the data, before a job starts."""
        return imagenet_training.training_set_problems(root)

    def read(self, root: Any) -> tuple[list[Any], verify.DataReport]:
        """The training set, the only environment, and its verdict; CarftError if it is missing."""
        folder = imagenet_training.find_training_set(root)
        if folder is None:
            raise CarftError(*self.data_problems(root))

        listed = listing.list_classes(folder)
        counts = listed.counts[""]
        raise_for(imagenet_training.folder_problems(folder, list(counts)))
        report = imagenet_training.report(folder, counts, listed.problems, self.IMAGES[0])
        return [ImageList(str(folder), imagenet.class_names(), _paths(listed))], report


def _paths(listed: listing.Listing) -> ImagePaths:
    """The images of the 1,000 class folders, by class and name."""
    names = [os.fsencode(path) for path in sorted(listed.images)]
    counts = list(listed.counts[""].values())
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImagePaths(str(listed.root), np.array(names, dtype=np.bytes_), labels)
