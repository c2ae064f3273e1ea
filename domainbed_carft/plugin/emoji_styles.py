"""EmojiStyles: the benchmark that ships with the package, as a DomainBed data set.

Four teams of artists drew the same things: a small PACS of real drawings. ``assets/README.md`` says
how the archive was made and whose drawings they are.
"""

from __future__ import annotations

import functools
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder

from domainbed_carft.data import emoji, listing, verify
from domainbed_carft.plugin.provided import Provided

SIZE = 48  # px, the resolution of the tiny CLIP; the archive has 64 px, so crops stay sharp


class EmojiStyles(Provided):
    """Ten classes in four styles, 48 px, or as many as the CLIP of one of our algorithms wants.

    ``root`` is not read: the pictures are in the package.

    Augmentation is DomainBed's recipe at this size. Concepts in it are disjoint from those that the
    embedded ``tiny`` CLIP was pre-trained on.
    """

    N_STEPS = 101
    CHECKPOINT_FREQ = 50
    N_WORKERS = 0  # decoding 64 px takes less than handing a picture to another process
    ENVIRONMENTS = ["fluent3d", "line", "noto", "twemoji"]
    INPUT_SHAPE = (3, SIZE, SIZE)

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        folder = emoji.environments(type(self).__name__)
        found = [ImageFolder(str(folder / name), loader=_picture) for name in self.ENVIRONMENTS]
        return found, verify.examine(type(self).__name__, folder)

    def size(self, hparams: dict[str, Any] | None) -> int:
        return SIZE if hparams and "clip_backbone" in hparams else self.HOSTS_SIZE


class EmojiShift(EmojiStyles):
    """One style, of two thirds of the things: the training set of the suite EmojiShift."""

    ENVIRONMENTS = [emoji.TRAINED_STYLE]


@functools.cache
def _picture(path: str) -> Image.Image:
    """A decoded picture, kept: all 1,716 take 21 MB, and a job reads each a dozen times."""
    return listing.open_picture(path)
