"""The data sets of this package under the interface of DomainBed's: ImageNet, tasks, and emojis.

In EmojiStyles four teams of artists drew the same things: a small PACS of real drawings.
``assets/README.md`` says how the archive was made and whose drawings they are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

from domainbed_carft.clips import pictures
from domainbed_carft.data import (
    benchmarks,
    emoji,
    emoji_styles,
    listing,
    shards,
    tasks,
    verify,
)
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.pictures.image_lists import Environment, Paths
from domainbed_carft.plugin.image_folders import (
    asked_for,
    remember,
    require_weights,
    warn_of_broken,
)
from domainbed_carft.suites import imagenet, imagenet_training

HOSTS_SIZE = 224  # px; the host's own algorithms have networks for it
EMOJI_SIZE = 48  # px, the resolution of the tiny CLIP; the archive has 64 px, so crops stay sharp


class Provided:
    """The base; the plugin adds the host's own, whose place differs between forks.

    Pictures are as large as the CLIP of one of our algorithms wants, else as ``INPUT_SHAPE`` says.
    Forks that pass no ``hparams`` (SWAD, MIRO) resize pictures themselves and get them as they are.
    """

    N_STEPS = 5001
    CHECKPOINT_FREQ = 300
    N_WORKERS = 8
    ENVIRONMENTS = ["train"]
    INPUT_SHAPE = (3, HOSTS_SIZE, HOSTS_SIZE)

    def __init__(
        self, root: Any, test_envs: Sequence[int] = (), hparams: dict[str, Any] | None = None
    ) -> None:
        self.protocol = hparams.get("protocol", "domainbed") if hparams else "domainbed"
        self.environments = list(self.ENVIRONMENTS)
        self.asked = asked_for(hparams)
        require_weights(hparams)
        size = self.INPUT_SHAPE[-1] if "clip_backbone" in (hparams or {}) else HOSTS_SIZE
        size = int(self.asked.split()[0]) if self.asked else size
        self.input_shape = (3, size, size)
        self.datasets, report = self.read(root)
        warn_of_broken(report, "data_edition" in (hparams or {}))
        for index, environment in enumerate(self.datasets):
            if hparams is not None:
                # The key is younger than DomainBed.
                augment = hparams.get("data_augmentation", True) and index not in test_envs
                environment.transform = pictures.transform(self.protocol, size, augment, self.asked)
        self.num_classes = len(self.datasets[0].classes)
        told = None if hparams is None else test_envs  # such hosts pass none of the two
        remember(self, report, self.protocol, hparams, told)

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        """The environments below the data folder ``root``, not transformed, and what was found."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)


class TaskData(Provided):
    """The training split of one of ``tasks.TASKS``, as torchvision has it below the data folder."""

    TASK: tasks.Task

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """For our harness: what is wrong with the data, before a job starts."""
        task = cls.TASK
        if root and (absent := benchmarks.missing_data_dir(root)):
            return absent
        if root and os.path.isdir(os.path.join(root, task.folder)):
            return []
        return [f"{task.name} needs --data_dir, the folder that has {task.folder}; {task.remedy}"]

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        raise_for(self.data_problems(root))
        found = tasks.read(self.TASK, root, train=True)
        found.root = self.ENVIRONMENTS[0]  # after which environments are called
        return [found], tasks.report(self.TASK, root, [found])


TASKS = {name: type(name, (TaskData,), {"TASK": task}) for name, task in tasks.TASKS.items()}


class EmojiStyles(Provided):
    """Ten classes in four styles, 48 px, or as many as the CLIP of one of our algorithms wants.

    ``root`` is not read: the pictures are in the package. Concepts in them are disjoint from those
    that the embedded ``tiny`` CLIP was pre-trained on.
    """

    N_STEPS = 101
    CHECKPOINT_FREQ = 50
    N_WORKERS = 0  # decoding 64 px takes less than handing a picture to another process
    ENVIRONMENTS = ["fluent3d", "line", "noto", "twemoji"]
    INPUT_SHAPE = (3, EMOJI_SIZE, EMOJI_SIZE)

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        folder = emoji.environments(type(self).__name__)
        found = [ImageFolder(str(folder / name), loader=_emoji) for name in self.ENVIRONMENTS]
        return found, verify.examine(type(self).__name__, folder)


class EmojiUnseen(EmojiStyles):
    """The same things in the styles that `tiny` has not seen in pre-training.

    Each style has those of the things that its artists drew. Styles of one family are one unit.
    """

    ENVIRONMENTS = emoji_styles.names(emoji_styles.NEVER_SEEN)


class EmojiShift(EmojiStyles):
    """One style, of two thirds of the things: the training set of the suite EmojiShift."""

    ENVIRONMENTS = [emoji.TRAINED_STYLE]


@functools.cache
def _emoji(path: str) -> Image.Image:
    """A decoded picture, kept: all 1,716 take 21 MB, and a job reads each a dozen times."""
    return listing.open_picture(path)


class ImageNet(Provided):
    """ILSVRC2012's training set, in folders or shards, its classes in the order of WordNet ids.

    The steps are ten passes in batches of 512. Only what is held out is evaluated: the rest is a
    million pictures.
    """

    N_STEPS = 25_030
    CHECKPOINT_FREQ = 2_503
    PICTURES = (imagenet_training.PICTURES,)
    EVALUATED_SPLITS = ("out",)

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """For our harness: what is wrong with the data, before a job starts."""
        return imagenet_training.missing(root)

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        copy = imagenet_training.find(root)
        if copy is None:
            raise CarftError(*self.data_problems(root))
        ids = imagenet.ids()
        problems: list[str] = []
        samples: Paths | shards.Index
        if copy.archives:
            samples = shards.index(copy.archives, ids)
            told = f"{len(samples):,} pictures in {len(copy.archives):,} shards in {copy.place}"
            print(f"ImageNet: {told}")
        else:
            found = listing.of_classes(copy.folder)
            for problem in imagenet_training.folder_problems(copy.folder, list(found.counts[""])):
                raise CarftError(problem)
            samples, problems = _paths(found), found.problems

        numbers = np.bincount(samples.labels, minlength=len(ids)).tolist()
        counts = dict(zip(ids, numbers))
        report = imagenet_training.report(copy, counts, problems, self.PICTURES[0])
        return [Environment(str(copy.folder), imagenet.class_names(), samples)], report


def _paths(found: listing.Listing) -> Paths:
    """The pictures of the 1,000 class folders, by class and name."""
    paths = np.array([os.fsencode(path) for path in sorted(found.pictures)], dtype=np.bytes_)
    labels = np.repeat(np.arange(len(found.counts[""])), list(found.counts[""].values()))
    return Paths(str(found.root), paths, labels)
