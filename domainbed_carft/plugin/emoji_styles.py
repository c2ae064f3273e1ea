"""EmojiStyles: the benchmark that ships with the package, as a DomainBed data set.

Four teams of artists drew the same things: a small PACS of real drawings. ``assets/README.md`` says
how the archive was made and whose drawings they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder

from domainbed_carft.clips import pictures
from domainbed_carft.data import emoji, listing, verify
from domainbed_carft.plugin.image_folders import asked_for, remember

SIZE = 48  # px, the resolution of the tiny CLIP; the archive has 64 px, so crops stay sharp


class EmojiStyles:
    """Ten classes in four styles, 48 px, or as many as the CLIP of one of our algorithms wants.

    ``root`` is not read: the pictures are in the package.

    Augmentation is DomainBed's recipe at this size. Concepts in it are disjoint from those that the
    embedded ``tiny`` CLIP was pre-trained on.

    It implements the interface of DomainBed's data sets; the plugin adds the host's base class,
    whose place differs between forks. The host's own algorithms get 224 px, since they have no
    networks for 48. Forks that pass no ``hparams`` (SWAD, MIRO) resize pictures themselves and get
    them untransformed.
    """

    N_STEPS = 101
    CHECKPOINT_FREQ = 50
    N_WORKERS = 0  # decoding 64 px takes less than handing a picture to another process
    ENVIRONMENTS = ["fluent3d", "line", "noto", "twemoji"]
    INPUT_SHAPE = (3, SIZE, SIZE)
    HOSTS_SIZE = 224  # px

    def __init__(
        self, root: Any, test_envs: Sequence[int] = (), hparams: dict[str, Any] | None = None
    ) -> None:
        folder = emoji.unpacked()
        self.protocol = hparams.get("protocol", "domainbed") if hparams else "domainbed"
        self.environments = list(self.ENVIRONMENTS)
        size = SIZE if hparams and "clip_backbone" in hparams else self.HOSTS_SIZE
        self.asked = asked_for(hparams)
        size = int(self.asked.split()[0]) if self.asked else size
        self.input_shape = (3, size, size)
        self.datasets = [
            ImageFolder(
                str(folder / environment),
                loader=_picture,
                transform=self._transform(hparams, index in test_envs),
            )
            for index, environment in enumerate(self.ENVIRONMENTS)
        ]
        self.num_classes = len(self.datasets[0].classes)
        report = verify.examine(type(self).__name__, folder)
        told = None if hparams is None else test_envs  # such hosts pass none of the two
        remember(self, report, self.protocol, hparams, told)

    def _transform(
        self, hparams: dict[str, Any] | None, is_test: bool
    ) -> Callable[[Any], Any] | None:
        if hparams is None:
            return None
        augment = hparams.get("data_augmentation", True)  # the key is younger than DomainBed
        size, augment = self.input_shape[-1], augment and not is_test
        return pictures.transform(self.protocol, size, augment, self.asked)

    def __getitem__(self, index: int) -> ImageFolder:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)


@functools.cache
def _picture(path: str) -> Image.Image:
    """A decoded picture, kept: all 1,716 take 21 MB, and a job reads each a dozen times."""
    return listing.open_picture(path)
